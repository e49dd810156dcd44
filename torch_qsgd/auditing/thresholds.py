"""Where an assumption counts as broken: our definition, for the paper states no numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from torch_qsgd.checks import require_number


@dataclass(frozen=True)
class Thresholds:
    """Limits that an audit's verdicts are made by; each is ours, and may be changed.

    Attributes:
        negative_mass: the largest share of negative eigenvalues.
        growth: the largest factor by which a window amplifies any mode.
        window_error: the largest relative error of a window against true SGD.
        kink_floor: the largest part of it that no truncation order removes.
        density: the largest share of weights that counts as sparse.
        accuracy_lost: the most accuracy that pruning may cost; where there are no classes, the
            most relative increase of the loss.
        exponent: of κ over T, the largest that counts as almost dissipative (1) or better (0).
        rarity: how many times rarer than one of its T + 1 time steps the displacement may be
            found.
        readout_loss: the largest change of the loss by the readout's error, relative to what the
            window changed.

    Raises:
        ValueError: for one that is no number above 0.

    Example:
        >>> Thresholds(window_error=0.05).growth
        2.0
    """

    negative_mass: float = 0.1
    growth: float = 2.0
    window_error: float = 0.1
    kink_floor: float = 0.05
    density: float = 0.2
    accuracy_lost: float = 0.05
    exponent: float = 1.1
    rarity: float = 10.0
    readout_loss: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            require_number(field.name, getattr(self, field.name), 0)


def polylogarithmic(dimension: int) -> float:
    """(log₂ n)², at least 4: what counts as polylogarithmic in n, our definition.

    Example:
        >>> round(polylogarithmic(2**20))
        400
    """
    return max(math.log2(max(dimension, 2)) ** 2, 4.0)
