"""Singular values of a window from a spectrum, against the matrices themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_qsgd.auditing.conditioning import _inverse_bounds, conditioning
from torch_qsgd.carleman import CarlemanSystem, PolynomialMap
from torch_qsgd.hessian import Spectrum
from torch_qsgd.hessian.dynamics import Dynamics

PLAIN, HEAVY = Dynamics(0.1), Dynamics(0.05, momentum=0.8)
NESTEROV = Dynamics(0.05, momentum=0.8, nesterov=True)


def spectrum_of_nodes(nodes: Any, resolution: float = 1e-9) -> Spectrum:
    nodes = np.sort(np.asarray(nodes, dtype=float))
    k = len(nodes)
    return Spectrum(
        nodes=nodes,
        weights=np.full(k, 1 / k),
        exact=np.ones(k, dtype=bool),
        dimension=k,
        lambda_min=nodes[0],
        lambda_min_bound=0.0,
        lambda_max=nodes[-1],
        lambda_max_bound=0.0,
        trace=float(nodes.sum()),
        trace_error=0.0,
        resolution=resolution,
        products=k,
        steps=k,
        probes=1,
        seconds=0.0,
        kind="hessian",
    )


def symmetric(eigenvalues: Any, seed: int = 0) -> np.ndarray:
    """A full matrix of these eigenvalues."""
    n = len(eigenvalues)
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    return basis @ np.diag(eigenvalues) @ basis.T


def step_matrix(H: np.ndarray, dynamics: Dynamics) -> np.ndarray:
    """One step of SGD on L = ⟨u, Hu⟩/2, column by column: of u, or of (u, ηv) with momentum."""
    n, eta, mu = len(H), dynamics.lr, dynamics.momentum

    def step(state: np.ndarray) -> np.ndarray:
        u, v = state[:n], state[n:] / eta
        v = mu * v + H @ u
        update = H @ u + mu * v if dynamics.nesterov else v
        return np.concatenate([u - eta * update, eta * v])

    if not mu:
        return np.eye(n) - eta * H
    return np.stack([step(unit) for unit in np.eye(2 * n)], axis=1)


def written_out(A: np.ndarray, steps: int, idle: int) -> np.ndarray:
    """ℒ, a block at a time."""
    n = len(A)
    L = np.eye(n * (steps + 1 + idle))
    for t in range(steps + idle):
        here, there = slice(t * n, (t + 1) * n), slice((t + 1) * n, (t + 2) * n)
        L[there, here] = -A if t < steps else -np.eye(n)
    return L


def inverse_written_out(A: np.ndarray, steps: int, idle: int) -> np.ndarray:
    """ℒ⁻¹, whose blocks are powers of A."""
    n, count = len(A), steps + 1 + idle
    inverse = np.zeros((count * n, count * n))
    for row in range(count):
        for column in range(row + 1):
            lag = min(row, steps) - min(column, steps)
            block = np.linalg.matrix_power(A, lag)
            inverse[row * n : (row + 1) * n, column * n : (column + 1) * n] = block
    return inverse


def kronecker_power(A: np.ndarray, j: int) -> np.ndarray:
    return A if j == 1 else np.kron(A, kronecker_power(A, j - 1))


# ---- Order 1 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamics", [PLAIN, HEAVY, NESTEROV], ids=["plain", "heavy", "nesterov"])
@pytest.mark.parametrize("idle", [0, 3])
@pytest.mark.parametrize(
    "eigenvalues",
    [
        [0.5, 1.0, 2.0, 4.0, 8.0, 15.0],
        [0.0, 1.0, 2.0, 4.0, 8.0, 23.0],  # a multiplier of 1 and one of −1.3 or so
        [-1.5, -0.1, 0.0, 0.3, 9.0, 12.0],
        [10.0, 10.0, 10.0, 10.0, 10.0, 10.0],  # a multiplier of 0
    ],
    ids=["dissipative", "stiff", "indefinite", "one value"],
)
def test_singular_values_are_those_of_the_matrix(
    eigenvalues: list[float], idle: int, dynamics: Dynamics
) -> None:
    found = conditioning(spectrum_of_nodes(eigenvalues), dynamics, steps=12, order=1, idle=idle)
    A = step_matrix(symmetric(eigenvalues), dynamics)
    for i, steps in enumerate(found.steps):
        sigma = scipy.linalg.svdvals(written_out(A, steps, idle))
        assert found.largest[i] == pytest.approx(sigma[0], rel=1e-9)
        assert found.smallest[i] == pytest.approx(sigma[-1], rel=1e-9)
        assert found.kappa[i] == pytest.approx(sigma[0] / sigma[-1], rel=1e-9)
    assert found.steps[0] == 1
    assert found.steps[-1] == 12
    assert found.kappa_order == found.kappa


@settings(max_examples=40, deadline=None)
@given(
    nodes=st.lists(st.floats(-3, 60), min_size=1, max_size=5),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    nesterov=st.booleans(),
    steps=st.integers(1, 9),
    idle=st.integers(0, 2),
)
def test_the_extreme_modes_are_found(
    nodes: list[float], momentum: float, nesterov: bool, steps: int, idle: int
) -> None:
    dynamics = Dynamics(0.1, momentum, nesterov and momentum > 0)
    found = conditioning(
        spectrum_of_nodes(nodes, resolution=0.0), dynamics, steps=steps, order=1, idle=idle
    )
    sigma = scipy.linalg.svdvals(written_out(step_matrix(np.diag(nodes), dynamics), steps, idle))
    assert found.largest[-1] == pytest.approx(sigma[0], rel=1e-9)
    # Dense singular values are off by some 1e-16 of the largest, and more where that is large.
    assert found.smallest[-1] == pytest.approx(sigma[-1], rel=2e-6, abs=1e-13 * sigma[0])


def test_the_package_builds_the_same_system() -> None:
    eigenvalues = [-0.5, 0.2, 3.0]
    affine = PolynomialMap([0.1, -0.2, 0.3], np.eye(3) - 0.1 * symmetric(eigenvalues))
    system = CarlemanSystem(affine, steps=9, order=1, idle=2, closure="standard")
    found = conditioning(spectrum_of_nodes(eigenvalues), PLAIN, steps=9, order=1, idle=2)
    assert found.kappa[-1] == pytest.approx(system.condition_number, rel=1e-9)


def test_nodes_within_the_resolution_are_zero() -> None:
    tiny = conditioning(spectrum_of_nodes([-1e-4, 5.0], 1e-3), PLAIN, steps=50, order=1)
    zero = conditioning(spectrum_of_nodes([0.0, 5.0], 1e-3), PLAIN, steps=50, order=1)
    assert tiny == zero


def test_the_ends_count_where_no_node_lies_there() -> None:
    inner = spectrum_of_nodes([1.0, 5.0])
    wider = Spectrum(**{**inner.__dict__, "lambda_min": -2.0})
    found = conditioning(wider, PLAIN, steps=10, order=1)
    assert found == conditioning(spectrum_of_nodes([-2.0, 5.0]), PLAIN, steps=10, order=1)


# ---- Order N -----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(
    "eigenvalues", [[-1.0, 3.0], [1.0, 5.0], [0.0, 24.0]], ids=["grows", "falls", "stiff"]
)
def test_diagonal_blocks_at_higher_order(eigenvalues: list[float], order: int) -> None:
    """Of a linear map without forcing, the diagonal blocks are the whole system."""
    linear = PolynomialMap([0.0, 0.0], np.eye(2) - 0.1 * symmetric(eigenvalues))
    system = CarlemanSystem(linear, steps=8, order=order, closure="standard", start=[1.0, 0.0])
    found = conditioning(spectrum_of_nodes(eigenvalues), PLAIN, steps=8, order=order)
    assert found.order == order
    assert found.kappa_order[-1] == pytest.approx(system.condition_number, rel=1e-8)
    grows = min(eigenvalues) < 0 or max(eigenvalues) > 20
    assert (found.kappa_order[-1] > found.kappa[-1]) == grows


@pytest.mark.parametrize("dynamics", [HEAVY, NESTEROV], ids=["heavy", "nesterov"])
@pytest.mark.parametrize("eigenvalues", [[-1.0, 3.0], [1.0, 5.0]], ids=["grows", "falls"])
def test_diagonal_blocks_with_momentum(eigenvalues: list[float], dynamics: Dynamics) -> None:
    A = step_matrix(np.diag(eigenvalues), dynamics)
    sigma = np.concatenate(
        [scipy.linalg.svdvals(written_out(kronecker_power(A, j), 6, 1)) for j in (1, 2)]
    )
    found = conditioning(spectrum_of_nodes(eigenvalues), dynamics, steps=6, order=2, idle=1)
    assert found.kappa_order[-1] == pytest.approx(sigma.max() / sigma.min(), rel=1e-9)


# ---- Growth ------------------------------------------------------------------------------------


def test_fully_dissipative_dynamics_saturate() -> None:
    """(1 + m)/(1 − m) ≈ 2/(ηλ_min), DESIGN §3: within 1e-3 from T = 30/(ηλ_min) on."""
    found = conditioning(spectrum_of_nodes([0.5, 2.0, 9.0]), PLAIN, steps=2000, order=1)
    assert found.regime == "T"
    assert found.kappa[-1] == pytest.approx(1.95 / 0.05, rel=1e-3)
    assert abs(found.exponent) < 0.1
    assert np.all(np.diff(found.kappa) > 0)


def test_almost_dissipative_dynamics_grow_as_t() -> None:
    """B(1) has the singular values 2 sin((2k − 1)π/(2(2T + 3)))."""
    found = conditioning(spectrum_of_nodes([0.0, 2.0, 9.0]), PLAIN, steps=1000, order=2)
    assert found.regime == "T²"
    assert found.exponent == pytest.approx(1.0, abs=0.02)
    assert 0 < found.exponent_error < 0.01
    for i, T in enumerate(found.steps):
        sines = np.sin(np.array([1, 2 * T + 1]) * math.pi / (2 * (2 * T + 3)))
        np.testing.assert_allclose([found.smallest[i], found.largest[i]], 2 * sines, rtol=1e-12)
    assert found.kappa_order == found.kappa  # products of multipliers of 1 are 1


def test_negative_curvature_grows_exponentially() -> None:
    found = conditioning(spectrum_of_nodes([-0.5, 2.0, 9.0]), PLAIN, steps=500, order=2)
    assert found.regime == "exponential"
    rates = np.diff(np.log(found.kappa[-3:])) / np.diff(found.steps[-3:])
    np.testing.assert_allclose(rates, math.log(1.05), rtol=1e-4)
    rates = np.diff(np.log(found.kappa_order[-3:])) / np.diff(found.steps[-3:])
    np.testing.assert_allclose(rates, 2 * math.log(1.05), rtol=1e-4)


def test_growth_within_the_window_decides_the_regime() -> None:
    spectrum = spectrum_of_nodes([-0.5, 9.0])  # 1.05^t passes 10 at t = 47.2
    assert conditioning(spectrum, PLAIN, steps=47, order=1).regime == "T²"
    assert conditioning(spectrum, PLAIN, steps=48, order=1).regime == "exponential"
    # At order N products of N modes grow, N times as fast.
    assert conditioning(spectrum, PLAIN, steps=23, order=2).regime == "T²"
    assert conditioning(spectrum, PLAIN, steps=24, order=2).regime == "exponential"


def test_without_a_slope_the_regime_is_the_cautious_one() -> None:
    assert conditioning(spectrum_of_nodes([9.0]), PLAIN, steps=1, order=1).regime == "T²"


@pytest.mark.parametrize("dynamics", [PLAIN, HEAVY, NESTEROV], ids=["plain", "heavy", "nesterov"])
@pytest.mark.parametrize("idle", [0, 2])
def test_tiny_singular_values_are_those_of_the_inverse(idle: int, dynamics: Dynamics) -> None:
    """The inverse holds powers of A; its norm is exact where σ_min itself has no digit left."""
    A = step_matrix(np.array([[-8.0]]), dynamics)
    inverse = inverse_written_out(A, 90, idle)
    found = conditioning(spectrum_of_nodes([-8.0]), dynamics, steps=90, order=1, idle=idle)
    assert found.smallest[-1] * np.linalg.norm(inverse, 2) == pytest.approx(1, rel=1e-10)
    assert found.kappa[-1] > 1e15


@settings(max_examples=40, deadline=None)
@given(
    node=st.floats(-3, 60),
    momentum=st.floats(0.05, 0.95),
    nesterov=st.booleans(),
    power=st.integers(1, 2),
    steps=st.integers(1, 30),
    idle=st.integers(0, 9),
)
def test_the_bound_is_one(
    node: float, momentum: float, nesterov: bool, power: int, steps: int, idle: int
) -> None:
    """What chooses the modes to look at, and stands for σ_min of large windows."""
    A = step_matrix(np.array([[node]]), Dynamics(0.1, momentum, nesterov))
    norm = np.linalg.norm(inverse_written_out(kronecker_power(A, power), steps, idle), 2)
    assert _inverse_bounds(A[None], power, steps, idle)[0] >= norm * (1 - 1e-9)


@pytest.mark.parametrize("dynamics", [PLAIN, HEAVY], ids=["plain", "heavy"])
@pytest.mark.parametrize("least", [-10.0, -1e140, -1e200, -1e308])
def test_beyond_float64_kappa_is_infinite(least: float, dynamics: Dynamics) -> None:
    found = conditioning(spectrum_of_nodes([least, 1.0]), dynamics, steps=3000, order=2)
    assert found.kappa[-1] == found.kappa_order[-1] == math.inf
    assert found.smallest[-1] == 0
    assert (found.exponent, found.exponent_error) == (math.inf, 0.0)
    assert found.regime == "exponential"


@pytest.mark.parametrize(("steps", "exponent"), [(1, math.nan), (2, math.nan), (3, 1.0)])
def test_few_steps_have_no_slope(steps: int, exponent: float) -> None:
    found = conditioning(spectrum_of_nodes([0.0]), PLAIN, steps=steps, order=1)
    assert found.steps == list(range(1, steps + 1))
    assert found.exponent == pytest.approx(exponent, abs=0.3, nan_ok=True)
    assert found.exponent_error == math.inf


def test_slope_and_its_error_are_those_of_least_squares() -> None:
    found = conditioning(spectrum_of_nodes([0.1, 7.0]), PLAIN, steps=300, order=1)
    half = len(found.steps) // 2
    x, y = np.log(found.steps[half:]), np.log(found.kappa[half:])
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    assert found.exponent == pytest.approx(slope, rel=1e-9)
    assert found.exponent_error == pytest.approx(math.sqrt(covariance[0, 0]), rel=1e-9)


def test_large_windows_with_momentum_are_bounded() -> None:
    """Above 2048 rows σ_min is a lower bound, and σ_max that of a window half as long."""
    spectrum = spectrum_of_nodes([0.5, 9.0])
    exact = conditioning(spectrum, HEAVY, steps=1020, order=1)
    bounded = conditioning(spectrum, HEAVY, steps=1030, order=1)
    assert bounded.largest[-1] == pytest.approx(exact.largest[-1], rel=1e-5)
    assert 0.5 * exact.smallest[-1] < bounded.smallest[-1] < exact.smallest[-1]


def test_a_rate_of_zero_leaves_all_as_it_is() -> None:
    found = conditioning(spectrum_of_nodes([-3.0, 5.0]), Dynamics(0.0), steps=40, order=2)
    rest = conditioning(spectrum_of_nodes([0.0]), PLAIN, steps=40, order=2)
    assert found.kappa == rest.kappa


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 0), ("order", 0), ("idle", -1), ("steps", 2.5)]
)
def test_bad_numbers_are_refused(name: str, value: Any) -> None:
    options = {"steps": 5, "order": 1, "idle": 0, name: value}
    with pytest.raises(ValueError, match=f"{name} must be an integer of at least"):
        conditioning(spectrum_of_nodes([1.0]), PLAIN, **options)
