"""What the ledger says of what it assumes, and how it charges what was measured."""

from __future__ import annotations

import math
from typing import Any

import pytest

from torch_qsgd.resources import WindowSize, ledger
from torch_qsgd.resources.loading import erasure, qroam, state_by_tables


def size(**given: Any) -> WindowSize:
    return WindowSize(**{"parameters": 1000, "active": 100, "steps": 10, **given})


def test_what_was_assumed_is_listed() -> None:
    found = ledger(size(order=2))
    assert found.sentence.endswith(found.assumptions)
    for words in ("κ = 2(T+1+p)", "non-zeros s are not known", "ideal block encoding",
                  "derivatives beyond the Hessian", "odds of u(t)"):  # fmt: skip
        assert words in found.assumptions
    assert "= at least " in found.sentence
    known = ledger(
        size(
            kappa=50,
            row_nonzeros=4,
            final_probability=0.1,
            level_one_probability=0.2,
            origin={"row_nonzeros": "the largest of 3 rows"},
        )
    )
    assert "at least" not in known.sentence
    assert "s the largest of 3 rows" in known.assumptions
    for words in ("κ", "ideal", "derivatives", "odds"):
        assert words not in known.assumptions
    lines = {entry.key: entry for entry in known.entries}
    assert "the largest of 3 rows" in lines["alpha"].formula
    assert "the largest of 3 rows" in lines["entries"].formula


def test_no_kappa_without_a_model_is_called_proven() -> None:
    lines = {entry.key: entry for entry in ledger(size()).entries}
    assert lines["kappa"].tag == "our estimate"
    assert "‖A‖ ≤ 1" in lines["kappa"].formula


@pytest.mark.parametrize("solver", ["shortcut", "jennings"])
def test_solvers_that_measure_are_not_amplified(solver: str) -> None:
    found = ledger(size(level_one_probability=1e-4), solver)
    assert found["amplification"] == 1
    assert found["runs"] == pytest.approx(1 / found["success"])
    assert ledger(size(level_one_probability=1e-4), "adiabatic")["amplification"] > 1


def test_the_state_is_accurate_enough_for_the_readout() -> None:
    loose, tight = (
        ledger(size(final_probability=0.1, level_one_probability=p, solver_error=1e-3))
        for p in (0.5, 1e-7)
    )
    assert loose["state_error"] == 1e-3
    assert loose["displacement_error"] == pytest.approx(1e-3 / math.sqrt(0.05))
    assert tight["state_error"] == pytest.approx(0.1 * math.sqrt(1e-8) / 3)
    assert tight["displacement_error"] == pytest.approx(0.1 / 3)
    assert tight["queries_qsvt_relative"] > 1.5 * loose["queries_qsvt_relative"]


def test_the_gradient_s_table_has_every_batch() -> None:
    for batches in (1, 10):
        found = ledger(size(batches=batches))
        expected = 0
        for level in range(7):  # 100 amplitudes
            entries = batches * 2**level
            expected += qroam(entries, 16).t_gates + erasure(entries) + 4 * 16
        assert found["upload_qroam"] == expected
    assert state_by_tables(100, 16, states=10) == expected


def test_rows_are_prepared_as_states_where_that_is_least() -> None:
    given: dict[str, Any] = {"row_nonzeros": 100.0, "largest_change": 0.1, "batches": 2}
    dense = ledger(size(**given, change_norm=0.5))
    assert dense["alpha"] == pytest.approx((1 + 1.5) / 2)
    row = state_by_tables(100, 16, states=200) + state_by_tables(100, 16, states=2)
    assert dense["query_qroam"] == row + dense["upload_qroam"] + 4 * 4
    sparse = ledger(size(**given, change_norm=50.0))
    assert sparse["alpha"] == pytest.approx((1 + 1 + 10) / 2)
    assert sparse["query_qroam"] == sparse["lookup_qroam"] + 64 + sparse["upload_qroam"] + 16
    words = {entry.key: entry.formula for entry in dense.entries}["alpha"]
    assert "1 + ‖A − 1‖_F = 1 + 0.5" in words


def test_readout_by_the_unitary_stands_beside_the_copies() -> None:
    found = ledger(size(readout_error=0.01))
    assert found["unitary_calls"] == pytest.approx(100 / 0.01)
