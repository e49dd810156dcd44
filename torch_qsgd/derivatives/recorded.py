"""Derivatives of one step's loss, kept until the step is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_qsgd.errors import GraphError

Tensors = list[Tensor]


#: Entries of each gradient that are kept, evenly spaced, to tell a factor from other changes.
_SAMPLES = 64


def _fingerprint(gradients: Sequence[Tensor | None]) -> Tensor:
    """Norms and some entries of the gradients: proportional to them, and little to keep."""
    known = [g.detach() for g in gradients if g is not None]
    if not known:
        return torch.zeros(0, dtype=torch.float64)
    samples = [g.flatten()[:: 1 + g.numel() // _SAMPLES] for g in known]
    parts = [*torch._foreach_norm(known), *samples]
    return torch.cat([part.double().flatten().to(known[0].device) for part in parts])


@dataclass
class Recorded:
    r"""The coefficients :math:`G_1 … G_N` that go with the gradients now in ``.grad``.

    Between ``backward`` and the step, training loops change gradients: they are clipped by their
    norm, unscaled, accumulated, or cleared. A common factor is followed, and frozen at its value
    at the anchor; any other change is refused, for the coefficients would no longer be those of
    the gradient.

    Attributes:
        coefficients: one list a k, one tensor a parameter; ``None`` where all are zero.
        losses: what ``backward`` was called on, detached.
    """

    gradients: Sequence[Tensor | None]
    coefficients: list[Tensors] | None
    losses: list[Tensor]
    _versions: list[int] = field(init=False)
    _before: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._versions = [-1 if g is None else g._version for g in self.gradients]
        self._before = _fingerprint(self.gradients)

    def belongs_to(self, gradients: Sequence[Tensor | None]) -> bool:
        """Whether these are the gradients recorded, whatever has been done to their values."""
        return len(gradients) == len(self.gradients) and all(
            a is b for a, b in zip(gradients, self.gradients, strict=True)
        )

    def follow_scaling(self) -> None:
        """Scale the coefficients by the factor the gradients have been scaled by since.

        Raises:
            GraphError: where the gradients were changed in any other way.

        Cost: none where nothing changed, else one pass over the parameters.
        """
        versions = [-1 if g is None else g._version for g in self.gradients]
        if versions == self._versions:
            return
        before, after = self._before, _fingerprint(self.gradients)
        square = float(before.dot(before))
        factor = float(before.dot(after)) / square if square else 1.0
        precision = max(torch.finfo(g.dtype).eps for g in self.gradients if g is not None) ** 0.5
        changed = (after - factor * before).abs() > precision * (factor * before).abs()
        if bool(changed.any()):
            raise GraphError(
                "gradients were changed between the backward pass and the step, other than by a "
                "common factor, so the recorded derivatives no longer belong to them: clip by "
                "norm rather than by value, or put the change into the loss."
            )
        if self.coefficients is not None:
            for row in self.coefficients:
                torch._foreach_mul_(row, factor)
        self._versions, self._before = versions, after

    def add(self, earlier: Recorded) -> None:
        """Add an earlier record of the same accumulating gradients."""
        self.losses = earlier.losses + self.losses
        if earlier.coefficients is None:
            return
        if self.coefficients is None:
            self.coefficients = earlier.coefficients
            return
        for row, addend in zip(self.coefficients, earlier.coefficients, strict=True):
            torch._foreach_add_(row, addend)
