r"""From Lanczos runs to nodes and weights: stochastic quadrature with exact masses.

A probe :math:`v` uniform on the unit sphere of a space of dimension d has
:math:`d\,(v^\top u)^2` of mean 1 for each eigenvector u, and of variance near 2: plain stochastic
Lanczos quadrature counts each eigenvalue so many times [Ubaru2017]_. Here every eigenvalue that can
be told apart is counted once:

- *Converged* Ritz values, whose residual is small beside the distance to their neighbours, are
  simple eigenvalues of mass 1/n exactly, and what is left of the mass goes to the others in
  proportion. Not so where the probe sees far more mass there than chance gives a simple eigenvalue:
  a multiple one, or a cluster, such as the zeros of a low-rank matrix.
- Run j is made in the complement of the Ritz vectors kept from earlier ones; each of those counts
  for one eigenvalue, converged or not. Because kept and complement couple by a single vector, the
  count of eigenvalues below any number is then wrong by at most one a run. With the mean of H over
  the complement estimated by the probe, the trace is without bias [Meyer2021]_.
- The estimates of several runs are averaged, by the inverse variance of their traces. An eigenvalue
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
from scipy.special import chdtri

from torch_qsgd.hessian.lanczos import RitzPairs

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]

#: A Ritz value has converged where its residual is at most this share of the distance to the next.
_SHARE_OF_GAP = 0.3
#: A simple eigenvalue shows a mass as large as is called multiple with this probability.
_CHANCE = 1e-5
#: No estimate weighs more than this times another.
_MOST_WEIGHT = 1e12


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
        simple: bool, of shape (m,): which are simple eigenvalues of the complement that have
            converged.
        exact: bool, of shape (m,): which of these are eigenvalues of the whole operator.
    """

    dimension: int
    kept: Indices
    values: Array
    shares: Array
    residuals: Array
    simple: Flags
    exact: Flags


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Nodes, ascending, their weights of sum 1, which are exact; the trace and its error."""

    nodes: Array
    weights: Array
    exact: Flags
    trace: float
    trace_error: float


def finished(ritz: RitzPairs, dimension: int, kept: Indices, rounding: float) -> Run:
    """A run's record.

    Args:
        ritz: its Ritz pairs.
        dimension: d, of the complement.
        kept: indices, see :class:`Run`.
        rounding: of eigenvalues.

    Example:
        >>> zero, two = np.zeros(2), np.eye(2)
        >>> ritz = RitzPairs(np.array([0.0, 9.0]), np.array([0.99, 0.01]), zero, zero, two)
        >>> finished(ritz, 100, np.empty(0, int), 1e-12).exact  # 100 · 0.99 is no chance
        array([False,  True])
    """
    values = ritz.values
    if len(values) == dimension:
        simple = np.ones(dimension, dtype=np.bool_)
    else:
        simple = dimension * ritz.shares <= chdtri(1, _CHANCE)
        simple &= _converged(values, ritz.residuals, rounding)
    exact = simple & _converged(values, np.hypot(ritz.residuals, ritz.couplings), rounding)
    return Run(dimension, kept, values, ritz.shares, ritz.residuals, simple, exact)


def _converged(values: Array, residuals: Array, rounding: float) -> Flags:
    gap = np.zeros(len(values))
    if len(values) > 1:
        distance = np.diff(values)
        gap[0], gap[-1] = distance[0], distance[-1]
        gap[1:-1] = np.minimum(distance[:-1], distance[1:])
    return np.asarray((residuals + rounding <= _SHARE_OF_GAP * gap) | (residuals <= rounding))


def combine(runs: Sequence[Run], n: int) -> Quadrature:
    r"""The spectrum that several runs show together.

    The trace's standard error is that of probes uniform on the sphere,

    .. math::
        \operatorname{Var}(d\, v^\top A v)
        = \frac{2d}{d+2} \Bigl(\sum\lambda^2 - \frac{(\sum\lambda)^2}{d}\Bigr),

    over the d eigenvalues that are not exact, with the sums by the same quadrature.

    Args:
        runs: at least one, in their order.
        n: the operator's dimension.

    Example:
        >>> zero, two = np.zeros(2), np.eye(2)
        >>> ritz = RitzPairs(np.array([0.0, 9.0]), np.array([0.99, 0.01]), zero, zero, two)
        >>> found = combine([finished(ritz, 100, np.empty(0, int), 1e-12)], 100)
        >>> found.weights, found.trace, found.trace_error
        (array([0.99, 0.01]), 9.0, 0.0)
    """
    values = np.concatenate([run.values for run in runs])
    ends = np.cumsum([len(run.values) for run in runs])
    exact = np.concatenate([run.exact for run in runs])
    for run, end in zip(runs[1:], ends[:-1], strict=True):
        # What was not kept may be found again, and must not be counted as two eigenvalues.
        exact[:end] &= np.isin(np.arange(end), run.kept)

    masses = np.zeros((len(runs), len(values)))
    counted = np.zeros(masses.shape, dtype=np.bool_)
    traces, variances = np.empty(len(runs)), np.empty(len(runs))
    for j, (run, end) in enumerate(zip(runs, ends, strict=True)):
        begin = end - len(run.values)
        masses[j, begin:end], variances[j] = _masses(run)
        masses[j, run.kept] = 1.0
        counted[j, run.kept] = True
        counted[j, begin:end] = run.simple
        traces[j] = masses[j] @ values
        for i in np.flatnonzero(exact[end:]) + end:
            _claim(masses[j], values, exact, int(i))

    largest = float(variances.max())
    weights = 1 / np.maximum(variances, largest / _MOST_WEIGHT if largest > 0 else 1.0)
    weights /= weights.sum()
    mass = weights @ masses
    # A probe that by chance sees little of the outliers shows too small a variance. Its weight is
    # none the worse for it, but its error: that is no less than what all runs show.
    for j, run in enumerate(runs):
        left = np.maximum(np.where(counted[j], mass - 1, mass), 0.0)
        seen_by_all = _variance(run.dimension - int(run.simple.sum()), left, values)
        variances[j] = max(variances[j], seen_by_all)
    order = np.argsort(values, kind="stable")
    order = order[mass[order] > 0]
    return Quadrature(
        nodes=values[order],
        weights=mass[order] / mass.sum(),
        exact=exact[order],
        trace=float(weights @ traces),
        trace_error=float(np.sqrt(weights**2 @ variances)),
    )


def _masses(run: Run) -> tuple[Array, float]:
    """Eigenvalues that each Ritz value stands for, of sum d, and the variance of their sum."""
    mass = run.simple.astype(np.float64)
    rest = ~run.simple
    d = run.dimension - int(run.simple.sum())
    if not rest.any():
        return mass, 0.0
    mass[rest] = d * run.shares[rest] / run.shares[rest].sum()
    if rest.sum() == 1:  # one node holds no second moment; ‖H v‖ does
        return mass, 2 * d * d / (d + 2) * float(run.residuals[rest][0]) ** 2
    return mass, _variance(d, mass[rest], run.values[rest])


def _variance(d: int, mass: Array, values: Array) -> float:
    """Of a probe's estimate of the sum of d eigenvalues."""
    if d == 0 or not mass.any():
        return 0.0
    mean = np.average(values, weights=mass)
    return 2 * d * d / (d + 2) * float(np.average((values - mean) ** 2, weights=mass))


def _claim(mass: Array, values: Array, exact: Flags, i: int) -> None:
    """Count eigenvalue i, which a later run has found, once: at the cost of its neighbours."""
    givers = np.flatnonzero((mass > 0) & ~exact)
    givers = givers[np.argsort(np.abs(values[givers] - values[i]), kind="stable")]
    before = np.cumsum(mass[givers]) - mass[givers]
    mass[givers] -= np.clip(1.0 - before, 0.0, mass[givers])
    mass[i] = 1.0
