"""Scaling curves against ledgers of windows written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from torch_qsgd.resources import SOLVER, ScalingCurve, WindowSize, crossing, ledger, scaling

BASE = WindowSize(10**6, 10**5, steps=20, order=2, batch_size=32)


def check(curve: ScalingCurve, windows: list[WindowSize], solver: str = SOLVER) -> None:
    found = [ledger(window, solver) for window in windows]
    assert curve.t_gates == pytest.approx([one["total_qroam"] for one in found])
    assert curve.t_gates_qram == pytest.approx([one["total_qram"] for one in found])
    assert curve.flops == pytest.approx([one["flops"] for one in found], nan_ok=True)
    assert curve.dominant == [one.dominant for one in found]


def test_over_n_the_model_grows_at_its_density() -> None:
    curve = scaling(BASE, "active", [10**4, 10**7])
    sizes = [replace(BASE, parameters=10 * n, active=n) for n in (10**4, 10**7)]
    check(curve, sizes)
    assert (curve.over, curve.values) == ("active", [1e4, 1e7])


def test_over_n_rows_are_held_up_to_their_length() -> None:
    base = replace(BASE, row_nonzeros=500.0)
    curve = scaling(base, "active", [100, 10**4])
    sizes = [
        replace(base, parameters=1000, active=100, row_nonzeros=101.0),
        replace(base, parameters=10**5, active=10**4),
    ]
    check(curve, sizes)


def test_over_the_density_rows_keep_their_share() -> None:
    base = replace(BASE, row_nonzeros=5e4)  # half of a row
    curve = scaling(base, "density", [0.01, 0.1, 1.0])
    sizes = [replace(base, active=n, row_nonzeros=n / 2) for n in (10**4, 10**5, 10**6)]
    check(curve, sizes)
    assert len(set(curve.flops)) == 1


def test_the_change_s_norm_follows_its_entries() -> None:
    base = replace(BASE, row_nonzeros=500.0, largest_change=0.1, change_norm=2.0)
    over_n = scaling(base, "active", [4 * 10**5])
    check(over_n, [replace(base, parameters=4 * 10**6, active=4 * 10**5, change_norm=4.0)])
    sparser = replace(base, active=10**4, row_nonzeros=50.0, change_norm=0.2)
    check(scaling(base, "density", [0.01]), [sparser])


def test_over_t_the_bound_grows_by_itself() -> None:
    curve = scaling(BASE, "steps", [5, 50], solver="qsvt-relative")
    check(curve, [replace(BASE, steps=steps) for steps in (5, 50)], "qsvt-relative")


@pytest.mark.parametrize(
    ("regime", "kappa"), [("T", 30.0), ("T²", 30 * 61 / 21), ("exponential", 30.0**3)]
)
def test_a_given_kappa_grows_by_its_regime(regime: str, kappa: float) -> None:
    base = replace(BASE, kappa=30.0)
    curve = scaling(base, "steps", [60], regime=regime)
    check(curve, [replace(base, steps=60, kappa=kappa)])


def test_kappa_and_norm_are_those_measured_at_each_t() -> None:
    base = replace(BASE, kappa=30.0, row_nonzeros=9.0)
    curve = scaling(base, "steps", [1, 60], system_of=lambda steps: (0.5 * steps, 1 + 0.1 * steps))
    check(
        curve,
        [
            replace(base, steps=1, kappa=math.nextafter(1, 2), norm=1.1),
            replace(base, steps=60, kappa=30.0, norm=7.0),
        ],
    )


def test_odds_and_batches_follow_t() -> None:
    # States of equal length after T steps: 1/P − 1 is T times one over p + 1 states.
    base = replace(BASE, final_probability=0.2, batches=20)
    curve = scaling(base, "steps", [10, 40])
    sizes = [
        replace(base, steps=10, batches=10, final_probability=1 / 3),
        replace(base, steps=40, batches=40, final_probability=1 / 9),
    ]
    check(curve, sizes)


def test_given_flops_grow_with_model_and_steps() -> None:
    base = replace(BASE, flops=7e9, bytes=1e6)
    assert scaling(base, "active", [10**6]).flops == pytest.approx([7e10])
    assert scaling(base, "steps", [10]).flops == pytest.approx([3.5e9])
    assert scaling(base, "density", [0.5]).flops == pytest.approx([7e9])
    assert math.isnan(scaling(replace(BASE, batch_size=None), "active", [10**6]).flops[0])


@pytest.mark.parametrize(
    ("over", "first", "last"), [("active", 1e4, 1e12), ("steps", 1, 1e4), ("density", 1e-3, 1)]
)
def test_default_values(over: str, first: float, last: float) -> None:
    curve = scaling(replace(BASE, row_nonzeros=100.0), over)
    assert (curve.values[0], curve.values[-1]) == (first, last)
    assert curve.values == sorted(curve.values)
    assert curve.t_gates == sorted(curve.t_gates)
    lengths = {len(v) for v in (curve.values, curve.t_gates_qram, curve.flops, curve.dominant)}
    assert lengths == {len(curve.t_gates)}


def test_without_growing_rows_gates_grow_as_n_to_three_halves() -> None:
    # Copies grow as n, lookups as √n; with QRAM as log² n.
    curve = scaling(BASE, "active", [10**8, 10**12])
    exponent = math.log10(curve.t_gates[1] / curve.t_gates[0]) / 4
    assert exponent == pytest.approx(1.5, abs=0.02)
    exponent = math.log10(curve.t_gates_qram[1] / curve.t_gates_qram[0]) / 4
    assert 1.0 < exponent < 1.15


def test_a_window_without_end_has_infinite_curves() -> None:
    curve = scaling(replace(BASE, kappa=math.inf), "steps", [5, 50])
    assert curve.t_gates == [math.inf, math.inf]
    curve = scaling(replace(BASE, kappa=1e10), "steps", [20, 10**5], regime="exponential")
    assert math.isfinite(curve.t_gates[0])
    assert curve.t_gates[1] == math.inf


def test_values_are_sorted() -> None:
    assert scaling(BASE, "steps", [30, 10.0, 20]).values == [10.0, 20.0, 30.0]


# ---- Crossings -----------------------------------------------------------------------------------


def curve_of(gates: list[float], flops: list[float]) -> ScalingCurve:
    values = [float(i) for i in range(1, len(gates) + 1)]
    return ScalingCurve("active", values, gates, [g / 10 for g in gates], flops, ["copies"] * 3)


def test_crossings() -> None:
    assert crossing(curve_of([9, 9, 9], [1, 9, 10])) == 3
    assert crossing(curve_of([9, 9, 9], [1, 9, 10]), memory=True) == 1
    assert crossing(curve_of([9, 9, math.inf], [1, 1, 1])) is None
    assert crossing(curve_of([9, 9, 9], [math.nan] * 3)) is None


# ---- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("over", "values", "message"),
    [
        ("n", None, "over must be one of active, steps, density"),
        ("active", [], "values must be a list of at least one number"),
        ("active", 5, "values must be a list of at least one number"),
        ("active", "12", "values must be a list of at least one number"),
        ("active", [1.5], "each of values .over 'active'. must be an integer"),
        ("steps", [0], "each of values .over 'steps'. must be an integer"),
        ("density", [0.5, 1.5], "each of values .over 'density'. must be a number"),
        ("density", [math.nan], "each of values .over 'density'. must be a number"),
    ],
)
def test_refusals(over: str, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scaling(BASE, over, values)


def test_an_unknown_regime_is_refused() -> None:
    with pytest.raises(ValueError, match="regime must be one of T, T², exponential"):
        scaling(BASE, "steps", regime="linear")
