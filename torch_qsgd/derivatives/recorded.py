"""Derivatives of one step's loss, kept until the step is taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_qsgd.errors import GraphError

Tensors = list[Tensor]
Gradients = Sequence[Tensor | None]

#: Entries of each gradient that are kept, evenly spaced, to tell a factor from other changes.
_SAMPLES = 64


def require_dense(gradients: Gradients) -> None:
    """Raise ``TypeError`` for a sparse gradient."""
    if any(g is not None and g.is_sparse for g in gradients):
        raise TypeError("QuantumSGD takes no sparse gradients: use Embedding(sparse=False)")


def _fingerprint(gradients: Gradients) -> Tensor:
    """Norms and some entries of the gradients: proportional to them, and little to keep."""
    known = [g.detach() for g in gradients if g is not None]
    if not known:
        return torch.zeros(0, dtype=torch.float64)
    samples = [g.flatten()[:: 1 + g.numel() // _SAMPLES] for g in known]
    parts = [*torch._foreach_norm(known), *samples]
    return torch.cat([part.double().flatten().to(known[0].device) for part in parts])


class Recorded:
    r"""The coefficients :math:`G_1 … G_N` that go with the gradients now in ``.grad``.

    Between ``backward`` and the step, training loops change gradients: they are clipped by their
    norm, unscaled, accumulated, or cleared. A common factor is followed, and frozen at its value
    at the anchor; another change is refused, for the coefficients would no longer be those of
    the gradient. Changes are told by the norm and some entries of each gradient.

    Args:
        gradients: as the backward pass left them.
        losses: what ``backward`` was called on, summed and detached.

    Attributes:
        coefficients: one list a k, one tensor a parameter; ``None`` where all are zero.
        factor: by which the gradients have been scaled since.
    """

    def __init__(self, gradients: Gradients, losses: Sequence[Tensor] = ()) -> None:
        self.gradients = list(gradients)
        self.losses = list(losses)
        self.coefficients: list[Tensors] | None = None
        self.factor = 1.0
        self._before = _fingerprint(gradients)

    @property
    def loss(self) -> Tensor | None:
        """The sum of the losses, or ``None`` where none was seen."""
        return torch.stack(self.losses).sum() if self.losses else None

    def belongs_to(self, gradients: Gradients) -> bool:
        """Whether these are the gradients recorded, whatever has been done to their values."""
        return len(gradients) == len(self.gradients) and all(
            a is b for a, b in zip(gradients, self.gradients, strict=True)
        )

    def follow_scaling(self) -> None:
        """Scale the coefficients by the factor the gradients have been scaled by since.

        Raises:
            GraphError: where the gradients were changed in any other way.

        Cost: one pass over the gradients, and N over the coefficients where a factor is found.
        """
        before, after = self._before, _fingerprint(self.gradients)
        self._before = after
        if torch.equal(before, after) or not (before.isfinite().all() and after.isfinite().all()):
            return  # what is not finite is refused by the step, in its own words
        square = float(before.dot(before))
        factor = float(before.dot(after)) / square if square else 1.0
        kinds = [torch.finfo(g.dtype) for g in self.gradients if g is not None]
        precision, smallest = max(k.eps for k in kinds) ** 0.5, max(k.tiny for k in kinds)
        allowed = precision * (factor * before).abs() + smallest
        if bool(((after - factor * before).abs() > allowed).any()):
            raise GraphError(
                "gradients were changed after their backward pass, other than by a common factor, "
                "so the recorded derivatives no longer belong to them: clip by norm rather than "
                "by value, or put the change into the loss"
            )
        self.factor *= factor
        if self.coefficients is not None:
            self.coefficients = [list(torch._foreach_mul(row, factor)) for row in self.coefficients]

    def add(self, earlier: Recorded) -> None:
        """Add an earlier record of the same accumulating gradients."""
        self.losses = earlier.losses + self.losses
        if earlier.coefficients is None or self.coefficients is None:
            self.coefficients = self.coefficients or earlier.coefficients
            return
        self.coefficients = [
            list(torch._foreach_add(row, addend))
            for row, addend in zip(self.coefficients, earlier.coefficients, strict=True)
        ]


class Watch:
    """Follows the gradients of ``parameters`` through the backward passes of one block.

    Args:
        parameters: whose ``.grad`` is followed.
        earlier: record of the passes before this block, not yet stepped.
        needs_graph: whether gradients from elsewhere would lack their derivatives.
    """

    def __init__(
        self, parameters: Sequence[Tensor], earlier: Recorded | None, needs_graph: bool
    ) -> None:
        self._parameters = parameters
        self._needs_graph = needs_graph
        self._candidate = earlier
        self._losses: list[Tensor] = []
        #: The record to add to this block's, once a backward pass has accumulated onto it.
        self.earlier: Recorded | None = None
        #: As the last backward pass left the gradients; ``None`` before one.
        self.latest: Recorded | None = None

    def before_backward(self, loss: Tensor) -> None:
        """What is in ``.grad`` already must be known, for the pass adds to it."""
        gradients = [p.grad for p in self._parameters]
        if self.latest is not None:
            if self.latest.belongs_to(gradients):
                self.latest.follow_scaling()
                if self._needs_graph and self.latest.factor != 1.0:
                    raise GraphError(
                        "gradients were scaled between two backward passes of one recording: "
                        "scale or clip after the last one"
                    )
        elif any(g is not None and bool(g.any()) for g in gradients):
            if self._candidate is not None and self._candidate.belongs_to(gradients):
                self._candidate.follow_scaling()
                self.earlier = self._candidate
            elif self._needs_graph:
                raise GraphError(
                    "`.grad` holds gradients that were not recorded, and this pass would add to "
                    "them: call `opt.zero_grad()` first, or record every pass"
                )
        self._losses.append(loss.detach().sum())

    def after_backward(self) -> None:
        """Remember the gradients as they are now."""
        gradients = [p.grad for p in self._parameters]
        require_dense(gradients)
        self.latest = Recorded(gradients, self._losses)
