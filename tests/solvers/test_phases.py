from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from torch_qsgd.solvers import phases as module
from torch_qsgd.solvers.inverse_polynomial import inverse_polynomial
from torch_qsgd.solvers.phases import PhaseError, qsp_value, symmetric_phases

Values = NDArray[np.float64]


def chebyshev(coefficients: Values, parity: int, x: Values) -> Values:
    every = np.zeros(2 * coefficients.size)
    every[parity::2] = coefficients
    return np.asarray(np.polynomial.chebyshev.chebval(x, every))


def product(phases: Values, x: Values) -> NDArray[np.complex128]:
    """U(x) of the module's text, of shape (len(x), 2, 2), by matrix products."""
    theta = np.arccos(x)
    signal = np.empty((x.size, 2, 2), dtype=complex)
    signal[:, 0, 0] = signal[:, 1, 1] = np.cos(theta)
    signal[:, 0, 1] = signal[:, 1, 0] = 1j * np.sin(theta)
    total = np.broadcast_to(np.eye(2, dtype=complex), signal.shape)
    for k, phase in enumerate(phases):
        total = total @ np.diag(np.exp([1j * phase, -1j * phase]))
        if k < len(phases) - 1:
            total = total @ signal
    return total


def check(coefficients: Values, parity: int, x: Values, tolerance: float = 1e-10) -> Values:
    phases = symmetric_phases(coefficients, parity)
    assert phases.shape == (2 * (coefficients.size - 1) + parity + 1,)
    np.testing.assert_array_equal(phases, phases[::-1])
    value = product(phases, x)
    np.testing.assert_allclose(
        value[:, 0, 0].imag, chebyshev(coefficients, parity, x), rtol=0, atol=tolerance
    )
    np.testing.assert_allclose(qsp_value(phases, x), value[:, 0, 0], rtol=0, atol=1e-11)
    return phases


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    terms=st.integers(1, 40),
    parity=st.integers(0, 1),
    sup=st.floats(1e-6, 0.999),
)
def test_random_polynomials(seed: int, terms: int, parity: int, sup: float) -> None:
    generator = np.random.default_rng(seed)
    coefficients = generator.standard_normal(terms)
    grid = np.cos(np.linspace(0, math.pi, 64 * (2 * terms + 1)))
    coefficients *= sup / (np.abs(chebyshev(coefficients, parity, grid)).max() * 1.0007)
    check(coefficients, parity, generator.uniform(-1, 1, 20))


@pytest.mark.parametrize(
    ("kind", "kappa", "degree"),
    [("absolute", 50, 541), ("relative", 264, 2007), ("relative", 1000, 7601)],
)
@pytest.mark.parametrize("sup", [0.5, 0.99])
def test_high_degrees(kind: str, kappa: float, degree: int, sup: float) -> None:
    p = inverse_polynomial(kind, kappa, 1e-3)
    assert p.degree == degree
    generator = np.random.default_rng(degree)
    near_zero = generator.uniform(-3 / kappa, 3 / kappa, 10)  # where |p| comes to its maximum
    x = np.concatenate([generator.uniform(-1, 1, 10), near_zero])
    check(p.coefficients * (sup / p.maximum), 1, x)


def test_even_at_a_high_degree() -> None:
    """A narrow Gaussian, whose coefficients come from its values."""
    x = np.cos(math.pi * (np.arange(2002) + 0.5) / 2002)
    every = np.polynomial.chebyshev.chebfit(x[::8], 0.9 * np.exp(-50 * x[::8] ** 2), 200)
    coefficients = np.zeros(1001)
    coefficients[:101] = every[::2]
    coefficients[1000] = 1e-3
    check(coefficients, 0, np.random.default_rng(3).uniform(-1, 1, 20))


def test_by_hand() -> None:
    # f = c: one phase, sin ψ = c. f = c T_1 = Im(x e^{2iψ}).
    np.testing.assert_allclose(symmetric_phases([0.5], 0), [math.pi / 6])
    np.testing.assert_allclose(symmetric_phases([0.5], 1), [math.pi / 12] * 2)
    np.testing.assert_array_equal(symmetric_phases([0.0, 0.0], 1), np.zeros(4))
    # Small polynomials: the phases are half the coefficients, outermost the highest.
    found = symmetric_phases([3e-7, 2e-7, 1e-7], 1)
    np.testing.assert_allclose(found, np.array([1, 2, 3, 3, 2, 1]) * 0.5e-7, rtol=1e-6)


def test_value_of_zero_phases_is_chebyshev() -> None:
    x = np.linspace(-1, 1, 30).reshape(5, 6)
    found = qsp_value(np.zeros(8), x)
    np.testing.assert_allclose(found, np.cos(7 * np.arccos(x)), atol=1e-13)
    assert found.shape == x.shape
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        qsp_value([0.0], 1.1)


@pytest.mark.parametrize(
    ("coefficients", "parity"), [([1.0], 0), ([0.0, 1.0], 1), ([0.7, 0.7], 1), ([-0.2, 0.9], 0)]
)
def test_too_large_a_polynomial(coefficients: list[float], parity: int) -> None:
    with pytest.raises(ValueError, match="scale the polynomial down"):
        symmetric_phases(coefficients, parity)


def test_too_close_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    coefficients = [0.0, 1 - 1e-9]
    check(np.array(coefficients), 1, np.linspace(-1, 1, 9), tolerance=1e-9)
    monkeypatch.setattr(module, "LONGEST", 2**10)
    with pytest.raises(PhaseError, match="too close to 1"):
        symmetric_phases(coefficients, 1)


def test_wrong_phases_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    strip = module._strip
    monkeypatch.setattr(module, "_strip", lambda alpha, beta: strip(alpha, beta) + 1e-6)
    with pytest.raises(PhaseError, match="miss their polynomial"):
        symmetric_phases([0.3, 0.2], 1)


@pytest.mark.parametrize(
    "coefficients", [[], [[0.1]], [0.1j], [math.nan], [math.inf, 0.0]], ids=str
)
def test_bad_coefficients(coefficients: list[complex]) -> None:
    with pytest.raises((ValueError, TypeError), match=r"coefficients (must be|holds NaN)"):
        symmetric_phases(coefficients, 1)


def test_bad_parity() -> None:
    with pytest.raises(ValueError, match="parity"):
        symmetric_phases([0.1], 2)
