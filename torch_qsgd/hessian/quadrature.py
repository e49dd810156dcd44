r"""From Lanczos runs to nodes and weights, and to a trace: stochastic quadrature, with deflation.

A probe :math:`v` uniform on the unit sphere of a space of dimension d has
:math:`d\,(v^\top u)^2` of mean 1 for each eigenvector u, and of variance near 2: plain stochastic
Lanczos quadrature counts each eigenvalue so many times [Ubaru2017]_. Run j is made in the
complement of the Ritz vectors kept from earlier runs.

The *trace* rests on no assumption about multiplicities. A run with the kept values
:math:`\lambda_i` gives :math:`\sum_i\lambda_i + d\,v^\top H v`, which is without bias given the
kept vectors, since its probe does not depend on them [Meyer2021]_. Runs are averaged by the inverse
of their variances; as these are estimated from the same probes, the average has a bias, small
beside the standard error. Because of the exact masses below, it is not the mean of the nodes.

The *density* counts each eigenvalue once that can be told apart:

- *Converged* Ritz values, whose residual is small beside ‖H‖ and beside the distance to their
  neighbours, are taken for simple eigenvalues of mass 1/n exactly, and what is left of the mass
  goes to the others in proportion. Not so where a later run, in the complement, finds the value
  again, until one more run does not: then all copies are counted. Nor where the probe sees far more
  mass than chance gives simple eigenvalues, in one value or in all of them. A single run cannot
  tell an eigenvalue of few copies from a simple one.
- Each kept Ritz vector counts for one eigenvalue, converged or not. Because kept and complement
  couple by a single vector, the count of eigenvalues below any number is then wrong by at most one
  a run.
- The densities of several runs are averaged, by the inverse variance of their means. An eigenvalue
  that only a later run has found is counted once in the earlier ones too, in the place of what they
  have nearest to it.

.. [Ubaru2017] S. Ubaru, J. Chen and Y. Saad, Fast estimation of tr(f(A)) via stochastic Lanczos
   quadrature, SIAM J. Matrix Anal. Appl. 38, 1075 (2017), doi:10.1137/16M1104974.
.. [Meyer2021] R. Meyer, C. Musco, C. Musco and D. Woodruff, Hutch++, SOSA 2021, arXiv:2010.09649.
   The count of kept values that have not converged, exact masses and the weights are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from torch_qsgd.hessian.lanczos import RitzPairs

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]

#: A Ritz value has converged where its residual is at most this share of the distance to the next,
_SHARE_OF_GAP = 0.3
#: and at most this share of ‖H‖.
_SHARE_OF_NORM = 1e-3
#: Simple eigenvalues show a mass as large as is called multiple with this probability.
_CHANCE = 1e-5
#: The same, of all simple ones of a run together.
_CHANCE_OF_ALL = 1e-3
#: No estimate weighs more than this times another.
_MOST_WEIGHT = 1e12
_ROUNDING_OF_MASS = 1e-9


@dataclass(frozen=True, eq=False)
class Run:
    """What one run has shown.

    Attributes:
        dimension: d, of the complement in which it was made.
        kept: indices of earlier Ritz values whose vectors it was orthogonal to, counted over all
            runs in their order.
        values: Ritz values, of shape (m,), ascending.
        shares: their weights of Gauss quadrature, of sum 1.
        residuals: of shape (m,), in the complement.
        errors: of shape (m,), how far an eigenvalue lies from a converged value.
        converged: bool, of shape (m,): which are eigenvalues of the complement.
        exact: bool, of shape (m,): which of these are eigenvalues of the whole operator.
        spread: ‖(A − vᵀAv) v‖ for the probe v and the operator A in the complement.
        rounding: of eigenvalues.
    """

    dimension: int
    kept: Indices
    values: Array
    shares: Array
    residuals: Array
    errors: Array
    converged: Flags
    exact: Flags
    spread: float
    rounding: float

    @property
    def complete(self) -> bool:
        """Whether it has found all eigenvalues of the complement."""
        return len(self.values) == self.dimension

    def sees_as_much_as(self, steps: int) -> bool:
        """Whether a run of so many steps would hardly find a value that this one has not."""
        exhausted = bool((self.residuals <= self.rounding).all())
        return exhausted or 4 * len(self.values) >= 3 * steps

    @property
    def mean(self) -> float:
        """Mean eigenvalue of the complement, as the probe shows it."""
        if self.complete:
            return float(self.values.mean())
        return float(self.shares @ self.values)

    @property
    def variance(self) -> float:
        """Mean squared distance of eigenvalues from ``mean``, as the probe shows it."""
        return float(self.values.var()) if self.complete else self.spread**2


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Nodes, ascending, their weights of sum 1, which are exact; the trace and its error."""

    nodes: Array
    weights: Array
    exact: Flags
    trace: float
    trace_error: float


def finished(
    ritz: RitzPairs, dimension: int, kept: Indices, *, spread: float, rounding: float, scale: float
) -> Run:
    """A run's record.

    Args:
        ritz: its Ritz pairs.
        dimension: d, of the complement.
        kept, spread, rounding: see :class:`Run`.
        scale: ‖H‖, or somewhat less.

    Example:
        >>> zero, two = np.zeros(2), np.eye(2)
        >>> ritz = RitzPairs(np.array([0.0, 9.0]), np.array([0.99, 0.01]), zero, zero, two)
        >>> run = finished(ritz, 100, np.empty(0, int), spread=0.9, rounding=1e-12, scale=9.0)
        >>> run.exact, run.complete
        (array([ True,  True]), False)
    """
    values, whole = ritz.values, np.hypot(ritz.residuals, ritz.couplings)
    converged = _converged(values, ritz.residuals, rounding, scale)
    gap = np.maximum(_gaps(values), whole)
    errors = np.divide(whole**2, gap, out=np.zeros_like(whole), where=gap > 0) + 2 * rounding
    return Run(
        dimension=dimension,
        kept=kept,
        values=values,
        shares=ritz.shares,
        residuals=ritz.residuals,
        errors=errors,
        converged=converged | (len(values) == dimension),
        exact=_converged(values, whole, rounding, scale),
        spread=spread,
        rounding=rounding,
    )


def _gaps(values: Array) -> Array:
    """Distance to the next value on either side; of one value, 0."""
    if len(values) == 1:
        return np.zeros(1)
    distance = np.diff(values)
    before, after = np.insert(distance, 0, np.inf), np.append(distance, np.inf)
    return np.asarray(np.minimum(before, after))


def _converged(values: Array, residuals: Array, rounding: float, scale: float) -> Flags:
    apart = residuals + rounding <= _SHARE_OF_GAP * _gaps(values)
    small = residuals <= _SHARE_OF_NORM * scale
    return np.asarray((apart & small) | (residuals <= rounding))


def combine(runs: Sequence[Run], n: int) -> Quadrature:
    r"""The spectrum that several runs show together.

    Args:
        runs: at least one, in their order.
        n: the operator's dimension.

    Example:
        >>> zero, two = np.zeros(2), np.eye(2)
        >>> ritz = RitzPairs(np.array([0.0, 9.0]), np.array([0.99, 0.01]), zero, zero, two)
        >>> run = finished(ritz, 100, np.empty(0, int), spread=0.9, rounding=1e-12, scale=9.0)
        >>> found = combine([run], 100)
        >>> found.weights, found.exact  # 100 · 0.99 is no chance, and not simple
        (array([0.99, 0.01]), array([False,  True]))
        >>> round(found.trace, 9), round(found.trace_error)  # a probe sees 9 ± 12 of 9
        (9.0, 13)
    """
    values = np.concatenate([run.values for run in runs])
    ends = np.cumsum([len(run.values) for run in runs])
    exact = np.concatenate([run.exact for run in runs])
    for run, end in zip(runs[1:], ends[:-1], strict=True):
        # What was not kept may be found again, and must not be counted as two eigenvalues.
        exact[:end] &= np.isin(np.arange(end), run.kept)
    simple = _simple(runs, ends, _copies(runs, ends, values))
    exact &= simple

    masses = np.zeros((len(runs), len(values)))
    variances = np.empty(len(runs))
    for j, (run, end) in enumerate(zip(runs, ends, strict=True)):
        own = slice(end - len(run.values), end)
        masses[j, own], variances[j] = _masses(run, simple[own])
        masses[j, run.kept] = 1.0
        for i in np.flatnonzero(exact[end:]) + end:
            _claim(masses[j], values, exact, int(i))
    mass = _weights(variances) @ masses
    if not np.allclose(mass.sum(), n):
        raise AssertionError(f"{mass.sum()} eigenvalues counted, of {n}")
    exact &= np.abs(mass - 1) < _ROUNDING_OF_MASS
    trace, error = _trace(runs, values, mass)
    order = np.argsort(values, kind="stable")
    order = order[mass[order] > 0]
    return Quadrature(
        nodes=values[order],
        weights=mass[order] / mass.sum(),
        exact=exact[order],
        trace=trace,
        trace_error=error,
    )


# ---- The density -------------------------------------------------------------------------------


def _copies(runs: Sequence[Run], ends: Indices, values: Array) -> Indices:
    """Copies of each converged value that a run and those after it have found, itself counted.

    0 where it has been found again, and not yet been missed by a later run: there may be more.
    """
    copies = np.ones(len(values), dtype=np.intp)
    errors = np.concatenate([run.errors for run in runs])
    exact = np.concatenate([run.exact for run in runs])
    chains: list[list[int]] = []
    by_tail: dict[int, list[int]] = {}
    for run, end in zip(runs, ends, strict=True):
        tails = {tail: chain for tail, chain in by_tail.items() if tail in set(run.kept.tolist())}
        for i in (np.flatnonzero(run.converged) + end - len(run.values)).tolist():
            near = [t for t in tails if abs(values[t] - values[i]) <= errors[t] + errors[i]]
            if near:
                tail = min(near, key=lambda t: abs(values[t] - values[i]))
                chain = tails.pop(tail)
                del by_tail[tail]
            else:
                chain = []
                chains.append(chain)
            chain.append(i)
            by_tail[i] = chain
    for chain in chains:
        if len(chain) > 1:
            steps = len(runs[int(np.searchsorted(ends, chain[-1], side="right"))].values)
            missed = runs[-1].complete or any(
                chain[-1] in run.kept and run.sees_as_much_as(steps) for run in runs
            )
            settled = missed and bool(exact[chain].all())
            copies[chain] = np.arange(len(chain), 0, -1) if settled else 0
    return copies


def _simple(runs: Sequence[Run], ends: Indices, copies: Indices) -> Flags:
    """Which values stand for one eigenvalue of their run's complement each."""
    found = []
    for run, end in zip(runs, ends, strict=True):
        count = copies[end - len(run.values) : end]
        simple = run.converged & (count > 0)
        if not run.complete:
            d = run.dimension
            simple &= _likely(run.shares, np.maximum(count, 1), d, _CHANCE)
            of_all, share = int(count[simple].sum()), float(run.shares[simple].sum())
            rest = float(run.shares[~simple].sum())
            if rest <= 0 or not _likely(np.array(share), np.array(of_all), d, _CHANCE_OF_ALL):
                simple = np.zeros(len(simple), dtype=np.bool_)
        found.append(simple)
    return np.concatenate(found)


def _likely(share: Array, count: Indices, d: int, chance: float) -> Flags:
    """Whether ``count`` of d components of a vector on the sphere may have so much of it."""
    inside = np.maximum(d - count, 0.0) / 2
    upper = betainc(np.maximum(inside, 1e-9), np.maximum(count, 1e-9) / 2, 1 - np.minimum(share, 1))
    return np.asarray(np.where(count < d, upper > chance, count == d))


def _masses(run: Run, simple: Flags) -> tuple[Array, float]:
    """Eigenvalues that each Ritz value stands for, of sum d, and the variance of their sum."""
    mass = simple.astype(np.float64)
    rest = ~simple
    d = run.dimension - int(simple.sum())
    if not rest.any():
        return mass, 0.0
    mass[rest] = d * run.shares[rest] / run.shares[rest].sum()
    if rest.sum() == 1:  # one node holds no second moment; ‖H v‖ does
        return mass, 2 * d * d / (d + 2) * float(run.residuals[rest][0]) ** 2
    return mass, _variance(d, mass[rest], run.values[rest])


def _variance(d: int, mass: Array, values: Array) -> float:
    r"""Of a probe's estimate of the sum of d eigenvalues:

    .. math::
        \operatorname{Var}(d\, v^\top A v)
        = \frac{2d}{d+2} \Bigl(\sum\lambda^2 - \frac{(\sum\lambda)^2}{d}\Bigr)
    """
    if d == 0 or not mass.any():
        return 0.0
    mean = np.average(values, weights=mass)
    return 2 * d * d / (d + 2) * float(np.average((values - mean) ** 2, weights=mass))


def _claim(mass: Array, values: Array, exact: Flags, i: int) -> None:
    """Count eigenvalue i, which a later run has found, once: at the cost of its neighbours."""
    givers = np.flatnonzero((mass > 0) & ~exact)
    givers = givers[np.argsort(np.abs(values[givers] - values[i]), kind="stable")]
    before = np.cumsum(mass[givers]) - mass[givers]
    given = np.clip(1.0 - before, 0.0, mass[givers])
    mass[givers] -= given
    mass[i] += given.sum()


# ---- The trace ---------------------------------------------------------------------------------


def _trace(runs: Sequence[Run], values: Array, mass: Array) -> tuple[float, float]:
    """The trace and its standard error.

    A probe that by chance sees little of the largest eigenvalues shows too small a variance, and,
    where they have one sign, too small a trace. So weights come from the runs that have taken the
    most out, and the error is no less than by any run, by the density, or by the runs' scatter.
    """
    kept = [set(run.kept.tolist()) for run in runs]
    traces = np.array([values[run.kept].sum() + run.dimension * run.mean for run in runs])
    expected, claimed = np.empty(len(runs)), np.empty(len(runs))
    for j, run in enumerate(runs):
        if run.complete or run.spread == 0:  # a probe at random that is an eigenvector: all are
            expected[j] = claimed[j] = 0.0
            continue
        further = [i for i in range(len(runs)) if kept[i] >= kept[j]]
        most = max(len(kept[i]) for i in further)
        seen = {i: _seen(run, runs[i], values[sorted(kept[i] - kept[j])]) for i in further}
        expected[j] = np.mean([seen[i] for i in further if len(kept[i]) == most])
        left = mass.copy()
        left[run.kept] -= 1.0
        left[left < _ROUNDING_OF_MASS] = 0.0
        by_density = _variance(run.dimension, left, values)
        claimed[j] = max(seen[j], expected[j], by_density)
    weights = _weights(expected)
    trace = float(weights @ traces)
    variance = float(weights**2 @ claimed)
    apart = claimed > 0
    if len(runs) > 1 and apart.any():
        scatter = np.sum((traces[apart] - trace) ** 2 / claimed[apart]) / (len(runs) - 1)
        variance *= max(1.0, float(scatter))
    rounding = max(run.rounding for run in runs)
    return trace, float(np.sqrt(variance + mass.sum() * rounding**2))


def _seen(run: Run, other: Run, taken: Array) -> float:
    """Variance of d vᵀAv in a run's complement, from a run which has taken more values out."""
    d, total = run.dimension, float(taken.sum()) + other.dimension * other.mean
    centre = total / d
    second = other.dimension * (other.variance + (other.mean - centre) ** 2)
    return 2 * (second + float(np.sum((taken - centre) ** 2)))


def _weights(variances: Array) -> Array:
    """By the inverse of variances, of sum 1."""
    largest = float(variances.max())
    weights = 1 / np.maximum(variances, largest / _MOST_WEIGHT if largest > 0 else 1.0)
    return np.asarray(weights / weights.sum())
