"""The mode a model runs in so that its derivatives are right, and cheap, at every order."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import CheckpointError

from torch_qsgd.derivatives.convolution import convolution
from torch_qsgd.derivatives.graph import refuse_unusable_graph
from torch_qsgd.derivatives.normalization import COMPOSED
from torch_qsgd.derivatives.second_order import CONVOLUTIONS, SecondOrderBatchNorm
from torch_qsgd.errors import GraphError

_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    **COMPOSED,
    **dict.fromkeys(CONVOLUTIONS, convolution),
}


class _HigherDerivatives(TorchFunctionMode):
    """Replaces operations, as they are called, by twins with right derivatives."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))


class _SecondDerivatives(_HigherDerivatives):
    """Cheaper batch normalisation, which has no third derivative."""

    def __init__(self) -> None:
        super().__init__()
        self._normalization = SecondOrderBatchNorm()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in CONVOLUTIONS:
            return self._normalization.convolution(*args, **(kwargs or {}))
        if func is F.batch_norm:
            found = self._normalization.batch_norm(*args, **(kwargs or {}))
            if found is not None:
                return found
        return super().__torch_function__(func, types, args, kwargs)


class BackwardWatcher(Protocol):
    """Is told of each ``loss.backward()`` under :func:`keep_graph`."""

    def before_backward(self, loss: Tensor) -> None:
        """Called with the loss, before any gradient has changed."""

    def after_backward(self) -> None:
        """Called when the gradients are there."""


class _KeepGraph(_HigherDerivatives):
    """Also sees each ``loss.backward()``, and may make it keep the graph of the gradients."""

    def __init__(self, create_graph: bool, watcher: BackwardWatcher | None) -> None:
        super().__init__()
        self._create_graph = create_graph
        self._watcher = watcher

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.backward:
            return self._backward(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    def _backward(self, loss: Tensor, *rest: Any, **kwargs: Any) -> None:
        names = ("gradient", "retain_graph", "create_graph", "inputs")
        given = {**dict(zip(names, rest, strict=False)), **kwargs}
        if self._create_graph:
            refuse_unusable_graph([loss], order=1)
            given.update(create_graph=True, retain_graph=None)
        if self._watcher is not None:
            self._watcher.before_backward(loss)
        with warnings.catch_warnings():
            # The graph is cut off again by whoever asked for it; PyTorch cannot know.
            warnings.filterwarnings("ignore", "Using backward\\(\\) with create_graph=True")
            try:
                loss.backward(**given)
            except CheckpointError as error:
                raise GraphError(
                    "a checkpointed part of the model ran differently when it was run again, for "
                    "PyTorch leaves modes behind there: pass "
                    "`context_fn=torch_qsgd.derivatives.checkpoint_contexts` to `checkpoint`"
                ) from error
        if self._watcher is not None:
            self._watcher.after_backward()


@contextlib.contextmanager
def higher_derivatives() -> Iterator[None]:
    """Context in which a model's higher derivatives are right.

    Native normalisations are replaced by composed ones, convolutions by ones with a cheaper
    second derivative, and attention runs on the math backend, the one that has second
    derivatives. It must be on during the *forward* pass. It is local to the thread, except for
    the choice of attention backend, which PyTorch keeps globally and which is put back on
    leaving.

    Cost: about 1.1 of a native forward and backward pass on a batch-normalised ResNet, and
    2.5 µs a PyTorch call.

    Example:
        >>> import torch
        >>> layer, x = torch.nn.LayerNorm(3), torch.randn(2, 3)
        >>> with higher_derivatives():
        ...     y = layer(x)
        >>> torch.allclose(y, layer(x), atol=1e-6)
        True
    """
    with _HigherDerivatives(), sdpa_kernel(SDPBackend.MATH):
        yield


@contextlib.contextmanager
def second_derivatives() -> Iterator[None]:
    """:func:`higher_derivatives` for Hessian-vector products alone, which are cheaper then.

    Batch normalisation in train mode has its second derivative by hand, and none beyond; in eval
    mode it is folded into the convolution before it, exactly.

    Cost: the forward pass computes folded convolutions twice; a Hessian-vector product costs 1.05
    (eval) to 1.08 times (train) less on ResNet-18.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).eval()
        >>> x = torch.randn(4, 1, 5, 5)
        >>> with second_derivatives():
        ...     y = model(x)
        >>> torch.allclose(y, model(x), atol=1e-6)
        True
    """
    with _SecondDerivatives(), sdpa_kernel(SDPBackend.MATH):
        yield


class _EachTime(contextlib.AbstractContextManager[None]):
    """:func:`higher_derivatives`, entered as often as derivatives are taken."""

    def __init__(self) -> None:
        self._entered: list[contextlib.AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        self._entered.append(higher_derivatives())
        self._entered[-1].__enter__()

    def __exit__(self, *error: Any) -> None:
        self._entered.pop().__exit__(*error)


def checkpoint_contexts() -> tuple[
    contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]
]:
    """``context_fn`` for ``torch.utils.checkpoint.checkpoint``, with ``use_reentrant=False``.

    PyTorch runs a checkpointed part again inside the backward pass, where no mode is on; this puts
    :func:`higher_derivatives` on there too, if it was on in the forward pass.

    Returns:
        Contexts for the forward pass and for running it again.

    Example:
        >>> from torch.utils.checkpoint import checkpoint
        >>> layer, x = torch.nn.LayerNorm(3), torch.randn(2, 3, requires_grad=True)
        >>> with higher_derivatives():
        ...     y = checkpoint(layer, x, use_reentrant=False, context_fn=checkpoint_contexts)
        ...     (g,) = torch.autograd.grad(y.sum(), x)
    """
    on = any(isinstance(mode, _HigherDerivatives) for mode in _get_current_function_mode_stack())
    return contextlib.nullcontext(), _EachTime() if on else contextlib.nullcontext()


@contextlib.contextmanager
def keep_graph(create_graph: bool = True, watcher: BackwardWatcher | None = None) -> Iterator[None]:
    """:func:`higher_derivatives`, in which ``loss.backward()`` leaves gradients with their graph.

    Args:
        create_graph: False where only the watcher is wanted.
        watcher: is told of each backward pass.

    Cost: as :func:`higher_derivatives`, and the memory of the graph.
    """
    with _KeepGraph(create_graph, watcher), sdpa_kernel(SDPBackend.MATH):
        yield
