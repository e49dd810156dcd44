"""Numbers as reports write them: one way for the page and for the tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch_qsgd.report.findings import Finding

#: Between groups of three digits: a narrow space at which no line breaks.
THIN = "\u202f"
MINUS = "−"
MISSING = "–"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LARGEST_WHOLE = 10**7  # whole numbers below it are written in full


def number(value: float | None, digits: int = 3) -> str:
    """A number, rounded to so many digits.

    Args:
        value: NaN and ``None`` stand for what is not known.
        digits: significant ones. Whole numbers below ten million are written in full, as is the
            whole part of others below 10⁴.

    Returns:
        Decimals from 10⁻³ to 10⁴, powers of ten beyond; ``∞`` and ``–`` where there is no number.

    Example:
        >>> number(1.234e7), number(0.01234), number(-2.0), number(float("inf")), number(None)
        ('1.23×10⁷', '0.0123', '−2', '∞', '–')
    """
    if value is None or math.isnan(value):
        return MISSING
    sign, size = (MINUS if value < 0 else ""), abs(value)
    if math.isinf(size):
        return sign + "∞"
    if size < _LARGEST_WHOLE and size == int(size):
        return whole(int(value))
    mantissa, _, power = f"{size:.{digits - 1}e}".partition("e")
    exponent = int(power)
    if -3 <= exponent < 4:
        return sign + _grouped(_bare(f"{size:.{max(0, digits - 1 - exponent)}f}"))
    return f"{sign}{_bare(mantissa)}×10{str(exponent).translate(_RAISED)}"


def amount(value: float | None) -> str:
    """A number of a comparison: from a thousand to ten million rounded to a whole one.

    So that a count and a threshold beside it, which need not be whole, look alike.

    Example:
        >>> amount(14300.7).split(THIN), amount(0.12345), amount(2.5e9)
        (['14', '301'], '0.123', '2.5×10⁹')
    """
    if value is not None and 1000 <= abs(value) < _LARGEST_WHOLE:
        return whole(round(value))
    return number(value)


def whole(value: int) -> str:
    """An integer with all its digits, in groups of three.

    Example:
        >>> whole(11173962).split(THIN)
        ['11', '173', '962']
    """
    return (MINUS if value < 0 else "") + _grouped(str(abs(value)))


def share(value: float | None, digits: int = 3) -> str:
    """A share of one as a percentage.

    Example:
        >>> share(0.1), share(0.12345), share(float("nan"))
        ('10 %', '12.3 %', '–')
    """
    if value is None or math.isnan(value):
        return MISSING
    return f"{number(100 * value, digits)} %"


def with_unit(value: float | None, unit: str) -> str:
    """A number and its unit, but no unit where there is no number.

    Example:
        >>> with_unit(12.0, "steps"), with_unit(1.0, "steps"), with_unit(float("nan"), "steps")
        ('12 steps', '1 step', '–')
    """
    text = amount(value)
    return f"{text} {unit_of(value, unit)}" if unit and text != MISSING else text


def unit_of(value: float | None, unit: str) -> str:
    """A unit, in the singular where there is one of it.

    Example:
        >>> unit_of(1, "copies"), unit_of(1, "T gates"), unit_of(1, "s"), unit_of(2, "copies")
        ('copy', 'T gate', 's', 'copies')
    """
    if value is None or value != 1 or len(unit) < 3 or not unit.endswith("s"):
        return unit
    if unit.endswith("ss"):
        return unit
    return f"{unit[:-3]}y" if unit.endswith("ies") else unit[:-1]


def ranged(finding: Finding) -> str:
    """A finding's value with its unit, and the range in which it lies where there is one.

    Example:
        >>> ranged(Finding("sparse parameters", "density", 0.1, "of all", "≤", 0.2, "holds",
        ...                "Few weights stay.", 0.05, 0.15))
        '0.1 of all (0.05 to 0.15)'
    """
    text, between = with_unit(finding.value, finding.unit), span(finding)
    return f"{text} ({between})" if between else text


def limits(finding: Finding) -> tuple[float, float]:
    """The ends of the range in which a finding's value lies; itself where one is not known."""
    return (
        finding.value if finding.low is None else finding.low,
        finding.value if finding.high is None else finding.high,
    )


def span(finding: Finding) -> str:
    """That range, or nothing where both ends are written as the value is.

    Example:
        >>> span(Finding("sparse parameters", "density", 0.1, "", "≤", 0.2, "holds", "", 0.1, 0.3))
        '0.1 to 0.3'
    """
    low, high = map(amount, limits(finding))
    return "" if low == high == amount(finding.value) else f"{low} to {high}"


def threshold(finding: Finding) -> str:
    """What a finding's value is held against.

    Example:
        >>> threshold(Finding("sparse parameters", "density", 0.1, "", "≤", 0.2, "holds", ""))
        '≤ 0.2'
    """
    text = with_unit(finding.threshold, finding.unit)
    return text if text == MISSING else f"{finding.relation} {text}"


def shown(value: Any) -> str:
    """Whatever a fact or a setting is, as text.

    Example:
        >>> shown(True), shown(0.5), shown([1, 2]), shown(None), shown("digits")
        ('yes', '0.5', '1, 2', '–', 'digits')
    """
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return whole(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(part) for part in value)
    return str(value)


def _bare(text: str) -> str:
    """A decimal without the zeros at its end."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def _grouped(text: str) -> str:
    """Digits before the point in groups of three."""
    before, point, after = text.partition(".")
    return f"{int(before):,}".replace(",", THIN) + point + after
