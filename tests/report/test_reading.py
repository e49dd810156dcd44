"""Data classes read from plain data: what is taken, and what is refused by its place."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_qsgd.reading import read_as


@dataclass(frozen=True)
class Inner:
    size: float
    sizes: tuple[float, ...] = ()


@dataclass
class Outer:
    name: str
    count: int
    flag: bool
    kind: Literal["a", "b"]
    inner: Inner | None
    many: list[Inner] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    none: float | None = None


FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**9), 10**9)
INNERS = st.builds(Inner, FLOATS, st.lists(FLOATS, max_size=2).map(tuple))
OUTERS = st.builds(
    Outer,
    st.text(),
    st.integers(),
    st.booleans(),
    st.sampled_from(["a", "b"]),
    st.none() | INNERS,
    st.lists(INNERS, max_size=2),
    st.dictionaries(st.text(), st.none() | st.booleans() | FLOATS, max_size=2),
    st.none() | FLOATS,
)


@given(OUTERS)
def test_what_json_holds_of_a_data_class_is_read_as_it_was(outer: Outer):
    plain = json.loads(json.dumps(asdict(outer)))
    assert read_as(Outer, plain, "outer") == outer
    assert repr(read_as(Outer, plain, "outer")) == repr(outer)


def test_words_are_numbers_only_where_numbers_are():
    plain = {
        "name": "NaN", "count": 1, "flag": True, "kind": "a",
        "inner": {"size": "-Infinity", "sizes": ["NaN", "Infinity"]}, "facts": {"x": ["Infinity"]},
    }  # fmt: skip
    found = read_as(Outer, plain, "outer")
    assert found.name == "NaN"
    assert found.inner.size == -math.inf
    assert math.isnan(found.inner.sizes[0])
    assert found.inner.sizes[1] == math.inf
    assert found.facts == {"x": [math.inf]}


def test_null_is_nan_where_it_may_be_and_a_float_must_be():
    plain: dict[str, Any] = {"size": None, "sizes": [None, 1.0]}
    assert repr(read_as(Inner, plain, "inner", null=True)) == "Inner(size=nan, sizes=(nan, 1.0))"
    with pytest.raises(TypeError, match=r"^inner\.size must be a number, got None$"):
        read_as(Inner, plain, "inner")
    assert read_as(float | None, None, "x", null=True) is None
    with pytest.raises(TypeError, match="x must be a number, got None"):
        read_as(int, None, "x", null=True)


WHOLE: dict[str, Any] = {
    "name": "n", "count": 1, "flag": False, "kind": "b", "inner": None, "many": [{"size": 1}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"name": 3}, r"outer\.name must be a str, got 3"),
        ({"count": "3"}, r"outer\.count must be a number, got '3'"),
        ({"count": True}, r"outer\.count must be a number, got True"),
        ({"count": 0.5}, r"outer\.count must be a whole number, got 0\.5"),
        ({"count": "NaN"}, r"outer\.count must be a whole number, got 'NaN'"),
        ({"flag": 1}, r"outer\.flag must be a bool, got 1"),
        ({"kind": None}, r"outer\.kind must be a str, got None"),
        ({"inner": []}, r"outer\.inner must be an object, got \[\]"),
        ({"inner": {}}, r"outer\.inner lacks 'size'"),
        ({"inner": {"size": 1, "width": 2}}, r"outer\.inner has an unknown part 'width'"),
        ({"inner": {"size": 1, "sizes": 2}}, r"outer\.inner\.sizes must be a list, got 2"),
        ({"many": {}}, r"outer\.many must be a list, got \{\}"),
        ({"many": [{"size": 1}, 3]}, r"outer\.many\[1\] must be an object, got 3"),
        ({"facts": 3}, r"outer\.facts must be an object, got 3"),
    ],
)
def test_what_is_wrong_is_refused_by_its_place(part: dict[str, Any], message: str):
    assert read_as(Outer, WHOLE, "outer").many == [Inner(1)]
    with pytest.raises(TypeError, match=f"^{message}$"):
        read_as(Outer, {**WHOLE, **part}, "outer")


def test_a_whole_float_is_an_integer_too():
    assert read_as(int, 3.0, "x") == 3
    assert read_as(float, 3, "x") == 3
