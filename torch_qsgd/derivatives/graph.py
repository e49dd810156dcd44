"""What a gradient's graph must not hold if higher derivatives are to be had from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from torch_qsgd.errors import GraphError

#: Where each way to get derivatives is described in the error messages below.
RECORDING = "put the forward and the backward pass under `with opt.recording():`"

#: Right to first order in reverse mode; wrong, or missing, beyond.
_NATIVE_NORMALIZATION = (
    "NativeBatchNorm",
    "CudnnBatchNorm",
    "MiopenBatchNorm",
    "NativeLayerNorm",
    "FusedRmsNorm",
)

#: No second derivative in PyTorch, or a wrong one; the reason, and what to change.
_NO_SECOND_DERIVATIVE = {
    "CompiledFunction": "torch.compile keeps no second derivative: train the uncompiled model",
    "ScaledDotProduct": (
        "fused attention has no second derivative: choose `SDPBackend.MATH`, or " + RECORDING
    ),
    "CheckpointFunction": (
        "reentrant checkpointing cuts the graph: pass `use_reentrant=False` to `checkpoint`"
    ),
    "torch::autograd::Error": (
        "a function's backward pass is marked once_differentiable, and PyTorch would take its "
        "second derivative for zero: write a differentiable backward, or the function from "
        "PyTorch's operations"
    ),
    "SyncBatchNorm": "SyncBatchNorm has no second derivative: use BatchNorm or GroupNorm",
    "WeightNormInterface": (
        "PyTorch's weight_norm has a wrong second derivative (by half, in one test): " + RECORDING
    ),
    "CudnnRnn": (
        "cuDNN's recurrent layers have no second derivative: run the forward pass under "
        "`torch.backends.cudnn.flags(enabled=False)`"
    ),
}


def _nodes(tensors: Iterable[Tensor]) -> Iterator[Any]:
    """Every node of the graph behind ``tensors``, once."""
    stack = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)


def refuse_unusable_graph(gradients: Iterable[Tensor], order: int) -> None:
    """Raise where the graph of ``gradients`` gives wrong Taylor coefficients up to ``order``.

    Args:
        gradients: gradients with respect to the parameters, with their graph.
        order: highest coefficient wanted; first-order ones survive native normalisations.

    Raises:
        GraphError: names the operation found and the line to change.

    Cost: one visit a node, about 1 µs each.
    """
    for node in _nodes(gradients):
        name = node.name()
        for prefix, advice in _NO_SECOND_DERIVATIVE.items():
            if name.startswith(prefix):
                raise GraphError(f"the gradient's graph holds {name}: {advice}.")
        if order < 2 or not name.startswith(_NATIVE_NORMALIZATION):
            continue
        # In eval mode batch normalisation is affine, and its derivatives are right.
        if not getattr(node, "_saved_training", getattr(node, "_saved_train", True)):
            continue
        raise GraphError(
            f"the gradient's graph holds {name}, whose derivatives beyond the first PyTorch gets "
            f"wrong or lacks, and order {order} needs them: {RECORDING}, so that normalisations "
            "are composed of primitives."
        )


def saved_bytes(tensors: Iterable[Tensor]) -> int:
    """Memory that the graph behind ``tensors`` keeps alive, in bytes; each storage counts once.

    Cost: one visit a node, some 20 µs each.

    Example:
        >>> import torch
        >>> x = torch.ones(1000, requires_grad=True)
        >>> saved_bytes([x.sin()])  # x itself
        4000
    """
    storages: dict[int, int] = {}
    for node in _nodes(tensors):
        for tensor in _saved(node):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _saved(node: Any) -> Iterator[Tensor]:
    for name in dir(node):
        if not (name.startswith("_saved_") or name == "saved_tensors"):
            continue
        try:
            value = getattr(node, name)
        except RuntimeError:  # freed, or changed in place: no longer of use, nor held
            continue
        values = value if isinstance(value, (tuple, list)) else (value,)
        yield from (v for v in values if isinstance(v, Tensor))
