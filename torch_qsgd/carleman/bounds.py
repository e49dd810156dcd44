r"""What can be said of a Carleman system before it is solved: truncation error and order.

With :math:`g(x) = \sum_p \|G_p\| x^p` the scalar recursion :math:`x_{t+1} = g(x_t)`,
:math:`x_0 = \|u(0)\|` majorises the trajectory, :math:`\|u_t\| \le x_t`, for any degree and any T.
Of several maps each ‖G_p‖ is the largest of all steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.sparse as sparse
from numpy.typing import ArrayLike, NDArray

from torch_qsgd.carleman.polynomial import PolynomialMap, trajectory
from torch_qsgd.checks import require_integer, require_number, require_one_of

Maps = PolynomialMap | Sequence[PolynomialMap]
#: The rescaling is searched from the majorant of ‖u‖ to this many times it; in the wider ranges
#: where the first holds none, as for a linear part that grows.
_WIDEST = (1e8, 1e16, 1e32, 1e64, 1e128, 1e256)
_LARGEST = 709.0  # logarithms up to here have an exponential in float64


@dataclass(frozen=True)
class Certificate:
    r"""A proof that the truncated standard form converges, and how fast.

    .. math::
        \|u_t - \hat u_t\| \le \gamma \rho^{N+1} \sum_{k=1}^{t} Q^k, \qquad
        Q = q \text{ if } q \le 1, \text{ else } q^N, \qquad q = g(\gamma)/\gamma

    Attributes:
        gamma: γ, the rescaling that was chosen.
        q: growth of a step in the weighted norm :math:`\max_j \gamma^{-j}\|e_j\|`.
        rho: ρ = max ‖u_t‖/γ by the majorant, for t ≤ T; at most 1.
        steps: T.
        K: :math:`4\|G_0\|\|G_2\|/(1-\|G_1\|)^2` of a quadratic map; the forced map has a fixed
            point of the majorant where it is at most 1. ``None`` where not defined.
        R: Liu's :math:`(\|G_2\|\|u_0\| + \|G_0\|/\|u_0\|)/(1-\|G_1\|)`, of a quadratic map;
            ``None`` where not defined, as for u(0) = 0 with forcing.
    """

    gamma: float
    q: float
    rho: float
    steps: int
    K: float | None
    R: float | None

    def bound(self, order: int, steps: int | None = None) -> float:
        """Upper bound of ‖u_t − û_t‖ at truncation order N; infinite beyond float64's range.

        Args:
            order: N, at least 1.
            steps: t, from 0 (where it is zero) to T, which is the default.
        """
        order = require_integer("order", order, 1)
        t = self.steps if steps is None else require_integer("steps", steps, 0, self.steps)
        return _exp(_log_bound(_log(self.gamma), _log(self.q), _log(self.rho), order, t))


@dataclass(frozen=True)
class NoCertificate:
    """Says why no certificate exists; false in a condition. K, R as in :class:`Certificate`."""

    reason: str
    K: float | None
    R: float | None

    def __bool__(self) -> Literal[False]:
        return False

    def __str__(self) -> str:
        return self.reason


def certificate(
    maps: Maps, steps: int, *, order: int = 1, start: ArrayLike | None = None
) -> Certificate | NoCertificate:
    r"""The discrete truncation bound of the standard form, at the γ that makes it least.

    The proof: in the norm :math:`\max_j \gamma^{-j}\|e_j\|`, :math:`\|A_{jm}\| \le [x^m] g(x)^j`,
    hence :math:`\|A e\| \le Q \|e\|`, and what truncation drops is at most :math:`Q \rho^{N+1}`.
    A certificate is given where at some γ the bound falls to zero as N grows, at this T:

    .. math:: \min_\gamma\; \log \rho + T \max(\log q, 0) < 0

    Args:
        maps: one map, or one a step; their norms are then maximised over the steps.
        steps: T, at least 1.
        order: N at which γ is best, at least 1.
        start: u(0), of shape (n,); zero by default.

    Returns:
        A :class:`Certificate`, or a :class:`NoCertificate` that says why there is none.

    Raises:
        ValueError: for an argument outside what is allowed.

    Cost: the norms of G_q, and two scalar searches; both functions are convex in log γ.

    Source: ours, after Liu et al., PNAS 118, e2026805118 (2021), whose R it extends to discrete
    time and to u(0) = 0.

    Example:
        >>> mild = PolynomialMap([0.01], [[0.8]], [[0.1]])
        >>> found = certificate(mild, steps=20, order=4)
        >>> found.q <= 1, found.bound(4) < 1e-4
        (True, True)
        >>> print(certificate(PolynomialMap([1.0], [[0.99]], [[1.0]]), steps=20))
        no certificate, because K = 40000 > 1: the forcing ‖G_0‖ = 1 is too strong ...
    """
    return _certify(_majorant(maps, steps, start), require_integer("order", order, 1))


def homogeneous_bound(
    maps: Maps, steps: int, order: int, *, start: ArrayLike | None = None
) -> float:
    r"""Upper bound of the truncation error of the homogeneous form after T steps.

    Its first block is a Taylor series, :math:`u_t = \sum_k c_k(t)`, so what truncation leaves out
    is :math:`\sum_{k>N} c_k`, at most :math:`x_t - \sum_{k \le N} \bar c_k(t)`, where the
    :math:`\bar c_k` obey the jets' recursion with :math:`\|G_q\|` in the place of :math:`G_q`. It
    holds for every map; it is infinite where the majorant overflows.

    Args:
        maps, steps, start: as in :func:`certificate`.
        order: N, at least 1.

    Cost: T N² P² operations on numbers.

    Source: ours.

    Example:
        >>> mild = PolynomialMap([0.01], [[0.8]], [[0.1]])
        >>> errors = [homogeneous_bound(mild, 20, order) for order in (1, 2, 3)]
        >>> errors[0] > 10 * errors[1] > 100 * errors[2]
        True
    """
    return _homogeneous(_majorant(maps, steps, start), require_integer("order", order, 1))


def required_order(
    maps: Maps,
    steps: int,
    tolerance: float,
    *,
    closure: str = "homogeneous",
    start: ArrayLike | None = None,
    most: int = 64,
) -> int | NoCertificate:
    """The least order N whose bound on ‖u_T − û_T‖ is within a tolerance.

    Args:
        maps, steps, start: as in :func:`certificate`.
        tolerance: in the units of u, above 0.
        closure: ``"homogeneous"`` or ``"standard"``.
        most: the highest order tried, at least 1.

    Returns:
        N; or the reason why no order up to ``most`` is certified.

    Cost: the norms of G_q, and a bound for each order tried.

    Example:
        >>> required_order(PolynomialMap([0.01], [[0.8]], [[0.1]]), steps=20, tolerance=1e-6)
        4
    """
    tolerance = require_number("tolerance", tolerance, 0)
    require_one_of("closure", closure, ("homogeneous", "standard"))
    most = require_integer("most", most, 1)
    majorant = _majorant(maps, steps, start)
    if math.isinf(majorant.reach):
        return _refused(majorant)
    for order in range(1, most + 1):
        if closure == "homogeneous":
            bound = _homogeneous(majorant, order)
        elif isinstance(found := _certify(majorant, order), Certificate):
            bound = found.bound(order)
        else:
            return found
        if bound <= tolerance:
            return order
    reason = f"no certificate, because the bound stays above {tolerance:g} up to order {most}"
    return NoCertificate(reason, *_criteria(majorant))


def best_rescaling(maps: Maps, steps: int, order: int, *, start: ArrayLike | None = None) -> float:
    """γ of the certificate; where there is none, the largest ‖u_t‖ of the map's own trajectory.

    The latter is ours: with it the largest block-1 state has unit length. It is 1 where the
    trajectory, or its P N-th power, leaves the range of float64. Arguments as in `certificate`.
    """
    found = certificate(maps, steps, order=order, start=start)
    if found:
        return found.gamma
    sequence = _sequence(maps, steps)
    try:
        with np.errstate(over="ignore"):
            points = trajectory(sequence, _checked_start(start, sequence[0].dimension))
            longest = float(np.linalg.norm(points, axis=1).max())
    except OverflowError:
        return 1.0
    power = order * max(step.degree for step in sequence)
    return longest if power * abs(_log(longest)) < _LARGEST else 1.0


# ---- The majorant ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Majorant:
    """‖G_q‖, ‖u(0)‖, T, and max x_t, which is infinite where it overflows."""

    norms: Sequence[float]
    first: float
    steps: int

    @cached_property
    def reach(self) -> float:
        x = longest = self.first
        try:
            for _ in range(self.steps):
                x = math.fsum(norm * x**q for q, norm in enumerate(self.norms))
                longest = max(longest, x)
        except OverflowError:
            return math.inf
        return longest if math.isfinite(x) else math.inf

    def log_growth(self, log_gamma: float) -> float:
        """Logarithm of q = g(γ)/γ, convex in log γ."""
        terms = [math.log(norm) + (q - 1) * log_gamma for q, norm in enumerate(self.norms) if norm]
        return float(np.logaddexp.reduce(terms))


def _majorant(maps: Maps, steps: int, start: ArrayLike | None) -> _Majorant:
    """The majorant of checked arguments."""
    steps = require_integer("steps", steps, 1)
    sequence = _sequence(maps, steps)
    first = _checked_start(start, sequence[0].dimension)
    return _Majorant(_majorant_norms(sequence), math.hypot(*first.tolist()), steps)


def _sequence(maps: Any, steps: int) -> list[PolynomialMap]:
    sequence = list(maps) if isinstance(maps, Sequence) else [maps] * steps
    if not all(isinstance(step, PolynomialMap) for step in sequence):
        raise ValueError("maps must be a PolynomialMap, or a sequence of them")
    if len(sequence) != steps:
        raise ValueError(f"give one map, or one for each of the {steps} steps: got {len(sequence)}")
    if len({step.dimension for step in sequence}) != 1:
        raise ValueError("all maps must have the same dimension")
    return sequence


def _checked_start(start: Any, n: int) -> NDArray[np.float64]:
    value = np.zeros(n) if start is None else np.asarray(start)
    if value.shape != (n,) or value.dtype.kind not in "iuf" or not np.isfinite(value).all():
        raise ValueError(f"start must hold {n} finite numbers, got {start!r}")
    return value.astype(np.float64)


def _majorant_norms(sequence: Sequence[PolynomialMap]) -> list[float]:
    norms: list[float] = []
    for step in {id(step): step for step in sequence}.values():
        for q, (norm, c) in enumerate(zip(step.norms, step.coefficients, strict=True)):
            # The norm of a sparse matrix is a Ritz value, which lies below it.
            bound = norm * (1 + 1e-9) if sparse.issparse(c) else norm
            norms[q : q + 1] = [max(bound, *norms[q : q + 1], 0.0)]
    return norms


def _homogeneous(majorant: _Majorant, order: int) -> float:
    if math.isinf(majorant.reach):
        return math.inf
    jets = np.zeros(order + 1)  # c̄_0 = 0, c̄_1 … c̄_N
    jets[1] = majorant.first
    tail = np.float64(0.0)  # carried by itself: x − Σ c̄_k would lose it to rounding
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for _ in range(majorant.steps):
            kept = jets.sum()
            following, lost = np.zeros(order + 1), np.float64(0.0)
            power = np.ones(1)  # all coefficients of (Σ_k c̄_k ε^k)^q
            whole, mixed = np.float64(1.0), np.float64(0.0)  # kept^q, (kept + tail)^q − kept^q
            for norm in majorant.norms:
                if norm:
                    following[: len(power)] += norm * power[: order + 1]
                    lost += norm * (power[order + 1 :].sum() + mixed)
                mixed = mixed * (kept + tail) + whole * tail
                whole = whole * kept
                power = np.convolve(power, jets)
            following[1] += following[0]  # the forcing counts as order 1
            following[0] = 0.0
            jets, tail = following, lost
    return float(tail) if np.isfinite(tail) else math.inf


# ---- The certificate ---------------------------------------------------------------------------


def _certify(majorant: _Majorant, order: int) -> Certificate | NoCertificate:
    steps, reach = majorant.steps, majorant.reach
    if reach == 0:  # nothing moves, whatever the order
        return Certificate(1.0, _exp(majorant.log_growth(0.0)), 0.0, steps, *_criteria(majorant))
    if (window := _window(majorant)) is None:
        return _refused(majorant)

    def logarithm(x: float) -> float:
        return _log_bound(x, majorant.log_growth(x), window[0] - x, order, steps)

    gamma = max(math.exp(_least(logarithm, *window)), reach)
    q = _exp(majorant.log_growth(math.log(gamma)))
    return Certificate(gamma, q, reach / gamma, steps, *_criteria(majorant))


def _window(majorant: _Majorant) -> tuple[float, float] | None:
    """A range of log γ, from ρ = 1 on, in which log ρ + T max(log q, 0) < 0 somewhere, if any."""
    if majorant.reach == 0:
        return 0.0, 1.0
    if math.isinf(majorant.reach):
        return None
    low = math.log(majorant.reach)

    def decay(log_gamma: float) -> float:
        return low - log_gamma + majorant.steps * max(majorant.log_growth(log_gamma), 0.0)

    for widest in _WIDEST:
        high = min(low + math.log(widest), _LARGEST)
        if low < high and decay(_least(decay, low, high)) < 0:
            return low, high
    return None


def _least(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a convex function is least, from below: at a kink in q = 1, q is at most 1."""
    for _ in range(60):
        part = 0.382 * (high - low)
        if function(low + part) <= function(high - part):
            high -= part
        else:
            low += part
    return low


def _log_bound(log_gamma: float, log_q: float, log_rho: float, order: int, steps: int) -> float:
    """Logarithm of γ ρ^{N+1} Σ_{k=1..t} Q^k."""
    if steps == 0 or -math.inf in (log_q, log_rho):
        return -math.inf
    log_Q = log_q if log_q <= 0 else order * log_q
    # Σ Q^k = its largest term, times Σ_{k<t} |Q|^k with |Q| = min(Q, 1/Q).
    fall = -abs(log_Q)
    series = math.expm1(steps * fall) / math.expm1(fall) if fall else float(steps)
    return log_gamma + (order + 1) * log_rho + max(log_Q, steps * log_Q) + math.log(series)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def _exp(logarithm: float) -> float:
    return math.exp(logarithm) if logarithm <= _LARGEST else math.inf


def _criteria(majorant: _Majorant) -> tuple[float | None, float | None]:
    """Liu's K and R, where defined."""
    forcing, linear, quadratic = (*majorant.norms, 0.0, 0.0)[:3]
    if any(majorant.norms[3:]) or linear >= 1:
        return None, None
    K = 4 * forcing * quadratic / (1 - linear) ** 2
    if (first := majorant.first) > 0:
        return K, (quadratic * first + forcing / first) / (1 - linear)
    return K, 0.0 if forcing == 0 else None


def _refused(majorant: _Majorant) -> NoCertificate:
    """Which of linear part, forcing and starting point stands in the way."""
    forcing, linear = (*majorant.norms, 0.0)[:2]
    K, R = _criteria(majorant)
    length = f"the starting point, of length {majorant.first:.6g},"
    if linear >= 1:
        reason = f"‖G_1‖ = {linear:.6g} is not below 1: the linear part does not contract"
    elif _window(replace(majorant, first=0.0)) is None:
        reason = f"K = {K:.6g} > 1: " if K is not None and K > 1 else ""
        reason += f"the forcing ‖G_0‖ = {forcing:.6g} is too strong for the linear part's "
        reason += f"contraction 1 − ‖G_1‖ = {1 - linear:.6g}"
    elif _window(replace(majorant, norms=[0.0, *majorant.norms[1:]])) is None:
        reason = f"{length} is outside the region where the majorant contracts"
    else:
        reason = f"{length} is too far out together with the forcing ‖G_0‖ = {forcing:.6g}"
    return NoCertificate(f"no certificate, because {reason}, over {majorant.steps} steps", K, R)
