"""The batches of an audit: for spectra, for window steps, and held out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from torch_qsgd.auditing.plan import Plan
from torch_qsgd.batches import Batches, samples
from torch_qsgd.training import Batch

#: Batches kept for the steps of a window, at most; longer windows take them again.
_MOST = 128
#: Bytes of batches that may be kept.
_MEMORY = 2e9


@dataclass(frozen=True)
class AuditBatches:
    """Three sets of batches.

    Attributes:
        spectrum: of the mean loss whose Hessian is looked at; pruning sees the first of them.
        steps: one a window step; fewer where there are fewer.
        held_out: to evaluate on.
        notes: where the sets overlap, in words.
    """

    spectrum: list[Batch]
    steps: list[Batch]
    held_out: list[Batch]
    notes: list[str]

    @property
    def size(self) -> float:
        """Samples of a step's batch."""
        return samples(*self.steps[0])


def split_batches(data: Any, validation: Any, plan: Plan, device: torch.device) -> AuditBatches:
    """Read as many batches as the plan needs, and share them out.

    Args:
        data: one batch as a tuple ``(inputs, targets)``, a list of batches or a ``DataLoader``.
        validation: likewise, to hold out; ``None`` takes the last of ``data``.
        plan: with the numbers wanted.
        device: where they are moved to.

    Raises:
        ValueError: for what is no data, or holds no batch.

    Cost: one partial pass over the data; its random states are left as they were.
    """
    steps = min(plan.window, _MOST)
    wanted = plan.spectrum_batches + steps
    found = _first(data, wanted, 0 if validation is not None else plan.held_out_samples, device)
    notes: list[str] = []
    if validation is not None:
        held_out = _first(validation, 0, plan.held_out_samples, device)
    else:
        # Of few batches, a quarter is held out.
        count = max(len(found) - wanted, len(found) // 4)
        count = min(count, math.ceil(plan.held_out_samples / samples(*found[0])))
        held_out, found = found[len(found) - count :], found[: len(found) - count]
    if len(found) > plan.spectrum_batches:
        spectrum, rest = found[: plan.spectrum_batches], found[plan.spectrum_batches :]
    else:
        spectrum = rest = found
        notes.append("The window's steps take the batches of the spectrum: there were no others.")
    if not held_out:
        held_out = rest
        notes.append("Losses are of the batches that steps take: none were left to hold out.")
    if len(rest) < plan.window:
        notes.append(
            f"The {plan.window} steps of a window take {len(rest)} different batches in turn."
        )
    return AuditBatches(spectrum, rest, held_out, notes)


def _first(data: Any, count: int, more: float, device: torch.device) -> list[Batch]:
    """So many batches, and then as many as hold so many samples more, where there are as many."""
    batches = iter(Batches(data, device, _MEMORY))
    found: list[Batch] = []
    try:
        for batch in batches:
            if len(found) >= count:
                if more <= 0:
                    break
                more -= samples(*batch)
            found.append(batch)
    finally:
        batches.close()  # puts back the random states of the data
    return found
