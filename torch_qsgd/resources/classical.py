r"""What the same steps cost on a classical computer: operations, and memory traffic.

One forward and one backward pass are run and watched, operator by operator. Multiplications of
matrices, convolutions and attention have a formula in ``torch.utils.flop_counter``, with two
operations for each multiply-add, so that an :math:`m \times k` by :math:`k \times n` product takes
:math:`2mkn` of them. Every other operator is charged one operation for each element of the largest
tensor it reads or writes, whatever it does to it: our definition. Views, and memory that is
allocated without being written, are free. As in ``backward()``, a weight's gradient that is one
number spread by a view is written out, once.

Not counted:

- the optimizer's own update: two to six operations a weight and step;
- what lies before the model: reading, decoding and augmenting data;
- that caches and fused kernels spare memory traffic: an operator is charged all that it reads and
  all that it writes;
- the true work inside an element: an exponential, a logarithm or a random number counts as one, so
  do a Fourier transform's or a matrix factorization's elements;
- launches of kernels, and the Python around them.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from torch_qsgd.batches import forward, tensors_in
from torch_qsgd.checks import require_integer

#: Operators that read as many entries of a table as they write, not all of it.
_GATHERS = ("aten::embedding", "aten::gather", "aten::index", "aten::index_select", "aten::take")
#: Operators that only allocate.
_ALLOCATIONS = ("aten::empty", "aten::new_empty")


@dataclass(frozen=True)
class StepCost:
    """Operations and memory traffic of one step, or of several.

    Attributes:
        flops: of matrix products, convolutions and attention; a multiply-add counts as two.
        elementwise: of all other operators, one for each element.
        bytes_moved: read and written by all operators.

    Example:
        >>> StepCost(flops=100, elementwise=20, bytes_moved=480).times(10).operations
        1200
    """

    flops: int
    elementwise: int
    bytes_moved: int

    @property
    def operations(self) -> int:
        """``flops`` and ``elementwise`` together."""
        return self.flops + self.elementwise

    def times(self, steps: int) -> StepCost:
        """The cost of so many steps alike.

        Raises:
            ValueError: unless ``steps`` is an integer of at least 0.
        """
        steps = require_integer("steps", steps, 0)
        return StepCost(self.flops * steps, self.elementwise * steps, self.bytes_moved * steps)


def step_cost(model: nn.Module, loss_fn: Callable[..., Tensor], batch: Any) -> StepCost:
    r"""Count the operations and bytes of one step of SGD: a forward and a backward pass.

    The pass is made once, in the mode, train or eval, that the model is in. The model is left as
    it was: its weights, buffers, ``.grad`` and modes, and the random state. Attention is counted
    as written out, without a fused kernel; recurrent layers step by step.

    Args:
        model: with at least one trainable weight.
        loss_fn: ``loss_fn(model(inputs), targets)``, a scalar.
        batch: a pair (inputs, targets) on the model's device; a tuple of inputs is unpacked, a
            mapping is passed by keyword.

    Returns:
        The cost of that one step. What is not counted stands at the top of
        ``torch_qsgd/resources/classical.py``.

    Raises:
        ValueError: for a batch that is no pair, a model without trainable weights, or a loss that
            is no scalar, or that does not depend on the weights.

    Cost: one gradient evaluation, some milliseconds more for every hundred operators, and a copy
    of the buffers.

    Source: ``torch.utils.flop_counter``.

    Example:
        A layer of 3 × 4 weights on 8 samples: 2 · 8 · 3 · 4 operations forward, as many for the
        gradient of the weights; that of the inputs is not needed.

        >>> batch = torch.ones(8, 4), torch.zeros(8, 3)
        >>> step_cost(nn.Linear(4, 3, bias=False), nn.functional.mse_loss, batch).flops
        384
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ValueError(f"batch must be a pair (inputs, targets), got {type(batch).__name__}")
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("the model has no trainable weights, so SGD has nothing to do")
    inputs, targets = batch
    counter = FlopCounterMode(display=False)
    traffic = _Traffic(counter)
    with _left_as_it_was(model, params), _written_out(model), traffic, counter:
        loss = loss_fn(forward(model, inputs), targets)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            shape = (
                f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            )
            raise ValueError(
                f"loss_fn must return a scalar that depends on the model's weights, got {shape}"
            )
        # FlopCounterMode fails within autograd.grad where a module's input is itself a weight, as a
        # parametrization's is.
        loss.backward(inputs=params)
    return StepCost(counter.get_total_flops(), traffic.elementwise, traffic.bytes_moved)


@contextlib.contextmanager
def _left_as_it_was(model: nn.Module, params: Sequence[Tensor]) -> Iterator[None]:
    """Put buffers, gradients and random states back; take gradients whatever the caller's mode.

    Within, ``.grad`` is ``None``, so that nothing is added up, and no hook is told of one.
    """
    devices = {p.device for p in params if p.device.type == "cuda"}
    buffers = list(model.buffers())
    saved = [buffer.clone() for buffer in buffers]
    gradients = [(p, p.grad) for p in params]
    tables: list[dict[int, Any]] = [p._post_accumulate_grad_hooks or {} for p in params]
    hooks = [dict(table) for table in tables]
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            for p, table in zip(params, tables, strict=True):
                p.grad = None
                table.clear()
            yield
        finally:
            for (p, gradient), table, known in zip(gradients, tables, hooks, strict=True):
                p.grad = gradient
                table.update(known)
            with torch.no_grad():
                for buffer, before in zip(buffers, saved, strict=True):
                    buffer.copy_(before)


@contextlib.contextmanager
def _written_out(model: nn.Module) -> Iterator[None]:
    """Run without the fused kernels that hide products from the counter."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(warnings.catch_warnings())
            # Of setting an option of oneDNN to what it was.
            warnings.filterwarnings("ignore", message="TF32 acceleration")
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


class _Traffic(TorchDispatchMode):
    """Counts bytes of all operators, and elements of those without a formula."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._formulas = counter.flop_registry
        self.elementwise = 0
        self.bytes_moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        schema = getattr(func, "_schema", None)
        if schema is not None and not schema.name.startswith(_ALLOCATIONS):
            self._count(func, schema, list(tensors_in((args, kwargs or {}))), list(tensors_in(out)))
        return out

    def _count(self, func: Any, schema: Any, read: list[Tensor], written: list[Tensor]) -> None:
        for tensor in (*read, *written):
            if tensor.layout != torch.strided:
                raise ValueError(
                    f"{schema.name} reads or writes a tensor of layout {tensor.layout}, and the "
                    "cost of dense tensors only is known: use dense ones, as sparse=False in an "
                    "embedding"
                )
        storages = {_storage(t) for t in read}
        if not schema.is_mutable and all(_storage(t) in storages for t in written):
            return  # a view
        if schema.name in _GATHERS:
            read = [*written, *read[1:]]
        self.bytes_moved += sum(_bytes(t) for t in (*read, *written))
        if func.overloadpacket not in self._formulas:
            self.elementwise += max(t.numel() for t in (*read, *written))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    """What there is to read: an expanded tensor holds less than its shape says."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
