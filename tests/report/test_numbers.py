"""Numbers as reports write them, read back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_qsgd.report.findings import Finding
from torch_qsgd.report.numbers import (
    THIN,
    number,
    ranged,
    share,
    shown,
    threshold,
    whole,
    with_unit,
)

LOWERED = {raised: digit for digit, raised in zip("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹", strict=True)}


def read(text: str) -> float:
    """The number that a text shows."""
    text = text.replace(THIN, "").replace("−", "-").replace("∞", "inf")
    mantissa, _, power = text.partition("×10")
    exponent = "".join(LOWERED[c] for c in power)
    return float(f"{mantissa}e{exponent}") if power else float(mantissa)


@given(st.floats(allow_nan=False), st.integers(1, 6))
def test_what_is_shown_is_the_number_to_as_many_digits(value: float, digits: int):
    text = number(value, digits)
    if math.isinf(value) or abs(value) > 1e308:  # which may round to beyond all floats
        return
    assert read(text) == pytest.approx(value, rel=0.5001 * 10 ** (1 - digits), abs=0)
    assert len(text) <= max(digits + 10, 13)


@given(st.integers(-(10**7) + 1, 10**7 - 1))
def test_whole_numbers_below_ten_million_keep_all_digits(value: int):
    assert read(number(value)) == read(number(float(value))) == value
    assert number(value) == whole(value)


@given(st.integers(-(10**15), 10**15))
def test_whole_shows_every_digit_in_groups_of_three(value: int):
    groups = whole(value).lstrip("−").split(THIN)
    assert int("".join(groups)) == abs(value)
    assert 1 <= len(groups[0]) <= 3
    assert all(len(group) == 3 for group in groups[1:])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.234e7, "1.23×10⁷"),
        (1e-9, "1×10⁻⁹"),
        (0.001, "0.001"),
        (0.00099951, "0.001"),
        (9999.6, "1×10⁴"),
        (1234.5, f"1{THIN}234"),
        (0.5, "0.5"),
        (99.96, "100"),
        (-0.25, "−0.25"),
        (-0.0, "0"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "–"),
        (None, "–"),
    ],
)
def test_edges(value: float | None, text: str):
    assert number(value) == text


def test_what_is_not_known_has_no_unit_and_no_sign():
    assert with_unit(math.nan, "steps") == share(math.nan) == share(None) == "–"
    assert with_unit(math.inf, "steps") == "∞ steps"
    unknown = Finding("sparse model", "rows", math.nan, "x", "≤", math.nan, "cannot tell", "")
    assert ranged(unknown) == threshold(unknown) == "–"


def test_a_range_may_have_one_end():
    found = Finding("sparse model", "rows", 3.0, "x", "≥", 2.0, "holds", "", low=2.5)
    assert ranged(found) == "3 x (2.5 to 3)"
    assert threshold(found) == "≥ 2 x"


def test_facts_of_any_kind_are_shown():
    assert shown({"a": 1, "b": [True, None]}) == "a 1, b yes, –"
    assert shown(11173962) == whole(11173962)
    assert shown(11173962.5) == "1.12×10⁷"
