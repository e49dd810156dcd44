r"""Odd polynomials that approximate 1/x on :math:`[1/\kappa, 1]` and, being odd, on its negative.

A quantum solver applies such a polynomial to the singular values of a matrix; its degree is the
number of queries. With a = 1/κ and s(x) = (1 + a² − 2x²)/(1 − a²), which maps [a, 1] onto [−1, 1]
and (−a, a) beyond 1:

- ``"relative"``: x p(x) = 1 − T_n(s) / T_n(s(0)), of degree 2n − 1. Since T_n grows fastest outside
  [−1, 1], no odd polynomial of that degree has a smaller max |1 − x p(x)|.
- ``"absolute"``: x p(x) = 1 − L_n(s) / L_n(s(0)) with L_n = T_n − (1−a)/(1+a) T_{n−1}. On [a, 1],
  L_n(s(x)) is x times an equioscillating function, so max |1/x − p(x)| is the smallest possible
  [Sunderhauf2025]_.
- ``"cks"``: (1 − (1 − x²)^b)/x, cut off in its Chebyshev expansion [Childs2017]_.

.. [Childs2017] A. M. Childs, R. Kothari and R. D. Somma, Quantum algorithm for systems of linear
   equations with exponentially improved dependence on precision, arXiv:1511.02306.
.. [Sunderhauf2025] Matrix inversion polynomials for the quantum singular value transformation,
   arXiv:2507.15537.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from torch_qsgd.checks import require_number, require_one_of
from torch_qsgd.errors import SizeError
from torch_qsgd.linear_system import real_array

Values = NDArray[np.float64]

#: Sup norm on [−1, 1] of the polynomial that a circuit applies. Phases exist below 1; the closer to
#: 1, the likelier is success, which is lost by its square, and the longer are the Fourier
#: transforms that find the phases.
SUP_NORM = 0.99

#: A smaller ε is below the rounding of the polynomial's own values.
LEAST_EPSILON = 1e-15

#: More coefficients than this (a gigabyte) are refused.
MOST_COEFFICIENTS = 2**27


@dataclass(frozen=True)
class InversePolynomial:
    r"""The odd polynomial :math:`p(x) = \sum_j c_j T_{2j+1}(x) \approx 1/x`.

    Made by :func:`inverse_polynomial`.

    Attributes:
        kind: ``"relative"``, ``"absolute"`` or ``"cks"``.
        kappa: κ; p approximates 1/x on [1/κ, 1].
        epsilon: the error asked for.
        coefficients: c, of shape ((degree + 1) / 2,), float64.
        promised_error: what the closed form promises, at most ``epsilon``: max |1 − x p(x)| over
            [1/κ, 1] for ``"relative"``, max |1/x − p(x)| for the others, which is the larger.
            Rounding adds some 1e-16 κ.
    """

    kind: str
    kappa: float
    epsilon: float
    coefficients: Values
    promised_error: float

    @property
    def degree(self) -> int:
        """The degree, and so the number of queries."""
        return 2 * self.coefficients.size - 1

    @cached_property
    def maximum(self) -> float:
        """The sup norm of p on [−1, 1], to rounding. Cost: a Fourier transform of 8 × degree."""
        c = self.coefficients
        size = 8 * c.size
        # p(cos θ) at θ_k = π(2k+1)/(4 size): with odd cosines only, a DCT of type 4.
        values = np.abs(scipy.fft.dct(np.pad(c, (0, size - c.size)), type=4)) / 2
        # Between grid points a trigonometric polynomial of this degree can rise by 1/cos(π/16) at
        # most [Ehlich and Zeller 1964], so only peaks that high can hold the maximum.
        padded = np.pad(values, 1, mode="edge")
        peak = (values >= padded[:-2]) & (values >= padded[2:])
        tall = np.flatnonzero(peak & (values >= math.cos(math.pi / 16) * values.max()))
        best = tall[np.argsort(values[tall])[-8:]]
        step = math.pi / (2 * size)
        return max(self._peak(step * (k + 0.5), step) for k in best)

    @property
    def normalization(self) -> float:
        """M such that the circuit applies p / M, whose sup norm is :data:`SUP_NORM`."""
        return self.maximum / SUP_NORM

    def __call__(self, x: ArrayLike) -> Values:
        """p(x), elementwise, for x in [−1, 1]. Cost: degree / 2 steps of Clenshaw's recurrence."""
        x = real_array("x", x)
        if not (np.abs(x) <= 1).all():
            raise ValueError("x must lie in [-1, 1]")
        # T_{2j+1} = 2y T_{2j−1} − T_{2j−3} with y = T_2(x): the recurrence skips the even ones.
        # Near y = ±1 Clenshaw's form loses digits; Reinsch's, in b_j ∓ b_{j+1} and 2(y ∓ 1), does
        # not.
        low = x * x < 0.5
        sign = np.where(low, -1.0, 1.0)
        shifted = np.where(low, 4 * x * x, -4 * (1 - x) * (1 + x))
        total, difference = np.zeros_like(x), np.zeros_like(x)
        for c in self.coefficients[::-1]:
            difference = c + shifted * total + sign * difference
            total = difference + sign * total
        return np.asarray(x * np.where(low, 2 * total - difference, difference))

    def _peak(self, theta: float, step: float) -> float:
        """Refine a maximum of |p(cos θ)| by Newton's method on its derivative."""
        odd = np.arange(1, self.degree + 1, 2)
        best = 0.0
        for _ in range(5):
            cosine, sine = np.cos(odd * theta), np.sin(odd * theta)
            best = max(best, abs(float(self.coefficients @ cosine)))
            slope = -float(self.coefficients @ (odd * sine))
            curvature = -float(self.coefficients @ (odd * odd * cosine))
            if curvature == 0:
                break
            theta -= float(np.clip(slope / curvature, -step, step))
        return best


def inverse_polynomial(kind: str, kappa: float, epsilon: float) -> InversePolynomial:
    r"""The odd polynomial of least degree within its kind that approximates 1/x to ``epsilon``.

    ===============  ======================================  ==============================
    kind             error on [1/κ, 1], a = 1/κ              degree
    ===============  ======================================  ==============================
    ``"relative"``   \|1 − x p(x)\| ≤ 1/T_n((1+a²)/(1−a²))   2n − 1 ≈ κ ln(2/ε)
    ``"absolute"``   \|1/x − p(x)\| ≤ (1−a)^n/(a(1+a)^(n−1)) 2n − 1 ≈ κ ln(κ/ε)
    ``"cks"``        \|1/x − p(x)\| ≤ ε                      2D + 1 with D = ⌈√(b ln(4b/ε))⌉,
                                                             b = ⌈κ² ln(κ/ε)⌉
    ===============  ======================================  ==============================

    Args:
        kind: ``"relative"``, ``"absolute"`` or ``"cks"``.
        kappa: κ > 1.
        epsilon: ε, from 1e-15 up and below 1.

    Raises:
        ValueError: for an unknown kind, κ ≤ 1, ε outside of its range, or what is no number.
        SizeError: where the coefficients would not fit in memory.

    Cost: a cosine transform of half the degree; for ``"cks"`` as many binomial tails.

    Source: the module's references; "relative" is a classical minimax problem.

    Example:
        >>> p = inverse_polynomial("relative", kappa=10, epsilon=1e-3)
        >>> p.degree, bool(abs(1 - 0.3 * p(0.3)) <= 1e-3)
        (75, True)
    """
    check_options(kind, epsilon, float("nan") if kappa is None else kappa)
    coefficients, promised = _KINDS[kind](float(kappa), float(epsilon))
    coefficients.flags.writeable = False
    return InversePolynomial(kind, float(kappa), float(epsilon), coefficients, promised)


def check_options(kind: str, epsilon: float, kappa: float | None) -> None:
    """Raise what :func:`inverse_polynomial` would, before κ need be known."""
    require_one_of("kind", kind, tuple(sorted(_KINDS)))
    if require_number("epsilon", epsilon, 0, 1) < LEAST_EPSILON:
        raise ValueError(
            f"epsilon must be at least {LEAST_EPSILON:g}, the rounding of double precision: got "
            f"{epsilon!r}"
        )
    # Singular values fill [1/kappa, 1], and a polynomial of a single point would be a constant.
    if kappa is not None:
        require_number("kappa", kappa, 1)


# ---- The two minimax polynomials -----------------------------------------------------------------


def _relative(kappa: float, epsilon: float) -> tuple[Values, float]:
    rate = _rate(kappa)

    def promised(n: int) -> float:
        return 2 * math.exp(-n * rate) / (1 + math.exp(-2 * n * rate))

    def ratio(n: int, x: Values) -> Values:
        """T_n(s(x)) / T_n(s(0))."""
        outside, inside, angle = _angles(kappa, x)
        ratio = np.empty_like(x)
        # cosh(nτ)/cosh(nt) with exponents below zero, so that it cannot overflow.
        tau = angle[outside]
        ratio[outside] = np.exp(n * (tau - rate)) * (1 + np.exp(-2 * n * tau))
        ratio[outside] /= 1 + math.exp(-2 * n * rate)
        ratio[inside] = np.cos(n * angle[inside]) * promised(n)
        return ratio

    n = _least(math.acosh(1 / epsilon) / rate, promised, epsilon)
    return _coefficients(n, ratio), promised(n)


def _absolute(kappa: float, epsilon: float) -> tuple[Values, float]:
    rate = _rate(kappa)
    shrink = math.exp(-rate)  # (1 − a)/(1 + a)

    def promised(n: int) -> float:
        return (kappa - 1) * math.exp(-(n - 1) * rate)

    def ratio(n: int, x: Values) -> Values:
        """L_n(s(x)) / L_n(s(0)), where L_n(s(0)) = exp((n−1)t) sinh t."""
        outside, inside, angle = _angles(kappa, x)
        ratio = np.empty_like(x)
        # L_n(cosh τ) = (e^{nτ}(1 − e^{−t−τ}) + e^{−nτ}(1 − e^{τ−t}))/2, both terms positive: as a
        # difference of two cosh it would lose κ of its digits.
        tau = angle[outside]
        ratio[outside] = -np.exp(n * (tau - rate)) * np.expm1(-rate - tau)
        ratio[outside] -= np.exp(-n * (tau + rate)) * np.expm1(tau - rate)
        ratio[outside] /= -math.expm1(-2 * rate)
        phi = angle[inside]
        ratio[inside] = np.cos(n * phi) - shrink * np.cos((n - 1) * phi)
        ratio[inside] *= math.exp(-(n - 1) * rate) / math.sinh(rate)
        return ratio

    n = _least(1 + math.log((kappa - 1) / epsilon) / rate, promised, epsilon)
    return _coefficients(n, ratio), promised(n)


def _rate(kappa: float) -> float:
    """t = arcosh s(0) = ln((1+a)/(1−a))."""
    return 2 * math.atanh(1 / kappa)


def _angles(kappa: float, x: Values) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Values]:
    """Where s(x) > 1, where not, and there τ = arcosh s(x), or φ = arccos s(x)."""
    # (s − 1)/2, whose half-angle formulas keep the digits that s ≈ 1 has lost.
    half = (1 / kappa - x) * (1 / kappa + x) / ((1 - 1 / kappa) * (1 + 1 / kappa))
    outside = half > 0
    angle = np.empty_like(x)
    angle[outside] = 2 * np.arcsinh(np.sqrt(half[outside]))
    angle[~outside] = 2 * np.arcsin(np.sqrt(np.minimum(-half[~outside], 1)))
    return outside, ~outside, angle


def _least(estimate: float, promised: Callable[[int], float], epsilon: float) -> int:
    """The least n ≥ 1 with promised(n) ≤ ε, from its formula, which rounding may put off by one."""
    n = max(1, _fitting(estimate))
    while promised(n) > epsilon:
        n += 1
    while n > 1 and promised(n - 1) <= epsilon:
        n -= 1
    return n


def _coefficients(n: int, ratio: Callable[[int, Values], Values]) -> Values:
    """Chebyshev coefficients of (1 − ratio(x))/x, an odd polynomial of degree 2n − 1.

    Interpolation at the n positive zeros of T_2n, exact for that degree; oddness gives the rest.
    """
    # As sines, which keep the digits of the smallest zeros.
    x = np.sin(math.pi * (2 * np.arange(n)[::-1] + 1) / (4 * n))
    return np.asarray(scipy.fft.dct((1 - ratio(n, x)) / x, type=4) / n)


# ---- The polynomial of Childs, Kothari and Somma -------------------------------------------------


def _cks(kappa: float, epsilon: float) -> tuple[Values, float]:
    power = math.ceil(kappa**2 * math.log(kappa / epsilon))
    terms = 1 + _fitting(math.sqrt(power * math.log(4 * power / epsilon)))
    # The expansion ends by itself at j = b − 1, which the cut-off passes for small b.
    j = np.arange(min(terms, power))
    signs = np.where(j % 2, -4.0, 4.0)
    coefficients = signs * binom.sf(power + j, 2 * power, 0.5)
    # What (1 − x²)^b leaves at x = 1/κ, and the terms cut off, which fall by a factor each.
    dropped = np.arange(terms, min(2 * terms, power))
    promised = kappa * math.exp(power * math.log1p(-1 / kappa**2))
    promised += 4 * float(binom.sf(power + dropped, 2 * power, 0.5).sum())
    return coefficients, promised


def _fitting(terms: float) -> int:
    if not terms <= MOST_COEFFICIENTS:
        raise SizeError(
            f"the polynomial would have {terms:.1e} coefficients, more than the "
            f"{MOST_COEFFICIENTS:.1e} allowed: use a smaller kappa, that is a better conditioned "
            "system or a tighter subnormalization"
        )
    return math.ceil(terms)


_KINDS: dict[str, Callable[[float, float], tuple[Values, float]]] = {
    "relative": _relative,
    "absolute": _absolute,
    "cks": _cks,
}
