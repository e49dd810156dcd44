"""The ledger against the table of queries, the orders of magnitude, and its own factors."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_qsgd.reading import read_as
from torch_qsgd.resources import SOLVERS, Entry, Ledger, WindowSize, ledger
from torch_qsgd.resources.loading import erasure, qroam
from torch_qsgd.resources.queries import ROWS
from torch_qsgd.resources.sentence import factor_name, short

GROUPS = (
    "qubits",
    "queries",
    "block encoding",
    "repetitions",
    "readout",
    "T gates",
    "physical",
    "classical",
    "ratio",
)
TAGS = {"proven", "numerical", "assumes known norm", "our estimate", "measured"}

#: 103 million parameters at 10 %, order 3, 100 steps.
PAPER: dict[str, Any] = {
    "parameters": 103_000_000,
    "active": 10_300_000,
    "steps": 100,
    "order": 3,
}


def size(**given: Any) -> WindowSize:
    return WindowSize(**{"parameters": 1000, "active": 100, "steps": 10, **given})


# ---- Queries -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "column"),
    [
        ("queries_jennings", "2.4e3 1.1e4 2.3e4 2.7e5"),
        ("queries_shortcut", "670 3.3e3 6.6e3 6.4e4"),
        ("queries_shortcut_known_norm", "80 397 795 8.0e3"),
        ("queries_adiabatic", "94 472 944 9.4e3"),
        ("queries_qsvt_absolute", "93 541 1153 13817"),
        ("queries_qsvt_relative", "75 379 761 7601"),
        ("queries_cks", "239 1417 3033 36973"),
    ],
)
def test_the_table_of_queries(key: str, column: str) -> None:
    for kappa, entry in zip((10, 50, 100, 1000), column.split(), strict=True):
        digits, _, exponent = entry.partition("e")
        last = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
        window = size(kappa=kappa)
        (row,) = (row for row in ROWS if row.key == key)
        # Half of the last digit, and a little: 79.476 has become 80 by way of 79.5.
        assert abs(row.queries(window) - float(entry)) < 0.53 * last
        # Queries are whole numbers.
        assert ledger(window)[key] == math.ceil(row.queries(window))


def test_the_rows_beside_the_table() -> None:
    found = ledger(size(kappa=100))
    assert found["queries_adiabatic_proven"] == math.ceil(2305 * 100 + 100 * math.log(2000))
    assert found["queries_hhl_sine"] == 2 * (2**12 - 1)
    assert found["queries_hhl_uniform"] == 2 * (2**16 - 1)
    assert found["clock_qubits"] == 12


def test_every_solver_has_a_row_with_source_and_tag() -> None:
    rows = [entry for entry in ledger(size()).entries if entry.group == "queries"]
    assert len(rows) == len(SOLVERS) == 10
    assert all(row.source and row.formula and row.tag in TAGS for row in rows)
    assert {row.tag for row in rows} == {"proven", "numerical", "assumes known norm"}


# ---- Orders of magnitude -----------------------------------------------------------------------


def test_the_paper_s_run() -> None:
    found = ledger(WindowSize(**PAPER))
    assert found["data_qubits"] == 81
    assert found["kappa_be"] == 202
    assert found["queries_shortcut_known_norm"] == pytest.approx(1.6e3, rel=0.01)
    assert found["queries_shortcut"] == pytest.approx(1.3e4, rel=0.02)
    assert found["copies"] == pytest.approx(7e8, rel=0.04)
    assert found.dominant == "copies"
    assert found.sentence.startswith("Readout dominates, with 7.2e8 copies: ")


def test_what_makes_the_total_larger_than_the_rough_one() -> None:
    # About 2e9 T gates a copy and 1e18 in all are one lookup a query, and one run a copy.
    found = ledger(WindowSize(**PAPER))
    lookup = qroam(10_300_000, 16).t_gates + erasure(10_300_000)
    assert found["lookup_qroam"] == lookup
    rough = found["queries_shortcut"] * lookup
    assert rough == pytest.approx(2e9, rel=0.2)
    assert found["copies"] * rough == pytest.approx(1e18, rel=0.3)
    # Beside that: block 3 takes the map three times, each prepares the gradient as well, which is
    # 3.1 lookups; P(final) · P(u | final) = 1/603 takes 39 runs; and a copy takes the queries of
    # a known ‖x‖, an eighth.
    assert found["query_qroam"] / lookup == pytest.approx(3 * (1 + 3.1), rel=0.01)
    assert found["runs"] == pytest.approx(39, rel=0.01)
    assert found["total_qroam"] / (found["copies"] * rough) == pytest.approx(
        39 * 12.3 * found["queries_shortcut_known_norm"] / found["queries_shortcut"], rel=0.02
    )
    # With certain outcomes and one step's map only, the rough number is within a factor of 6.
    plain = ledger(
        WindowSize(**{**PAPER, "order": 1}, final_probability=1, level_one_probability=1),
        "shortcut",
    )
    assert 1e18 < plain["total_qroam"] < 6e18


# ---- Lines and factors ---------------------------------------------------------------------------

windows = st.builds(
    lambda active, spare, **rest: WindowSize(parameters=active + spare, active=active, **rest),
    active=st.integers(1, 10**12),
    spare=st.integers(0, 10**12),
    steps=st.integers(1, 10**6),
    order=st.integers(1, 6),
    idle=st.integers(0, 100),
    kappa=st.none() | st.floats(1.01, 1e12),
    row_nonzeros=st.none() | st.just(1.0),
    level_one_probability=st.floats(1e-12, 1.0),
    solver_error=st.floats(1e-9, 0.5),
    readout_error=st.floats(1e-6, 0.9),
    batch_size=st.none() | st.integers(1, 1000),
)


@given(windows, st.sampled_from(SOLVERS))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_totals_are_the_products_of_their_factors(window: WindowSize, solver: str) -> None:
    found = ledger(window, solver)
    queries = found[f"queries_{solver.replace('-', '_')}"]
    for table in ("qroam", "qram"):
        copy = found["runs"] * queries * found[f"query_{table}"]
        once = found["queries_shortcut"] * found[f"query_{table}"]
        once *= solver == "shortcut-known-norm"
        assert found[f"copy_{table}"] == pytest.approx(copy)
        assert found[f"total_{table}"] == pytest.approx(copy * found["copies"] + once)
    assert found["total_qram"] <= found["total_qroam"] or window.active < 10**4
    factors = {
        key: found[key]
        for key in ("copies", "runs", f"queries_{solver.replace('-', '_')}", "query_qroam")
    }
    assert factors[found.dominant] == max(factors.values())
    assert found.sentence.lower().startswith(
        {"queries": "queries dominate, "}.get(
            factor_name(found.dominant), f"{factor_name(found.dominant)} dominates, "
        )
    )
    odds = found["success_solver"] * found["success_final"] * found["success_level_one"]
    assert found["success"] == pytest.approx(odds)
    assert found["runs"] >= 1
    assert found["copies"] <= found["copies_guaranteed"]
    assert found["logical_qubits"] >= found["data_qubits"] + found["lookup_qubits"]


@given(st.floats(1e-12, 1.0))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_runs_are_those_of_a_turning_vector(odds: float) -> None:
    found = ledger(size(final_probability=1.0, level_one_probability=odds))
    # Amplification turns by 2θ a round, and stops next to a right angle.
    angle = theta = math.asin(math.sqrt(odds))
    rounds = 0
    if odds > 1e-6:
        while angle + theta <= math.pi / 2:
            angle += 2 * theta
            rounds += 1
        expected = min(1 / odds, (2 * rounds + 1) / math.sin(angle) ** 2)
        assert found["runs"] == pytest.approx(expected, rel=1e-6)
    if odds < 0.9:
        bound = (math.pi / 2 / math.sqrt(odds) + 1) / (1 - odds)
        assert found["runs"] <= min(1 / odds, bound) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("name", "smaller", "larger"),
    [
        ("active", 100, 900),
        ("steps", 10, 100),
        ("order", 1, 2),
        ("kappa", 100.0, 200.0),
        ("subnormalization", 1.0, 3.0),
        ("row_nonzeros", 2.0, 50.0),
        ("bits", 8, 32),
        ("batches", 1, 10),
    ],
)
def test_more_of_anything_costs_more(name: str, smaller: Any, larger: Any) -> None:
    few, many = (ledger(size(**{name: value}))["total_qroam"] for value in (smaller, larger))
    assert few < many


def test_less_error_costs_more() -> None:
    for name in ("solver_error", "readout_error"):
        tight, loose = (ledger(size(**{name: value}))["total_qroam"] for value in (1e-4, 1e-2))
        assert tight > loose


def test_every_factor_can_dominate() -> None:
    loading = ledger(size(active=1000, readout_error=0.9))
    assert loading.dominant == "query_qroam"
    assert loading.sentence.startswith("Loading dominates, with ")
    assert ledger(size(kappa=1e9)).dominant == "queries_shortcut_known_norm"
    assert ledger(size(level_one_probability=1e-30)).dominant == "runs"
    assert ledger(size(readout_error=1e-6)).dominant == "copies"
    assert ledger(size(kappa=1e9)).sentence.startswith("Queries dominate, with 7.9e9 queries a")


def test_groups_come_in_order_and_keys_once() -> None:
    entries = ledger(size()).entries
    order = list(dict.fromkeys(entry.group for entry in entries))
    assert order == list(GROUPS)
    assert len({entry.key for entry in entries}) == len(entries)
    assert all(entry.formula and entry.quantity and entry.tag in TAGS for entry in entries)
    assert all(isinstance(entry.value, float) for entry in entries)


# ---- What is not known, or has no end ------------------------------------------------------------


def test_an_unknown_row_is_said() -> None:
    entries = {entry.key: entry for entry in ledger(size()).entries}
    assert "ideal block encoding: the non-zeros of a row are not known" in entries["alpha"].formula
    assert "lower bound" in entries["entries"].formula
    known = {entry.key: entry for entry in ledger(size(row_nonzeros=5.0)).entries}
    assert "sparse access" in known["alpha"].formula
    assert known["entries"].value == 500


def test_classical_numbers_that_are_not_known_are_nan() -> None:
    found = ledger(size())
    for key in ("flops", "bytes", "ratio_qroam", "ratio_qram", "physical_qubits", "years"):
        assert math.isnan(found[key])
    assert "FLOP" not in found.sentence
    entries = {entry.key: entry for entry in found.entries}
    assert entries["flops"].formula == "not known: give flops, or batch_size for an estimate"
    assert entries["years"].formula.startswith("not known")


def test_classical_numbers_that_are() -> None:
    found = ledger(size(flops=2e6, bytes=3e6))
    assert (found["flops"], found["bytes"]) == (2e6, 3e6)
    assert found["ratio_qroam"] == found["total_qroam"] / 2e6
    assert " for each classical FLOP. Assumed: " in found.sentence
    estimated = ledger(size(batch_size=8))
    assert estimated["flops"] == 6 * 1000 * 8 * 10


def test_a_physical_estimate_gives_years() -> None:
    found = ledger(size(physical={"physical_qubits": 1e6, "seconds_per_copy": 60.0}))
    assert found["physical_qubits"] == 1e6
    assert found["seconds"] == 60 * found["copies"]
    assert found["years"] == pytest.approx(found["seconds"] / 3.15576e7)
    assert math.isnan(ledger(size(physical={"physical_qubits": 1e6}))["years"])


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_infinite_condition_number_makes_totals_infinite(solver: str) -> None:
    found = ledger(size(kappa=math.inf), solver)
    assert found["total_qroam"] == found["total_qram"] == found["copy_qroam"] == math.inf
    assert found.dominant == f"queries_{solver.replace('-', '_')}"
    assert "κ is infinite" in found.sentence
    assert math.isfinite(found["copies"])


def test_an_overflowing_subnormalization_is_said() -> None:
    found = ledger(size(parameters=10**9, active=10**9, order=100, row_nonzeros=1e9))
    assert found["total_qroam"] == math.inf
    assert "subnormalization α" in found.sentence


@pytest.mark.parametrize("readout_error", [1e-160, 1e-200])
def test_copies_that_overflow_are_infinite(readout_error: float) -> None:
    found = ledger(size(readout_error=readout_error))
    assert found["copies"] == found["total_qroam"] == math.inf
    assert found.sentence.startswith("Readout dominates, with ∞ copies")


def test_huge_windows_are_quick() -> None:
    begin = time.perf_counter()
    found = ledger(
        WindowSize(10**24, 10**24, 10**9, kappa=1e15, row_nonzeros=1e24, largest_change=1e-30)
    )
    assert time.perf_counter() - begin < 0.5
    assert math.isfinite(found["total_qroam"])
    assert found["entries"] == pytest.approx(1e48)


# ---- Its own form --------------------------------------------------------------------------------


def test_it_survives_json() -> None:
    found = ledger(
        size(
            flops=1.0,
            bytes=1.0,
            physical={"physical_qubits": 5, "seconds_per_copy": 1, "error_budget": 0.01},
        )
    )
    again = read_as(Ledger, json.loads(json.dumps(asdict(found))), "ledger")
    assert again == found
    assert isinstance(again.entries[0], Entry)
    assert again.window["solver"] == "shortcut-known-norm"
    assert WindowSize(**{k: v for k, v in again.window.items() if k != "solver"}) == size(
        flops=1.0,
        bytes=1.0,
        physical={"physical_qubits": 5, "seconds_per_copy": 1, "error_budget": 0.01},
    )


def test_unknown_solvers_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'shortcut'"):
        ledger(size(), "shortcat")
    with pytest.raises(ValueError, match="known: hhl-uniform, hhl-sine"):
        ledger(size(), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (9.99e3, "9,990"),
        (1e4, "1e4"),
        (123456.0, "1.2e5"),
        (-math.inf, "−∞"),
        (math.nan, "nan"),
    ],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text
