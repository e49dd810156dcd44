"""A report's data: files, verdicts, and what is said of damaged ones."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.small import findings, report
from torch_qsgd.report.content import Report
from torch_qsgd.report.findings import ASSUMPTIONS, VERDICTS, Finding, combined, judged


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and string in data classes, lists and mappings, with its place."""
    if is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, f"{path}.{name}")
    elif isinstance(value, (list, tuple, np.ndarray)):
        yield f"{path}.length", len(value)
        for i, part in enumerate(value):
            yield from leaves(part, f"{path}[{i}]")
    else:
        yield path, "NaN!" if isinstance(value, float) and math.isnan(value) else value


# ---- Files ---------------------------------------------------------------------------------------


def test_a_report_comes_back_from_strict_json_with_every_number_and_type():
    original = report()
    text = json.dumps(original.to_json(), allow_nan=False)
    again = Report.from_json(json.loads(text))
    before, after = list(leaves(original)), list(leaves(again))
    assert before == after
    assert [type(v) for _, v in before] == [type(v) for _, v in after]
    assert json.dumps(again.to_json(), allow_nan=False) == text
    places = dict(before)
    assert places[".facts.least"] == -math.inf
    assert places[".settings.tolerance"] == math.inf
    assert places[".findings[3].value"] == "NaN!"
    assert len(before) > 250


def test_an_empty_report_comes_back_too():
    original = Report("", "training run")
    again = Report.from_json(json.loads(json.dumps(original.to_json(), allow_nan=False)))
    assert again == original
    assert again.verdicts == {}


def test_a_report_comes_back_from_its_file(tmp_path: Path):
    report().save(tmp_path / "a.json")
    assert list(leaves(Report.load(tmp_path / "a.json"))) == list(leaves(report()))


def test_markdown_is_written_beside_the_json(tmp_path: Path):
    paths = report().write(tmp_path / "new" / "folder", "audit")
    assert [path.name for path in paths] == ["audit.json", "audit.md", "audit.html"]
    assert paths[1].read_text(encoding="utf-8") == report().to_markdown()
    assert "<html" in paths[2].read_text(encoding="utf-8")
    assert list(leaves(Report.load(paths[0]))) == list(leaves(report()))


# ---- Damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [None, 3, [], {}, {"format": "torch_qsgd.Spectrum"}], ids=str)
def test_what_is_no_report_is_refused_with_what_writes_one(plain: Any):
    with pytest.raises(ValueError, match=r"no report: Report\.to_json and Report\.save write one"):
        Report.from_json(plain)


def test_a_newer_version_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"version 2 of the format.*reads version 1: use"):
        Report.from_json({**report().to_json(), "version": 2})


@pytest.mark.parametrize(
    "name", sorted(set(report().to_json()) - {"format", "version", "verdicts"})
)
def test_a_part_that_is_missing_is_named(name: str):
    plain = report().to_json()
    del plain[name]
    with pytest.raises(ValueError, match=f"incomplete or damaged: it lacks '{name}'"):
        Report.from_json(plain)


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """The place of every part of plain data."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        yield (key,)
        if isinstance(part, (dict, list)):
            yield from ((key, *inner) for inner in places(part))


@pytest.mark.parametrize("wrong", [None, 3, "x", [1], {"a": 1}, True], ids=str)
def test_damage_at_any_place_is_refused_by_value_error_alone(wrong: Any):
    original = report().to_json()
    refused = 0
    for place in places(original):
        plain = copy.deepcopy(original)
        inner = plain
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = wrong
        try:
            Report.from_json(plain).to_markdown()
        except ValueError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("text", ["", "not JSON", "[1, 2", '{"format": "torch_qsgd.Report"'])
def test_a_file_that_is_no_json_is_named(tmp_path: Path, text: str):
    path = tmp_path / "damaged.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"damaged\.json: "):
        Report.load(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(OSError, match=r"nowhere\.json"):
        Report.load(tmp_path / "nowhere.json")


# ---- Verdicts ------------------------------------------------------------------------------------


def test_verdicts_stand_in_the_papers_order_and_one_that_breaks_decides():
    found = Report("", "audit", findings=findings())
    assert list(found.verdicts.items()) == [
        ("dissipative dynamics", "breaks"),
        ("sparse parameters", "holds"),
        ("efficient upload", "cannot tell"),
    ]
    assert list(found.verdicts) == [a for a in ASSUMPTIONS if a in found.verdicts]
    assert [f.quantity for f in found.of("dissipative dynamics")] == ["growth", "best window"]


def test_combined_is_the_worst_whatever_the_order():
    rank = {"breaks": 0, "cannot tell": 1, "holds": 2}
    for length in (1, 2, 3):
        for verdicts in product(VERDICTS, repeat=length):
            assert combined(verdicts) == min(verdicts, key=rank.__getitem__)
    assert combined([]) == "cannot tell"


@pytest.mark.parametrize("relation", ["≤", "≥"])
def test_a_range_is_judged_as_all_values_in_it_are(relation: Any):
    for low, high in ((0.1, 0.3), (0.3, 0.7), (0.7, 0.9), (0.5, 0.5), (0.1, 0.5), (0.5, 0.9)):
        values = np.linspace(low, high, 101)
        met = values <= 0.5 if relation == "≤" else values >= 0.5
        wanted = "holds" if met.all() else "breaks" if not met.any() else "cannot tell"
        assert judged(low, relation, 0.5, low, high) == wanted


def test_what_is_not_known_cannot_tell():
    nan = math.nan
    assert {judged(nan, "≤", 1.0), judged(1.0, "≤", nan), judged(0.0, "≤", 1.0, nan, 0.5)} == {
        "cannot tell"
    }
    assert judged(math.inf, "≤", 1.0) == "breaks"
    assert judged(math.inf, "≥", 1.0) == "holds"


@pytest.mark.parametrize(
    "wrong", [{"assumption": "luck"}, {"verdict": "perhaps"}, {"relation": "<"}], ids=str
)
def test_a_finding_of_unknown_words_is_refused_with_the_known_ones(wrong: dict[str, str]):
    given: dict[str, Any] = {
        "assumption": "sparse model",
        "quantity": "rows",
        "value": 1.0,
        "unit": "",
        "relation": "≤",
        "threshold": 1.0,
        "verdict": "holds",
        "sentence": "",
    }
    with pytest.raises(ValueError, match=r"must be one of .*, got "):
        Finding(**{**given, **wrong})
