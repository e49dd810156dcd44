"""What pruning costs: the whole of it, and that of each tensor alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from torch_qsgd.auditing.run import Tick
from torch_qsgd.names import nearest
from torch_qsgd.report.measurements import LayerPruning, Pruning
from torch_qsgd.training import Batch, LossFunction, evaluate


def measure_pruning(
    dense_model: nn.Module,
    pruned_model: nn.Module,
    masks: Mapping[str, Tensor],
    loss_fn: LossFunction,
    held_out: Sequence[Batch],
    *,
    tick: Tick = lambda done, total: None,
) -> Pruning:
    """Loss and accuracy before pruning, after it, and with one tensor pruned at a time.

    Args:
        dense_model: before pruning. Each of its tensors is pruned in turn and put back, bit for
            bit, also where the evaluation fails; nothing else of it is changed.
        pruned_model: a copy of it, with all masks applied.
        masks: bool, True where a weight stays, by the parameter's name; one for each tensor that
            pruning may take weights from, even if it has taken none.
        loss_fn: of outputs and targets; a mean over samples.
        held_out: batches to evaluate on, at least one.
        tick: told how many evaluations are done, of how many.

    Returns:
        All weights that require a gradient, those of tensors with a mask, those that stay; the
        losses and accuracies; and of each tensor with a mask its share of squared length that is
        removed, and the loss and accuracy with it alone pruned. A tensor that keeps all weights
        has the dense model's.

    Raises:
        ValueError: for no batch, or a mask of an unknown parameter, another shape or dtype.

    Cost: one forward pass over ``held_out`` for each model and for each tensor that loses weights;
    a copy of one tensor.

    Source: ours.

    Example:
        >>> dense, pruned = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
        >>> _ = dense.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> _ = pruned.weight.data.copy_(torch.tensor([[0.0, 4.0]]))
        >>> masks = {"weight": torch.tensor([[False, True]])}
        >>> batch = torch.ones(1, 2), torch.full((1, 1), 7.0)
        >>> found = measure_pruning(dense, pruned, masks, nn.functional.mse_loss, [batch])
        >>> found.active, found.loss_dense, found.loss, round(found.layers[0].norm_removed, 6)
        (1, 0.0, 9.0, 0.36)
    """
    if not held_out:
        raise ValueError("held_out holds no batch: give at least one to evaluate on")
    parameters = dict(dense_model.named_parameters())
    _check(masks, parameters)
    device = next(dense_model.parameters()).device
    losing = [name for name, mask in masks.items() if not bool(mask.all())]
    total = 2 + len(losing)
    loss_dense, accuracy_dense = evaluate(dense_model, loss_fn, held_out, device)
    tick(1, total)
    loss, accuracy = evaluate(pruned_model, loss_fn, held_out, device)
    tick(2, total)
    layers = []
    for name, mask in masks.items():
        p, alone = parameters[name], (loss_dense, accuracy_dense)
        if name in losing:
            with _pruned(p, mask):
                alone = evaluate(dense_model, loss_fn, held_out, device)
            tick(3 + losing.index(name), total)
        removed = _norm_removed(p, mask)
        layers.append(LayerPruning(name, p.numel(), int(mask.sum()), removed, *alone))
    trainable = sum(p.numel() for p in parameters.values() if p.requires_grad)
    prunable = sum(layer.weights for layer in layers)
    return Pruning(
        parameters=trainable,
        prunable=prunable,
        active=trainable - prunable + sum(layer.active for layer in layers),
        loss_dense=loss_dense,
        accuracy_dense=accuracy_dense,
        loss=loss,
        accuracy=accuracy,
        layers=layers,
    )


def _check(masks: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        p = parameters.get(name)
        if p is None:
            near = nearest(name, parameters)
            hint = f"; did you mean {near!r}?" if near else ""
            raise ValueError(f"a mask is for {name!r}, which is no parameter of the model{hint}")
        if not p.requires_grad:
            raise ValueError(f"a mask is for {name!r}, which has requires_grad=False: leave it out")
        if mask.dtype != torch.bool or mask.shape != p.shape:
            raise ValueError(
                f"the mask of {name!r} must be bool, of shape {tuple(p.shape)}: got {mask.dtype}, "
                f"{tuple(mask.shape)}"
            )


@contextlib.contextmanager
def _pruned(parameter: Tensor, mask: Tensor) -> Iterator[None]:
    """The parameter with its pruned weights at zero; put back on leaving, bit for bit."""
    kept = parameter.detach().clone()
    with torch.no_grad():
        try:
            parameter.masked_fill_(~mask.to(parameter.device), 0)
            yield
        finally:
            parameter.copy_(kept)


def _norm_removed(parameter: Tensor, mask: Tensor) -> float:
    """Share of the squared length at pruned places; 0 of a tensor of zeros."""
    values = parameter.detach()
    gone = values.masked_fill(mask.to(values.device), 0)
    whole = float(torch.linalg.vector_norm(values, dtype=torch.float64))
    part = float(torch.linalg.vector_norm(gone, dtype=torch.float64))
    return (part / whole) ** 2 if whole else 0.0
