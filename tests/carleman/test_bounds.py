"""Bounds against the errors and condition numbers they bound."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.carleman.reference import random_map
from torch_qsgd.carleman.bounds import (
    Certificate,
    NoCertificate,
    best_rescaling,
    certificate,
    condition_bound,
    homogeneous_bound,
    required_order,
)
from torch_qsgd.carleman.explicit import CarlemanSystem
from torch_qsgd.carleman.polynomial import PolynomialMap, trajectory

ROUNDING = 1e-14


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 3),
    order=st.integers(1, 3),
    degree=st.integers(1, 3),
    forced=st.booleans(),
    linear=st.floats(0.1, 1.05),
    higher=st.floats(0.01, 0.4),
)
@settings(max_examples=200, deadline=None)
def test_the_bound_is_never_below_the_error(
    seed: int, n: int, order: int, degree: int, forced: bool, linear: float, higher: float
) -> None:
    rng = np.random.default_rng(seed)
    step = random_map(rng, n, degree, forcing=0.05 if forced else 0.0, linear=linear, higher=higher)
    start = np.zeros(n)
    if not forced:
        start = rng.standard_normal(n)
        start *= 0.3 / np.linalg.norm(start)
    steps = 6
    true = trajectory([step] * steps, start)
    errors = {}
    for closure in ("standard", "homogeneous"):
        system = CarlemanSystem(step, steps, order=order, start=start, closure=closure)
        history = system.history(system.solution)
        errors[closure] = np.linalg.norm(history - true, axis=1)
    found = certificate(step, steps, order=order, start=start)
    if found:
        assert found.rho <= 1
        for t in range(1, steps + 1):
            assert errors["standard"][t] <= found.bound(order, t) * (1 + 1e-9) + ROUNDING
    else:
        assert linear > 0.5  # only a map that hardly contracts, or does not, goes uncertified
    bound = homogeneous_bound(step, steps, order, start=start)
    assert errors["homogeneous"][-1] <= bound * (1 + 1e-9) + ROUNDING


def test_the_homogeneous_bound_is_attained_in_one_dimension() -> None:
    """With one variable and positive coefficients the majorant is the map itself."""
    step = PolynomialMap([0.02], [[0.7]], [[0.2]])
    for order in (1, 2, 3):
        system = CarlemanSystem(step, 8, order=order)
        error = trajectory([step] * 8, [0.0])[-1] - system.displacement(system.solution)
        bound = homogeneous_bound(step, 8, order)
        assert bound == pytest.approx(float(error[0]), rel=1e-6)


def test_published_errors_of_a_forced_map_and_their_bound() -> None:
    """K = 0.6: the errors fall about 150-fold an order, the bound by the factor γ−/γ."""
    a, b = 0.5, 0.2
    forcing = 0.6 * (1 - a) ** 2 / (4 * b)
    step = PolynomialMap([forcing], [[a]], [[b]])
    found = certificate(step, 40)
    assert isinstance(found, Certificate)
    assert abs(found.K - 0.6) < 1e-12
    smaller = (1 - a - math.sqrt((1 - a) ** 2 - 4 * b * forcing)) / (2 * b)
    assert found.rho * found.gamma == pytest.approx(smaller, rel=1e-3)
    assert found.q <= 1
    errors = []
    for order in range(1, 5):
        system = CarlemanSystem(step, 40, order=order, closure="standard")
        error = abs(system.displacement(system.solution) - trajectory([step] * 40, [0.0])[-1])
        assert error[0] <= certificate(step, 40, order=order).bound(order)
        errors.append(float(error[0]))
    assert all(later < 0.3 * earlier for earlier, later in itertools.pairwise(errors))


def test_liu_criterion_of_an_unforced_map() -> None:
    step = PolynomialMap([0.0], [[0.6]], [[0.2]])
    unforced = certificate(step, 30, start=[0.5])
    forced = certificate(PolynomialMap([0.1], [[0.6]], [[0.2]]), 30, start=[0.5])
    assert abs(unforced.R - 0.2 * 0.5 / 0.4) < 1e-12
    assert abs(forced.R - (0.2 * 0.5 + 0.1 / 0.5) / 0.4) < 1e-12


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (PolynomialMap([1.0], [[0.99]], [[1.0]]), "K = 40000 > 1"),
        (PolynomialMap([0.1], [[1.2]], [[0.5]]), "not below 1: the linear part does not contract"),
    ],
)
def test_where_there_is_no_certificate_it_says_why(step: PolynomialMap, reason: str) -> None:
    found = certificate(step, 100)
    assert not found
    assert isinstance(found, NoCertificate)
    assert str(found).startswith("no certificate, because")
    assert reason in str(found)
    assert not required_order(step, 100, 1e-6, closure="standard")


@pytest.mark.parametrize("closure", ["homogeneous", "standard"])
def test_the_required_order_reaches_the_tolerance(closure: str) -> None:
    step = random_map(np.random.default_rng(5), 2, forcing=0.03, linear=0.6, higher=0.1)
    tolerance = 1e-5
    order = required_order(step, 10, tolerance, closure=closure)
    assert isinstance(order, int)
    assert 1 < order <= 6
    system = CarlemanSystem(step, 10, order=order, closure=closure, basis="monomial")
    true = trajectory([step] * 10, np.zeros(2))[-1]
    assert np.linalg.norm(system.displacement(system.solution) - true) <= tolerance
    assert not required_order(step, 10, 1e-300, closure=closure, most=4)
    with pytest.raises(ValueError, match="tolerance must be above 0"):
        required_order(step, 10, 0.0)


def test_the_certified_rescaling_makes_the_bound_least() -> None:
    step = random_map(np.random.default_rng(7), 2, forcing=0.05, linear=0.7, higher=0.1)
    found = certificate(step, 10, order=3)
    assert isinstance(found, Certificate)
    assert best_rescaling(step, 10, 3) == found.gamma
    norms = step.norms
    reach = found.rho * found.gamma

    def bound(gamma: float) -> float:
        q = sum(n * gamma ** (p - 1) for p, n in enumerate(norms))
        Q = q if q <= 1 else q**3
        return gamma * (reach / gamma) ** 4 * sum(Q**k for k in range(1, 11))

    for gamma in np.geomspace(reach, 1e4 * reach, 500):
        assert found.bound(3) <= bound(gamma) * (1 + 1e-3)
    assert found.bound(3) == pytest.approx(bound(found.gamma))


def test_without_a_certificate_the_rescaling_is_the_longest_displacement() -> None:
    step = PolynomialMap([0.1], [[1.1]], [[-0.5]])
    assert not certificate(step, 60)
    longest = np.abs(trajectory([step] * 60, [0.0])).max()
    assert best_rescaling(step, 60, 2) == pytest.approx(longest)
    system = CarlemanSystem(step, 60, order=2, rescaling="auto")
    assert system.rescaling == pytest.approx(longest)


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 3),
    order=st.integers(1, 2),
    linear=st.floats(0.2, 1.1),
    idle=st.integers(0, 3),
    several=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_condition_bound_is_never_below_the_condition_number(
    seed: int, n: int, order: int, linear: float, idle: int, several: bool
) -> None:
    rng = np.random.default_rng(seed)
    maps = [random_map(rng, n, linear=linear) for _ in range(5 if several else 1)]
    system = CarlemanSystem(
        maps if several else maps[0], 5, order=order, closure="standard", idle=idle
    )
    kappa = float(np.linalg.cond(system.matrix.toarray()))
    assert system.condition_number == pytest.approx(kappa, rel=1e-6)
    assert kappa <= condition_bound(system.step_matrices, idle) * (1 + 1e-12)
    if not several and linear < 0.9:
        assert condition_bound(system.step_matrices, idle) < 20 * kappa


def test_the_condition_bound_in_closed_form() -> None:
    """(1 + a)(1 + a + … + a^T) for one contracting variable; 2 (T + 1) at a = 1."""
    for a, expected in ((0.5, 1.5 * (2 - 0.5**10)), (1.0, 2 * 11)):
        system = CarlemanSystem(PolynomialMap([0.1], [[a]]), 10, order=1, closure="standard")
        assert condition_bound(system.step_matrices) == pytest.approx(expected)
