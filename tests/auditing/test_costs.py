"""The ledger of an audit: that its numbers are the measured ones, and say where they come from."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tests.auditing.test_conditioning import spectrum_of_nodes
from torch_qsgd.auditing.costs import audited_ledger, system_of, window_size
from torch_qsgd.auditing.homogeneous import homogeneous_ends
from torch_qsgd.hessian import MonitorHistory
from torch_qsgd.hessian.dynamics import Dynamics
from torch_qsgd.hessian.history import SpectrumRecord
from torch_qsgd.report.content import Report
from torch_qsgd.report.measurements import Pruning, RowSparsity, Transfer, Truncation
from torch_qsgd.resources import WindowSize, ledger

LR, STEPS, ORDER = 0.1, 20, 2
NODES = [0.0, 1.0, 5.0, 6.0]


def monitor(nodes: list[float], lr: float = LR) -> MonitorHistory:
    spectrum, dynamics = spectrum_of_nodes(nodes), Dynamics(lr)
    failed = SpectrumRecord(0, 0, "upload", None, dynamics, STEPS, error="diverged")
    found = SpectrumRecord(0, 1, "upload", spectrum, dynamics, STEPS, 1.0, 0.0, 0.0, products=6)
    return MonitorHistory([failed, found], [], 0.0, 1.0)


def report(nodes: list[float] | None = None, **parts: Any) -> Report:
    nodes = NODES if nodes is None else nodes
    grams = [[[(0.4 * t) ** 2]] for t in range(STEPS + 1)]
    given: dict[str, Any] = {
        "settings": {
            "window": STEPS,
            "order": ORDER,
            "lr": LR,
            "solver_error": 1e-3,
            "readout_error": 0.1,
        },
        "facts": {"batches of a window": 5, "classical operations": 1e9},
        "pruning": Pruning(100, 90, 10, 1.0, 0.5, 1.1, 0.4),
        "rows": RowSparsity(10, 4, [2, 9, 3, 3], [1, 2, 2, 2], 1e-6, 3.0, [0] * 4),
        "truncation": Truncation(
            STEPS, [], None, [], [], 1.0, 0.9, grams, 0.5, math.nan, 2, 0.0
        ),
        "monitor": monitor(nodes),
        "transfer": Transfer(10, 4, 1, 1, 1, 1, 0.2, 0.3, 1.0, 1.0, 0.9),
    }  # fmt: skip
    return Report("a model", "audit", **{**given, **parts})


def test_kappa_and_norm_are_a_pair_of_the_homogeneous_form() -> None:
    given = report()
    size = window_size(given)
    largest, smallest = homogeneous_ends(
        spectrum_of_nodes(NODES), Dynamics(LR), STEPS, ORDER, truncation=given.truncation
    )
    assert size.norm == largest
    assert size.kappa == pytest.approx(largest / smallest)
    # The constant alone makes it grow as T: the standard form's blocks of a damped window do not.
    damped = window_size(report([4.0, 6.0]))
    assert damped.kappa is not None
    assert damped.kappa > STEPS
    assert damped.reach <= 1
    lines = {entry.key: entry for entry in ledger(size).entries}
    assert lines["kappa"].tag == "our estimate"
    assert "homogeneous form" in lines["kappa"].formula


def test_rows_are_the_longest_met_and_say_so() -> None:
    size = window_size(report())
    assert size.row_nonzeros == 9
    assert size.largest_change == pytest.approx(0.3)
    assert size.largest_entry == pytest.approx(1.3)
    found = ledger(size)
    assert "the largest of 4 rows probed, a lower bound" in found.sentence
    assert window_size(report(rows=None)).row_nonzeros is None


def test_the_change_s_norm_is_that_of_all_eigenvalues() -> None:
    size = window_size(report())
    assert size.change_norm == pytest.approx(LR * math.sqrt(sum(x * x for x in NODES)))
    # 1 + 0.1 √62 = 1.79 is less than 1 + 9 · 0.3 and 9 · 1.3: states of rows are taken.
    assert size.step_encoding == "rows"
    alpha = (1 + (1 + LR * math.sqrt(62)) ** ORDER) / size.norm
    assert ledger(size)["alpha"] == pytest.approx(alpha)


def test_the_curve_over_t_takes_kappa_of_each_t() -> None:
    """A mode that grows makes it an exponential, which no power of T is."""
    given = report([-3.74, 1.0], monitor=monitor([-3.74, 1.0], 0.02), truncation=None)
    _, curves, _ = audited_ledger(given)
    (over_t,) = (curve for curve in curves if curve.over == "steps")
    system = system_of(given)
    assert system is not None
    kappa, norm = system(1000)
    assert 1e62 < kappa < 1e66
    size = window_size(given)
    expected = ledger(
        replace(
            size,
            steps=1000,
            kappa=kappa,
            norm=norm,
            flops=None,
            final_probability=1 / (1 + 4 * 1000 / STEPS),
        )
    )
    place = over_t.values.index(1000)
    assert over_t.t_gates[place] == pytest.approx(expected["total_qroam"])
    assert over_t.t_gates[-1] == math.inf


def test_what_was_not_measured_is_left_to_the_ledger() -> None:
    given = report(monitor=None, rows=None, transfer=None, truncation=None)
    assert system_of(given) is None
    size = window_size(given)
    expected = WindowSize(100, 10, STEPS, ORDER, batches=5, flops=1e9, origin={})
    assert size == expected
    found, curves, _ = audited_ledger(given)
    assert "κ = 2(T+1+p)" in found.assumptions
    assert [curve.over for curve in curves] == ["active", "steps", "density"]
    with pytest.raises(ValueError, match="how many weights are active"):
        window_size(report(pruning=None))


def test_odds_are_those_measured() -> None:
    size = window_size(report())
    assert (size.final, size.level_one) == (0.2, 0.3)


def test_another_look_at_a_stored_audit_is_the_same() -> None:
    given = report()
    given.ledger, given.scaling, _ = audited_ledger(given)
    again = Report.from_json(given.to_json())
    system, stored = system_of(given), system_of(again)
    assert system is not None
    assert stored is not None
    assert stored(77) == system(77)
    assert again.ledger is not None
    window = {k: v for k, v in again.ledger.window.items() if k != "solver"}
    assert WindowSize(**{**window, "physical": None}) == window_size(given)
