"""One finding, from a value and its threshold."""

from __future__ import annotations

import math

from torch_qsgd.report.findings import Finding, Relation, judged

#: Said where a measurement is missing.
_MISSING = "It was not measured."


def finding(
    assumption: str,
    quantity: str,
    value: float,
    unit: str,
    relation: Relation,
    threshold: float,
    sentence: str,
    low: float | None = None,
    high: float | None = None,
) -> Finding:
    """A finding with the verdict of its value, or of the range in which it lies.

    Args:
        assumption, quantity, value, unit, relation, threshold, low, high: as of
            :class:`.Finding`.
        sentence: may be empty where the value is NaN, which is then said.
    """
    verdict = judged(value, relation, threshold, low, high)
    said = _MISSING if math.isnan(value) and not sentence else sentence
    return Finding(assumption, quantity, value, unit, relation, threshold, verdict, said, low, high)
