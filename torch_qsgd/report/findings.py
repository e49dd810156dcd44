"""Findings: an assumption's measure beside its threshold, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "breaks", "cannot tell"]
Relation = Literal["≤", "≥"]

VERDICTS: tuple[Verdict, ...] = ("holds", "breaks", "cannot tell")

#: What the paper assumes, in the order in which reports show it.
ASSUMPTIONS = (
    "dissipative dynamics",
    "small learning rate",
    "sparse parameters",
    "sparse model",
    "well-conditioned system",
    "efficient upload",
    "efficient download",
    "explicit gradients",
)


@dataclass(frozen=True)
class Finding:
    """One measured quantity, and whether the assumption it stands for holds.

    Attributes:
        assumption: one of :data:`ASSUMPTIONS`.
        quantity: what was measured, in a few words.
        value: measured; infinite where it has no end, NaN where it could not be measured.
        unit: of value and threshold; empty for pure numbers.
        relation, threshold: the assumption holds where value ≤ (or ≥) threshold, which is NaN
            where there is none. Thresholds are our definition
            (:class:`torch_qsgd.auditing.Thresholds`), for the paper states none.
        verdict: ``"holds"``, ``"breaks"`` or ``"cannot tell"``.
        sentence: what that means, in one plain sentence.
        low, high: the range in which the quantity lies, where its value is an estimate.
    """

    assumption: str
    quantity: str
    value: float
    unit: str
    relation: Relation
    threshold: float
    verdict: Verdict
    sentence: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.assumption not in ASSUMPTIONS:
            raise ValueError(
                f"assumption must be one of {', '.join(ASSUMPTIONS)}, got {self.assumption!r}"
            )
        if self.verdict not in VERDICTS or self.relation not in ("≤", "≥"):
            raise ValueError(
                f"verdict must be one of {', '.join(VERDICTS)} and relation ≤ or ≥, got "
                f"{self.verdict!r} and {self.relation!r}"
            )


def judged(
    value: float,
    relation: Relation,
    threshold: float,
    low: float | None = None,
    high: float | None = None,
) -> Verdict:
    """The verdict of a value, or of the whole range in which it lies.

    Args:
        value: NaN where it is not known.
        relation, threshold: as of :class:`Finding`.
        low, high: the range; the value itself by default.

    Returns:
        ``"cannot tell"`` where the value or the threshold is NaN, or the latter parts the range.

    Example:
        >>> judged(0.2, "≤", 0.5), judged(0.2, "≥", 0.5), judged(0.2, "≤", 0.5, 0.1, 0.7)
        ('holds', 'breaks', 'cannot tell')
    """
    ends = (value if low is None else low, value if high is None else high)
    if any(math.isnan(x) for x in (value, threshold, *ends)):
        return "cannot tell"
    met = [end <= threshold if relation == "≤" else end >= threshold for end in ends]
    if met[0] != met[1]:
        return "cannot tell"
    return "holds" if met[0] else "breaks"


def combined(verdicts: Sequence[Verdict]) -> Verdict:
    """Of an assumption with several measures: one that breaks decides, then one that cannot tell.

    Example:
        >>> combined(["holds", "cannot tell"])
        'cannot tell'
    """
    for verdict in ("breaks", "cannot tell"):
        if verdict in verdicts:
            return verdict
    return "holds" if verdicts else "cannot tell"
