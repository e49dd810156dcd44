r"""What can be said of a Carleman system before it is solved: truncation error, κ, order.

With :math:`g(x) = \sum_p \|G_p\| x^p` the scalar recursion :math:`x_{t+1} = g(x_t)`,
:math:`x_0 = \|u(0)\|` majorises the trajectory, :math:`\|u_t\| \le x_t`, for any degree and any T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.sparse.linalg import norm as sparse_norm
from scipy.sparse.linalg import svds

from torch_qsgd.carleman.polynomial import PolynomialMap, trajectory

#: The rescaling is searched between the majorant of ‖u‖ and this many times it.
_WIDEST = 1e8


@dataclass(frozen=True)
class Certificate:
    r"""A proof that the truncated standard form converges, and how fast.

    .. math::
        \|u_t - \hat u_t\| \le \gamma \rho^{N+1} \sum_{k=1}^{t} Q^k, \qquad
        Q = q \text{ if } q \le 1, \text{ else } q^N, \qquad q = g(\gamma)/\gamma

    Attributes:
        gamma: γ, the rescaling that was chosen.
        q: growth of a step in the weighted norm :math:`\max_j \gamma^{-j}\|e_j\|`.
        rho: ρ = max ‖u_t‖/γ by the majorant, at most 1.
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
        """Upper bound of ‖u_t − û_t‖ after ``steps`` steps at truncation order N."""
        return math.exp(
            min(_log_bound(self.gamma, self.q, self.rho, order, steps or self.steps), 700)
        )

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True)
class NoCertificate:
    """Says why no certificate exists; false in a condition.

    Attributes:
        reason: begins with "no certificate, because".
        K, R: as in :class:`Certificate`.
    """

    reason: str
    K: float | None
    R: float | None

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return self.reason


def certificate(
    maps: PolynomialMap | Sequence[PolynomialMap],
    steps: int,
    *,
    order: int = 1,
    start: ArrayLike | None = None,
) -> Certificate | NoCertificate:
    r"""The discrete truncation bound of the standard form, at the γ that makes it least.

    The proof: in the norm :math:`\max_j \gamma^{-j}\|e_j\|`, :math:`\|A_{jm}\| \le [x^m] g(x)^j`,
    hence :math:`\|A e\| \le Q \|e\|`, and what truncation drops is at most :math:`Q \rho^{N+1}`.
    A certificate is given where the bound falls to zero as N grows at this T.

    Args:
        maps: one map, or one a step; their norms are then maximised over the steps.
        steps: T.
        order: N at which γ is best.
        start: u(0); zero by default.

    Returns:
        A :class:`Certificate`, or a :class:`NoCertificate` that says why there is none.

    Cost: the norms of G_q, and a scalar search.

    Source: ours, after Liu et al., PNAS 118, e2026805118 (2021), whose R it extends to discrete
    time and to u(0) = 0.

    Example:
        >>> mild = PolynomialMap([0.01], [[0.8]], [[0.1]])
        >>> found = certificate(mild, steps=20, order=4)
        >>> found.q < 1, found.bound(4) < 1e-4
        (True, True)
        >>> print(certificate(PolynomialMap([1.0], [[0.99]], [[1.0]]), steps=20))
        no certificate, because K = 40000 > 1: the forcing ‖G_0‖ = 1 is too strong ...
    """
    norms = _majorant_norms(maps)
    first = float(np.linalg.norm(np.zeros(1) if start is None else np.asarray(start)))
    K, R = _criteria(norms, first)
    reach = _reach(norms, first, steps)
    if not math.isfinite(reach):
        return NoCertificate("no certificate, because " + _growth(norms, K, steps), K, R)
    if reach == 0:  # nothing moves, whatever the order
        return Certificate(1.0, _growth_factor(norms, 1.0), 0.0, steps, K, R)

    def logarithm(log_gamma: float) -> float:
        gamma = math.exp(log_gamma)
        return _log_bound(gamma, _growth_factor(norms, gamma), reach / gamma, order, steps)

    lowest = math.log(reach)
    grid = np.linspace(lowest, lowest + math.log(_WIDEST), 400)
    best = int(np.argmin([logarithm(x) for x in grid]))
    around = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(logarithm, bounds=around, method="bounded").x
    gamma = math.exp(min((found, grid[best]), key=logarithm))
    q, rho = _growth_factor(norms, gamma), min(reach / gamma, 1.0)
    if math.log(rho) + max(math.log(q) if q else -math.inf, 0.0) * steps >= 0:
        return NoCertificate("no certificate, because " + _growth(norms, K, steps), K, R)
    return Certificate(gamma, q, rho, steps, K, R)


def homogeneous_bound(
    maps: PolynomialMap | Sequence[PolynomialMap],
    steps: int,
    order: int,
    *,
    start: ArrayLike | None = None,
) -> float:
    r"""Upper bound of the truncation error of the homogeneous form after T steps.

    Its first block is a Taylor series, :math:`u_t = \sum_k c_k(t)`, so what truncation leaves out
    is :math:`\sum_{k>N} c_k`, at most :math:`x_t - \sum_{k \le N} \bar c_k(t)`, where the
    :math:`\bar c_k` obey the jets' recursion with :math:`\|G_q\|` in the place of :math:`G_q`. It
    holds for every map; it is infinite where the majorant overflows.

    Args:
        maps, steps, start: as in :func:`certificate`.
        order: N, at least 1.

    Cost: T N² P operations on numbers.

    Source: ours.

    Example:
        >>> mild = PolynomialMap([0.01], [[0.8]], [[0.1]])
        >>> errors = [homogeneous_bound(mild, 20, order) for order in (1, 2, 3)]
        >>> errors[0] > 10 * errors[1] > 100 * errors[2]
        True
    """
    norms = _majorant_norms(maps)
    first = float(np.linalg.norm(np.zeros(1) if start is None else np.asarray(start)))
    majorant = PolynomialMap(*(np.full((1,) * (q + 1), norm) for q, norm in enumerate(norms)))
    # The tail is carried by itself, x − Σ c̄_k would lose it to rounding.
    jets = np.zeros((order, 1))
    jets[0] = first
    tail = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            kept = float(jets.sum())
            series = majorant.taylor(jets)
            tail = _tail_of_powers(norms, jets[:, 0], kept, tail)
            jets = series[1:]
            jets[0] += series[0]
    return tail if math.isfinite(tail) else math.inf


def _tail_of_powers(
    norms: Sequence[float], jets: NDArray[np.float64], kept: float, tail: float
) -> float:
    """Σ_q ‖G_q‖ times the part of (Σ_k c̄_k ε^k + tail)^q beyond ε^N, at ε = 1; all terms ≥ 0."""
    order = len(jets)
    series = np.concatenate([[0.0], jets])
    total = 0.0
    power = np.ones(1)  # all coefficients of (Σ c̄_k ε^k)^q
    for q, norm in enumerate(norms):
        beyond = float(power[order + 1 :].sum())
        mixed = sum(math.comb(q, i) * kept ** (q - i) * tail**i for i in range(1, q + 1))
        total += norm * (beyond + mixed)
        power = np.convolve(power, series)
    return total


def required_order(
    maps: PolynomialMap | Sequence[PolynomialMap],
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
        most: the highest order tried.

    Returns:
        N; or the reason why no order up to ``most`` is certified.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be above 0, got {tolerance!r}")
    if closure == "homogeneous":
        for order in range(1, most + 1):
            if homogeneous_bound(maps, steps, order, start=start) <= tolerance:
                return order
    else:
        for order in range(1, most + 1):
            found = certificate(maps, steps, order=order, start=start)
            if isinstance(found, NoCertificate):
                return found
            if found.bound(order) <= tolerance:
                return order
    return NoCertificate(
        f"no certificate, because the bound stays above {tolerance:g} up to order {most}",
        *_criteria(
            _majorant_norms(maps),
            float(np.linalg.norm(0.0 if start is None else np.asarray(start))),
        ),
    )


def best_rescaling(
    maps: PolynomialMap | Sequence[PolynomialMap],
    steps: int,
    order: int,
    *,
    start: ArrayLike | None = None,
) -> float:
    """γ of the certificate; where there is none, the largest ‖u_t‖ of the map's own trajectory.

    The latter is ours: with it the largest block-1 state has unit length.
    """
    found = certificate(maps, steps, order=order, start=start)
    if isinstance(found, Certificate) and found.rho > 0:
        return found.gamma
    sequence = [maps] * steps if isinstance(maps, PolynomialMap) else list(maps)
    first = np.zeros(sequence[0].dimension) if start is None else np.asarray(start, dtype=float)
    longest = float(np.linalg.norm(trajectory(sequence, first), axis=1).max())
    return longest or 1.0


# ---- Condition number --------------------------------------------------------------------------


def condition_bound(step_matrices: Sequence[sparse.csr_array], idle: int = 0) -> float:
    r"""Upper bound of κ(ℒ), :math:`(1 + \|A\|)\sum_{k=0}^{T+p} \max_t \|A_{t+k-1} … A_t\|`.

    ‖A‖ is the largest of the steps (and 1 where idle steps follow). Products' norms are exact up
    to a few hundred unknowns a step, else powers of the factors' norms.

    Args:
        step_matrices: A_t of each step; equal ones as the same object.
        idle: p.

    Cost: T matrix products a distinct map, or T norms.
    """
    single = len({id(a) for a in step_matrices}) == 1
    norms = {id(a): _matrix_norm(a) for a in step_matrices}
    size = step_matrices[0].shape[0]
    length = len(step_matrices) + idle
    largest = max(*norms.values(), 1.0 if idle else 0.0)
    if single and size <= 512:
        dense = step_matrices[0].toarray()
        powers = [1.0]
        product = np.eye(size)
        for _ in range(len(step_matrices)):
            product = dense @ product
            powers.append(float(np.linalg.norm(product, 2)))
        # A product that reaches into the idle steps is one of fewer steps.
        total = sum(
            max(powers[max(k - idle, 0) : min(k, len(step_matrices)) + 1])
            for k in range(length + 1)
        )
        return (1 + largest) * total
    return (1 + largest) * float(sum(largest**k for k in range(length + 1)))


def _matrix_norm(a: sparse.csr_array) -> float:
    if min(a.shape) <= 64:
        return float(np.linalg.norm(a.toarray(), 2))
    start = np.random.default_rng(0).standard_normal(a.shape[0])
    # A Ritz value lies below the norm; the bound needs what does not.
    estimate = float(svds(a, k=1, return_singular_vectors=False, v0=start, tol=1e-10)[0])
    ceiling = math.sqrt(float(sparse_norm(a, 1)) * float(sparse_norm(a, np.inf)))
    return min(estimate * (1 + 1e-8), ceiling)


# ---- The majorant ------------------------------------------------------------------------------


def _majorant_norms(maps: PolynomialMap | Sequence[PolynomialMap]) -> list[float]:
    distinct = {id(m): m for m in ([maps] if isinstance(maps, PolynomialMap) else maps)}
    norms = [m.norms for m in distinct.values()]
    degree = max(map(len, norms))
    return [max(n[q] if q < len(n) else 0.0 for n in norms) for q in range(degree)]


def _reach(norms: Sequence[float], first: float, steps: int) -> float:
    x = longest = first
    for _ in range(steps):
        try:
            x = math.fsum(norm * x**q for q, norm in enumerate(norms))
        except OverflowError:
            return math.inf
        longest = max(longest, x)
    return longest


def _growth_factor(norms: Sequence[float], gamma: float) -> float:
    return math.fsum(norm * gamma ** (q - 1) for q, norm in enumerate(norms))


def _log_bound(gamma: float, q: float, rho: float, order: int, steps: int) -> float:
    """Logarithm of γ ρ^{N+1} Σ_{k=1..t} Q^k, which itself may overflow."""
    if rho == 0 or q == 0:
        return -math.inf
    log_q = math.log(q) * (1 if q <= 1 else order)
    exponents = log_q * np.arange(1, steps + 1)
    top = float(exponents.max())
    series = top + math.log(float(np.exp(exponents - top).sum()))
    return math.log(gamma) + (order + 1) * math.log(rho) + series


def _criteria(norms: Sequence[float], first: float) -> tuple[float | None, float | None]:
    forcing, linear, quadratic = (*norms, 0.0, 0.0)[:3]
    if any(norms[3:]) or linear >= 1:
        return None, None
    K = 4 * forcing * quadratic / (1 - linear) ** 2
    if first > 0:
        return K, (quadratic * first + forcing / first) / (1 - linear)
    return K, 0.0 if forcing == 0 else None


def _growth(norms: Sequence[float], K: float | None, steps: int) -> str:
    forcing, linear = (*norms, 0.0)[:2]
    if linear >= 1:
        return (
            f"‖G_1‖ = {linear:.6g} is not below 1: the linear part does not contract, and over "
            f"{steps} steps the majorant outgrows every rescaling"
        )
    if K is not None and K > 1:
        return (
            f"K = {K:.6g} > 1: the forcing ‖G_0‖ = {forcing:.6g} is too strong for the linear "
            f"part's contraction 1 − ‖G_1‖ = {1 - linear:.6g}, over {steps} steps"
        )
    return (
        f"the starting point is outside the region where the majorant contracts, over {steps} steps"
    )
