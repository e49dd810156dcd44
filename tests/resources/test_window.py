"""A window's numbers against explicit Carleman systems, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from torch_qsgd.carleman.explicit import CarlemanSystem
from torch_qsgd.carleman.polynomial import PolynomialMap
from torch_qsgd.readout import post_selection
from torch_qsgd.resources import WindowSize, ledger

STEPS = 8


def contraction(seed: int, dimension: int = 3) -> np.ndarray:
    """1 − ηH with eigenvalues in (0, 1)."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.standard_normal((dimension, dimension)))[0]
    return (basis * generator.uniform(0.2, 0.99, dimension)) @ basis.T


def system(
    seed: int, order: int, idle: int, forcing: float, closure: str, start: Any = None
) -> CarlemanSystem:
    linear = contraction(seed)
    constant = forcing * np.random.default_rng(seed + 100).standard_normal(3)
    step = PolynomialMap(constant, linear, None)
    return CarlemanSystem(step, STEPS, order=order, idle=idle, closure=closure, start=start)


def size(**given: Any) -> WindowSize:
    return WindowSize(**{"parameters": 10, "active": 3, "steps": STEPS, **given})


# ---- Against explicit systems --------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("idle", [0, 3])
def test_the_bound_holds_where_steps_do_not_grow(seed: int, order: int, idle: int) -> None:
    # Without forcing, the standard form has ‖A‖ = ‖G₁‖ ≤ 1.
    explicit = system(seed, order, idle, 0.0, "standard", start=np.ones(3))
    singular = np.linalg.svd(explicit.matrix.toarray(), compute_uv=False)
    window = size(order=order, idle=idle)
    assert singular[0] <= window.norm == 2
    assert singular[0] / singular[-1] <= window.condition_number == 2 * (STEPS + 1 + idle)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", [1, 2])
def test_no_system_is_larger_than_its_block_encoding(seed: int, order: int) -> None:
    explicit = system(seed, order, 0, 0.1, "homogeneous")
    step = explicit.step_matrices[0].toarray()[:4, :4]  # P₁ of (1, u)
    held = step != 0
    window = size(
        order=order,
        norm=explicit.norm,
        kappa=explicit.condition_number,
        row_nonzeros=float(max(held.sum(axis=0).max(), held.sum(axis=1).max())),
        largest_entry=float(np.abs(step).max()),
    )
    alpha = window.relative_subnormalization * explicit.norm
    assert explicit.norm <= alpha
    smallest = np.linalg.svd(explicit.matrix.toarray(), compute_uv=False)[-1]
    assert window.encoded_condition_number == pytest.approx(alpha / smallest, rel=1e-6)


def test_a_change_encoded_beside_one_is_smaller() -> None:
    dense = size(active=10, row_nonzeros=10.0, largest_entry=1.0)
    split = size(active=10, row_nonzeros=10.0, largest_entry=1.0, largest_change=0.01)
    assert dense.relative_subnormalization == pytest.approx((1 + 10) / 2)
    assert split.relative_subnormalization == pytest.approx((1 + 1 + 0.1) / 2)
    # The norm of 1 + D is at most 1 + s max|D|.
    change = 0.01 * np.sign(np.random.default_rng(0).standard_normal((10, 10)))
    assert np.linalg.norm(np.eye(10) + change, 2) <= 1 + 10 * 0.01


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("idle", [0, 4])
def test_reach_is_a_lower_bound(seed: int, order: int, idle: int) -> None:
    explicit = system(seed, order, idle, 0.3, "homogeneous")
    window = size(order=order, idle=idle, kappa=explicit.condition_number, norm=explicit.norm)
    true = explicit.smallest_singular_value * np.linalg.norm(explicit.solution)
    assert 0.0 < window.reach <= true / np.linalg.norm(explicit.rhs) <= 1 + 1e-9


@pytest.mark.parametrize("order", [1, 2, 3])
def test_qubits_hold_the_explicit_system(order: int) -> None:
    explicit = system(0, order, 5, 0.1, "homogeneous")
    qubits = ledger(size(order=order, idle=5))["data_qubits"]
    assert explicit.size <= 2**qubits
    # One qubit more than needed for each rounded logarithm, at most.
    assert qubits <= math.log2(explicit.size) + 2 + order


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("steps", "idle"), [(1, 0), (8, 3), (5000, 70)])
def test_odds_by_default_are_those_of_a_straight_line(order: int, steps: int, idle: int) -> None:
    grams = np.zeros((steps + 1, order, order))
    grams[:, 0, 0] = (np.arange(steps + 1) / steps) ** 2  # u(t) = (t/T) u, ‖u‖ = 1
    odds = post_selection(grams, rescaling=1.0, idle=idle)
    window = size(order=order, steps=steps, idle=idle)
    assert window.final == pytest.approx(odds.final, rel=1e-6)
    assert window.level_one == pytest.approx(odds.level_one, rel=1e-9)
    assert size(order=order, level_one_probability=0.5).level_one == 0.5


@pytest.mark.parametrize(("order", "kappa"), [(1, 160), (2, 202.3), (3, 262)])
def test_two_t_is_no_bound_with_a_gradient(order: int, kappa: float) -> None:
    """λ = 0 and u in units of its length: the constant alone takes ‖A‖ over 1."""
    flat = PolynomialMap([0.01], np.eye(1), None)
    explicit = CarlemanSystem(flat, 100, order=order, closure="homogeneous")
    assert explicit.condition_number == pytest.approx(kappa, rel=0.005)
    estimate = size(steps=100, order=order).condition_number
    assert explicit.condition_number / 1.8 < estimate == 202


def test_a_kappa_that_no_homogeneous_form_has_is_said() -> None:
    window = size(kappa=2.0)
    assert window.reach == pytest.approx(3)
    (line,) = (e for e in ledger(window, "qsvt-relative").entries if e.key == "success_solver")
    assert "r is taken as 1" in line.formula
    (line,) = (e for e in ledger(size(), "qsvt-relative").entries if e.key == "success_solver")
    assert "r is taken as 1" not in line.formula


# ---- Numbers -------------------------------------------------------------------------------------


def test_defaults() -> None:
    window = size()
    assert window.relative_subnormalization == 1
    assert window.encoded_condition_number == window.condition_number == 2 * (STEPS + 1)
    assert (window.entries, window.word) == (3, 16)
    assert math.isnan(window.classical_flops)


def test_the_table_holds_rows_and_batches() -> None:
    window = size(active=9, row_nonzeros=2.5, batches=4)
    assert window.entries == 4 * 23
    assert window.word == 16 + 4  # ten columns


def test_flops_are_estimated_from_the_batch_size() -> None:
    assert size(batch_size=32).classical_flops == 6 * 10 * 32 * STEPS
    assert size(batch_size=32, flops=5.0).classical_flops == 5.0


def test_numpy_s_numbers_become_python_s() -> None:
    window = size(parameters=np.int64(10), kappa=np.float32(4.0), row_nonzeros=np.int64(2))
    assert type(window.parameters) is int
    assert (type(window.kappa), type(window.row_nonzeros)) == (float, float)


def test_sizes_that_overflow_are_infinite() -> None:
    window = size(parameters=10**9, active=10**9, order=100, row_nonzeros=1e9)
    assert window.relative_subnormalization == window.encoded_condition_number == math.inf
    assert size(kappa=math.inf).encoded_condition_number == math.inf
    assert size(kappa=math.inf).reach == 0


# ---- Refusals ------------------------------------------------------------------------------------

NO_NUMBERS: list[Any] = [math.nan, -1, "a", True, 1j, [1.0]]


@pytest.mark.parametrize(
    "name",
    [
        "parameters",
        "active",
        "steps",
        "order",
        "batches",
        "bits",
        "kappa",
        "norm",
        "subnormalization",
        "row_nonzeros",
        "largest_entry",
        "largest_change",
        "change_norm",
        "final_probability",
        "level_one_probability",
        "solver_error",
        "readout_error",
        "batch_size",
        "flops",
        "bytes",
    ],
)
@pytest.mark.parametrize("bad", [*NO_NUMBERS, 0], ids=repr)
def test_numbers_out_of_range_are_named(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        size(**{name: bad})


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("idle", -1),
        ("active", 11),
        ("kappa", 1.0),
        ("norm", 0.5),
        ("norm", math.inf),
        ("subnormalization", 0.9),
        ("row_nonzeros", 4.5),
        ("final_probability", 1.1),
        ("solver_error", 1.0),
        ("readout_error", 1.0),
        ("bits", 65),
        ("flops", math.inf),
    ],
)
def test_edges_are_refused(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        size(**{name: bad})


@pytest.mark.parametrize("bad", [{"kapa": "x"}, {"kappa": 3}, "a"], ids=repr)
def test_origins_are_checked(bad: Any) -> None:
    with pytest.raises(ValueError, match="origin must be a mapping"):
        size(origin=bad)


@pytest.mark.parametrize("bad", [{"qubits": 3}, 5, "a", {"physical_qubits": -1}], ids=repr)
def test_a_physical_estimate_is_checked(bad: Any) -> None:
    with pytest.raises(ValueError, match=r"physical.* must be a"):
        size(physical=bad)


def test_what_is_allowed_is_said() -> None:
    with pytest.raises(ValueError, match="inf where there is no inverse, or None for 2"):
        size(kappa=0.5)
    with pytest.raises(ValueError, match=r"at most active \+ 1 = 4"):
        size(row_nonzeros=5)
