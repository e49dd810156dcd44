"""The mode a model runs in so that its derivatives are right, and cheap, at every order."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import CheckpointError

from torch_qsgd.derivatives.convolution import convolution
from torch_qsgd.derivatives.graph import refuse_unusable_graph
from torch_qsgd.derivatives.normalization import COMPOSED
from torch_qsgd.errors import GraphError

_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    **COMPOSED,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), convolution),
}


class _HigherDerivatives(TorchFunctionMode):
    """Replaces operations, as they are called, by twins with right derivatives."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))


class _KeepGraph(_HigherDerivatives):
    """Also sees each ``loss.backward()``, and may make it keep the graph of the gradients."""

    def __init__(self, losses: list[Tensor], create_graph: bool) -> None:
        super().__init__()
        self._losses = losses
        self._create_graph = create_graph

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not torch.Tensor.backward:
            return super().__torch_function__(func, types, args, kwargs)
        loss, *rest = args
        names = ("gradient", "retain_graph", "create_graph", "inputs")
        given = {**dict(zip(names, rest, strict=False)), **(kwargs or {})}
        if self._create_graph:
            refuse_unusable_graph([loss], order=1)
            given.update(create_graph=True, retain_graph=None)
        self._losses.append(loss.detach().sum())
        with warnings.catch_warnings():
            # The graph is cut off again by whoever asked for it; PyTorch cannot know.
            warnings.filterwarnings("ignore", "Using backward\\(\\) with create_graph=True")
            try:
                return func(loss, **given)  # type: ignore[no-untyped-call]
            except CheckpointError as error:
                raise GraphError(
                    "a checkpointed part of the model ran differently when it was run again, for "
                    "PyTorch leaves modes behind there: pass "
                    "`context_fn=torch_qsgd.derivatives.checkpoint_contexts` to `checkpoint`"
                ) from error


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
def keep_graph(create_graph: bool = True) -> Iterator[list[Tensor]]:
    """:func:`higher_derivatives`, in which ``loss.backward()`` is seen and keeps a graph.

    Args:
        create_graph: False where only the losses are wanted.

    Yields:
        The losses, detached, that ``backward`` was called on, in order. Each gradient it leaves
        in ``.grad`` carries the graph that made it, if ``create_graph``.

    Cost: as :func:`higher_derivatives`, and the memory of the graph.
    """
    losses: list[Tensor] = []
    with _KeepGraph(losses, create_graph), sdpa_kernel(SDPBackend.MATH):
        yield losses
