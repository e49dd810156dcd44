from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import comb

from torch_qsgd.errors import SizeError
from torch_qsgd.solvers.inverse_polynomial import (
    SUP_NORM,
    InversePolynomial,
    Values,
    inverse_polynomial,
)

KINDS = ["relative", "absolute", "cks"]


def interval(kappa: float, points: int = 20001) -> Values:
    """Points of [1/κ, 1], dense at both ends, where the polynomials swing fastest."""
    rise = (1 - np.cos(np.linspace(0, math.pi, points))) / 2
    return np.minimum(1 / kappa + (1 - 1 / kappa) * rise, 1)


def error(p: InversePolynomial, x: Values) -> Values:
    return 1 - x * p(x) if p.kind == "relative" else 1 / x - p(x)


def alternations(signed: Values, height: float) -> int:
    """How often the error swings between +height and −height, within a thousandth."""
    extreme = np.sign(signed[np.abs(signed) > 0.999 * height])
    return int(np.count_nonzero(np.diff(extreme))) + 1


@pytest.mark.parametrize(
    ("kind", "degrees"),
    [
        ("relative", [75, 379, 761, 7601]),
        ("absolute", [93, 541, 1153, 13817]),
        ("cks", [239, 1417, 3033, 36973]),
    ],
)
def test_degrees(kind: str, degrees: list[int]) -> None:
    found = [inverse_polynomial(kind, kappa, 1e-3).degree for kappa in (10, 50, 100, 1000)]
    assert found == degrees


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kappa", [1.001, 1.5, 10, 200])
@pytest.mark.parametrize("epsilon", [0.5, 1e-3, 1e-7])
def test_error_is_the_promised_one(kind: str, kappa: float, epsilon: float) -> None:
    p = inverse_polynomial(kind, kappa, epsilon)
    worst = np.abs(error(p, interval(kappa, 4001))).max()
    rounding = 1e-14 * kappa + 1e-10 * epsilon
    assert p.promised_error <= epsilon
    assert worst <= p.promised_error + rounding
    # CKS adds up what it neglects, the others promise what they do.
    assert worst >= (0.9 if kind == "cks" else 0.999) * p.promised_error - rounding


@pytest.mark.parametrize("kind", ["relative", "absolute"])
@pytest.mark.parametrize("kappa", [3, 40])
def test_minimax_polynomials_equioscillate(kind: str, kappa: float) -> None:
    """n + 1 alternations for n free coefficients: nothing is better (Chebyshev)."""
    p = inverse_polynomial(kind, kappa, 1e-3)
    assert alternations(error(p, interval(kappa)), p.promised_error) == p.coefficients.size + 1


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_one_term_less_would_not_do(kind: str) -> None:
    p = inverse_polynomial(kind, 20, 1e-4)
    shorter = inverse_polynomial(kind, 20, p.promised_error * 1.001)
    assert shorter.degree == p.degree
    coarser = inverse_polynomial(kind, 20, p.promised_error * 1.2)
    assert coarser.degree == p.degree - 2
    assert coarser.promised_error > p.promised_error * 1.001


def test_relative_closed_form() -> None:
    p = inverse_polynomial("relative", 7, 1e-2)
    a = 1 / 7
    n = (p.degree + 1) // 2
    chebyshev = np.polynomial.Chebyshev.basis(n)
    x = np.linspace(-1, 1, 100)
    expected = chebyshev((1 + a**2 - 2 * x**2) / (1 - a**2)) / chebyshev((1 + a**2) / (1 - a**2))
    np.testing.assert_allclose(1 - x * p(x), expected, atol=1e-12)
    assert p.promised_error == pytest.approx(1 / chebyshev((1 + a**2) / (1 - a**2)), rel=1e-12)


def test_absolute_closed_form() -> None:
    p = inverse_polynomial("absolute", 7, 1e-2)
    a = 1 / 7
    n = (p.degree + 1) // 2
    assert p.promised_error == pytest.approx((1 - a) ** n / (a * (1 + a) ** (n - 1)), rel=1e-12)
    ell = np.polynomial.Chebyshev.basis(n) + (1 - a) / (1 + a) * np.polynomial.Chebyshev.basis(
        n - 1
    )
    x = np.linspace(-1, 1, 100)
    ratio = ell((2 * x**2 - (1 + a**2)) / (1 - a**2)) / ell(-(1 + a**2) / (1 - a**2))
    np.testing.assert_allclose(x * p(x), 1 - ratio, atol=1e-12)


def test_cks_coefficients_are_binomial_tails() -> None:
    kappa, epsilon = 3, 0.1
    p = inverse_polynomial("cks", kappa, epsilon)
    b = math.ceil(kappa**2 * math.log(kappa / epsilon))
    j = np.arange(p.coefficients.size)
    tails = [sum(comb(2 * b, i) for i in range(b + k + 1, 2 * b + 1)) / 4**b for k in j]
    np.testing.assert_allclose(p.coefficients, 4.0 * (-1.0) ** j * tails, rtol=1e-11)
    # Not cut off, they are (1 − (1 − x²)^b)/x.
    x = np.linspace(0.01, 1, 50)
    assert np.abs((1 - (1 - x * x) ** b) / x - p(x)).max() < epsilon / 10


@pytest.mark.parametrize("kind", KINDS)
def test_call_agrees_with_numpy_and_is_odd(kind: str) -> None:
    p = inverse_polynomial(kind, 30, 1e-3)
    every = np.zeros(p.degree + 1)
    every[1::2] = p.coefficients
    x = np.random.default_rng(1).uniform(-1, 1, size=(3, 40))
    np.testing.assert_allclose(p(x), np.polynomial.chebyshev.chebval(x, every), atol=1e-11)
    np.testing.assert_array_equal(p(-x), -p(x))
    assert p(0.5).shape == ()


def test_values_keep_their_digits_at_a_high_degree() -> None:
    """Clenshaw's plain recurrence loses five more digits near x = 0."""
    p = inverse_polynomial("absolute", 1000, 1e-3)
    x = np.linspace(1e-3, 3e-3, 30)
    theta = np.arccos(x.astype(np.longdouble))
    odd = np.arange(1, p.degree + 1, 2).astype(np.longdouble)
    expected = np.array([np.sum(p.coefficients * np.cos(odd * angle)) for angle in theta])
    np.testing.assert_allclose(p(x), expected.astype(float), rtol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("kappa", "epsilon"), [(1.2, 1e-2), (10, 1e-3), (60, 1e-8)])
def test_maximum(kind: str, kappa: float, epsilon: float) -> None:
    p = inverse_polynomial(kind, kappa, epsilon)
    x = np.cos(np.linspace(0, math.pi / 2, 40 * p.degree))
    on_grid = np.abs(p(x)).max()
    # The grid misses a maximum by (degree · step)²/2 = 8e-4 at most, and never exceeds it.
    assert on_grid * (1 - 1e-12) <= p.maximum <= on_grid * (1 + 8e-4)
    near = np.abs(x[np.argmax(np.abs(p(x)))] + np.linspace(-1, 1, 2001) * 0.04 / p.degree)
    assert p.maximum == pytest.approx(np.abs(p(np.minimum(near, 1))).max(), rel=1e-7)
    assert p.maximum / p.normalization == pytest.approx(SUP_NORM)


@pytest.mark.parametrize(("epsilon", "ratio"), [(1e-2, 1.11), (1e-3, 1.30), (1e-6, 1.76)])
def test_maximum_of_the_relative_kind(epsilon: float, ratio: float) -> None:
    assert inverse_polynomial("relative", 100, epsilon).maximum / 100 == pytest.approx(
        ratio, abs=0.006
    )


def test_frozen() -> None:
    p = inverse_polynomial("relative", 10, 1e-3)
    with pytest.raises(ValueError, match="read-only"):
        p.coefficients[0] = 0


@pytest.mark.parametrize("kappa", [1, 0.5, -3, math.inf, math.nan])
def test_bad_kappa(kappa: float) -> None:
    with pytest.raises(ValueError, match="kappa must be a number above 1"):
        inverse_polynomial("relative", kappa, 1e-3)


@pytest.mark.parametrize("epsilon", [0, 1, -0.1, 2, math.nan])
def test_bad_epsilon(epsilon: float) -> None:
    with pytest.raises(ValueError, match="epsilon must be a number above 0 and below 1"):
        inverse_polynomial("absolute", 10, epsilon)


def test_unknown_kind_names_the_known() -> None:
    with pytest.raises(ValueError, match="one of absolute, cks, relative"):
        inverse_polynomial("remez", 10, 1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_too_large_is_refused_at_once(kind: str) -> None:
    with pytest.raises(SizeError, match="smaller kappa"):
        inverse_polynomial(kind, 1e12, 1e-3)
