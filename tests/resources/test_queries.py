"""The solvers' rows against polynomials that are built, emulated solvers, and the table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from torch_qsgd.carleman.explicit import CarlemanSystem
from torch_qsgd.carleman.polynomial import PolynomialMap
from torch_qsgd.linear_system import LinearSystem
from torch_qsgd.resources import WindowSize
from torch_qsgd.resources.queries import (
    KINDS,
    ROWS,
    clock_qubits,
    degree,
    sup_norm,
)
from torch_qsgd.solvers import HHL, QSVT
from torch_qsgd.solvers.inverse_polynomial import inverse_polynomial

BY_NAME = {row.name: row for row in ROWS}


def size(**given: Any) -> WindowSize:
    return WindowSize(**{"parameters": 10, "active": 3, "steps": 5, **given})


# ---- Polynomials -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epsilon", [0.5, 1e-1, 1e-3, 1e-6, 1e-12])
def test_the_degree_is_that_of_the_polynomial(kind: str, epsilon: float) -> None:
    for kappa in (1.01, 1.5, 2, 10, 50.5, 300):
        assert degree(kind, kappa, epsilon) == inverse_polynomial(kind, kappa, epsilon).degree


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("epsilon", [1e-1, 1e-3, 1e-6])
def test_the_sup_norm_is_the_limit_of_the_polynomial_s(kind: str, epsilon: float) -> None:
    for kappa, tolerance in ((10, 0.01), (300, 5e-4)):
        true = inverse_polynomial(kind, kappa, epsilon).maximum / kappa
        assert sup_norm(kind, kappa, epsilon) == pytest.approx(true, rel=tolerance)


def test_the_sup_norms_of_the_formulas() -> None:
    for epsilon, expected in ((1e-2, 1.11), (1e-3, 1.30), (1e-6, 1.76)):
        assert sup_norm("relative", 1e4, epsilon) == pytest.approx(expected, abs=0.005)


# ---- Clocks ------------------------------------------------------------------------------------


def a_system(kappa: float, seed: int) -> LinearSystem:
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.standard_normal((20, 20)))[0] for _ in range(2))
    matrix = (left * np.geomspace(1, 1 / kappa, 20)) @ right.T
    return LinearSystem(matrix, generator.standard_normal(20))


def hhl_error(system: LinearSystem, clock: str, qubits: int) -> float:
    found = HHL(clock_qubits=qubits, window=clock).solve(system).vector
    exact = system.solution
    return float(np.linalg.norm(found / np.linalg.norm(found) - exact / np.linalg.norm(exact)))


@pytest.mark.parametrize("clock", ["sine", "uniform"])
@pytest.mark.parametrize("kappa", [10, 40])
def test_emulated_hhl_reaches_the_error_with_that_many_qubits(clock: str, kappa: float) -> None:
    epsilon = 0.01
    qubits = int(clock_qubits(clock, kappa, epsilon))
    errors = [hhl_error(a_system(kappa, seed), clock, qubits) for seed in range(4)]
    assert max(errors) <= epsilon
    # Not generous: three qubits fewer are not enough.
    fewer = [hhl_error(a_system(kappa, seed), clock, qubits - 3) for seed in range(4)]
    assert min(fewer) > epsilon


@pytest.mark.parametrize("clock", ["sine", "uniform"])
def test_a_clock_qubit_more_halves_or_quarters_the_error(clock: str) -> None:
    per_qubit = 4 if clock == "sine" else 2
    for kappa in (10, 1e6, 1e200):
        first = clock_qubits(clock, kappa, 1e-3)
        assert clock_qubits(clock, kappa, 1e-3 / per_qubit) == first + 1
        assert clock_qubits(clock, 2 * kappa, 1e-3) == first + 1
    assert clock_qubits(clock, math.inf, 1e-3) == math.inf


# ---- Success -----------------------------------------------------------------------------------


def a_window(order: int) -> CarlemanSystem:
    generator = np.random.default_rng(order)
    basis = np.linalg.qr(generator.standard_normal((2, 2)))[0]
    linear = (basis * np.array([0.5, 0.95])) @ basis.T
    return CarlemanSystem(PolynomialMap([0.1, 0.2], linear, None), 5, order=order)


@pytest.mark.parametrize("order", [1, 2])
def test_emulated_success_is_no_less_than_the_bound(order: int) -> None:
    system = a_window(order)
    window = size(
        order=order, kappa=system.condition_number, norm=system.norm, subnormalization=1.0
    )
    hhl = HHL(clock_qubits=12).solve(system).success_probability
    assert hhl is not None
    odds = BY_NAME["hhl-sine"].odds(window)
    assert 0.3 * hhl <= odds <= 1.01 * hhl
    for kind in KINDS:
        solved = QSVT(epsilon=1e-3, kind=kind).solve(system).success_probability
        assert solved is not None
        name = kind if kind == "cks" else f"qsvt-{kind}"
        odds = BY_NAME[name].odds(window)
        assert 0.3 * solved <= odds <= 1.03 * solved


# ---- Any size ------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_counts_grow_with_kappa_at_any_size(row: Any) -> None:
    kappas = [1.0001, 2, 10, 1e3, 1e8, 1e20, 1e100, 1e300, math.inf]
    counts = [row.count(size(kappa=kappa)) for kappa in kappas]
    assert all(count >= 0 for count in counts)
    assert counts == sorted(counts)
    assert counts[-1] == math.inf
    # At 1e20 nothing overflows: queries are κ times a logarithm squared, and a constant, at most.
    assert 1e20 < counts[5] < 1e20 * 1e5 * math.log(1e20) ** 2
    for kappa in kappas:
        assert 0 <= row.odds(size(kappa=kappa)) <= 1


def test_what_overflows_is_infinite() -> None:
    window = size(kappa=1e300)
    assert BY_NAME["cks"].count(window) == math.inf
    assert BY_NAME["qsvt-relative"].count(window) == pytest.approx(1e300 * math.acosh(1e3))
    assert BY_NAME["hhl-sine"].odds(size(kappa=math.inf)) == 0


def test_jennings_has_the_subnormalization_of_its_own() -> None:
    window = size(kappa=50, subnormalization=2.0)
    assert BY_NAME["jennings"].queries(window) == pytest.approx(19825.72, abs=0.005)
    assert BY_NAME["jennings"].count(window) == 19826
    assert BY_NAME["shortcut"].count(window) == BY_NAME["shortcut"].count(size(kappa=100))


@pytest.mark.parametrize("call", [degree, sup_norm])
def test_refusals(call: Any) -> None:
    with pytest.raises(ValueError, match="kind must be one of"):
        call("other", 10, 1e-3)
    with pytest.raises(ValueError, match="kappa must be"):
        call("relative", 1, 1e-3)
    with pytest.raises(ValueError, match="epsilon must be"):
        call("relative", 10, 1)
    with pytest.raises(ValueError, match="clock must be one of"):
        clock_qubits("other", 10, 1e-3)
