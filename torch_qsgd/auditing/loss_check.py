"""Whether a model and its loss can be audited at all, before anything long begins."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_qsgd.auditing.borrowing import untouched
from torch_qsgd.batches import forward, tensors_in
from torch_qsgd.training import Batch, LossFunction


def require_scalar_loss(model: nn.Module, loss_fn: LossFunction, batch: Batch) -> None:
    """Try the loss on one batch; the model is left as it was.

    Args:
        model, loss_fn: ``loss_fn(model(inputs), targets)``.
        batch: a pair (inputs, targets).

    Raises:
        ValueError: where that fails, or gives no single finite number that depends on the weights.

    Cost: one forward pass.
    """
    inputs, targets = batch
    shapes = [tuple(tensor.shape) for tensor in tensors_in(inputs)]
    with untouched(model), torch.enable_grad():
        try:
            loss = loss_fn(forward(model, inputs), targets)
        except Exception as error:  # whatever a user's model or loss raises
            raise ValueError(
                f"model and loss fail on the first batch, with inputs of shape "
                f"{', '.join(map(str, shapes))}: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss_fn must return one number, a scalar tensor: got {given}")
    if not loss.requires_grad:
        raise ValueError(
            "the loss does not depend on the weights: look for detach(), item() or no_grad() in "
            "the model and the loss"
        )
    if not bool(torch.isfinite(loss.detach()).all()):
        raise ValueError(
            f"the loss on the first batch is {float(loss.detach())}: look at the weights and the "
            "data"
        )
