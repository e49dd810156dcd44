"""The check that a step's loss and derivatives are numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torch_qsgd.errors import DivergenceError

_ADVICE = (
    "nothing was advanced, and the weights are those of the last good step or anchor: skip this "
    "batch, lower lr, or shorten the window"
)


def require_finite(
    series: Sequence[Sequence[Tensor | None]],
    loss: Tensor | None,
    names: Callable[[], Sequence[str]],
    step: int,
) -> None:
    """Raise where a loss, a gradient, or one of its Taylor coefficients is NaN or infinite.

    Args:
        series: the gradient, then its coefficients; one tensor a parameter, at least one known, or
            fewer where they are taken along the window's own coordinates.
        loss: a scalar, or ``None`` where it was not seen.
        names: called for the parameters' names, only where something is wrong.
        step: number of the step, for the message.

    Raises:
        DivergenceError: names the step and the parameter.

    Cost: one pass and one transfer to the host.
    """
    norms = [torch.nn.utils.get_total_norm([g for g in row if g is not None]) for row in series]
    values = torch.stack([n.double().to(norms[0].device) for n in norms]).tolist()
    if loss is not None and not math.isfinite(loss):
        raise DivergenceError(f"step {step}: the loss is {float(loss)}; {_ADVICE}")
    if all(map(math.isfinite, values)):
        return
    for k, row in enumerate(series):
        what = "the gradient" if k == 0 else f"Taylor coefficient {k} of the gradient"
        # A row of another length belongs to coordinates of the window's own.
        known = names() if len(row) == len(series[0]) else ["the window's coordinates"] * len(row)
        for name, g in zip(known, row, strict=True):
            if g is not None and not torch.isfinite(g).all():
                raise DivergenceError(
                    f"step {step}: {what} with respect to {name} is NaN or infinite; {_ADVICE}"
                )
