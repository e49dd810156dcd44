r"""Singular values of a window's linear system, from a spectrum alone.

At order 1 in the standard closure the window of one batch is block lower-bidiagonal, with the
identity on its diagonal, −A below it for T steps, A = I − ηH, and −I for p idle ones. In the basis
of the Hessian's eigenvectors it falls apart into one bidiagonal matrix B(m) of T + 1 + p rows for
each multiplier m = 1 − ηλ, so its singular values are those of all B(m).

*Which mode decides.* Changing the sign of unknowns turns B(m) into B(\|m\|), and into the matrix of
its absolute values; both keep singular values. The norm of a matrix of non-negative entries grows
with each of them, and so does that of the inverse of B(\|m\|), whose entries are products of the
entries below the diagonal. So σ_max and σ_min are both those of the largest \|m\|.

*How they are had.* The singular values of B, and their negatives, are the eigenvalues of
[[0, B], [Bᵀ, 0]], a tridiagonal matrix with a zero diagonal where its rows are put in turn, of
which bisection finds each to a relative precision, however small it is [Demmel1990]_.

*At order N* in the standard closure, block j of the diagonal has the products of j multipliers.
The largest is \|m\|^j. Without forcing, ℒ is block-triangular, and its κ at least that of its
diagonal blocks; the couplings, of the size of G_0 and G_2, are left out. The homogeneous form has
other blocks: :mod:`torch_qsgd.auditing.homogeneous` estimates its κ.

*With momentum* the state is (u, ηv), each multiplier becomes the matrix

.. math::
    M = \begin{pmatrix} 1 - ηλ & -μ \\ ηλ & μ \end{pmatrix}, \qquad
    M = \begin{pmatrix} 1 - (1 + μ) ηλ & -μ^2 \\ ηλ & μ \end{pmatrix} \quad \text{(Nesterov)}

and B(M) is bidiagonal in blocks. It is an affine function of λ, so its norm is convex, and largest
at an end of the spectrum. ‖B(M)⁻¹‖ has no such property: it is computed for every node whose upper
bound lies above the largest found. At order N the j-fold Kronecker powers of the extreme mode's M
stand for block j.

.. [Demmel1990] J. Demmel and W. Kahan, Accurate singular values of bidiagonal matrices, SIAM J.
   Sci. Stat. Comput. 11, 873 (1990), doi:10.1137/0911052.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eig_banded, eigh_tridiagonal

from torch_qsgd.auditing.homogeneous import homogeneous_ends
from torch_qsgd.checks import require_integer
from torch_qsgd.hessian.dynamics import Dynamics
from torch_qsgd.hessian.spectrum import Spectrum
from torch_qsgd.report.measurements import Conditioning, Truncation

Array = NDArray[np.float64]

#: Values of T, at most.
_GRID = 12
#: Modes whose product a window amplifies by more than this make its regime exponential.
_NOTICEABLE = 10.0
#: Slope of log κ above which κ is said to grow as T: halfway between saturated and proportional.
_GROWING = 0.5
#: Growth in the window, as a logarithm, from which on the growing mode alone decides σ_min: of one
#: multiplier, where bisection is exact up to there, and of a matrix, to about 1e-6.
_DOMINANT, _DOMINANT_MATRIX = 300.0, math.log(1e6)
#: Rows of a B(M) with momentum up to which its singular values are computed.
_MOST_ROWS = 2048
#: Multipliers from this on count as infinite, for κ is at least about their square.
_HUGE = 1e150


def conditioning(
    spectrum: Spectrum,
    dynamics: Dynamics,
    *,
    steps: int,
    order: int,
    idle: int = 0,
    truncation: Truncation | None = None,
) -> Conditioning:
    """σ_max, σ_min and κ of a window's system over the number of its steps.

    Args:
        spectrum: of the Hessian, or of the matrix of an optimizer's step. Nodes within its
            resolution count as zero, whose multiplier is 1. An eigenvalue that lies nearer to zero
            than all nodes is missed, and κ may then be larger.
        dynamics: learning rate and momentum.
        steps: T, the longest window, at least 1.
        order: N of ``kappa_order``, at least 1.
        idle: p, steps that repeat the final state, at least 0.
        truncation: the window as measured: its ‖G_0‖ and ‖u(t)‖ enter the homogeneous form's κ.

    Returns:
        Singular values at order 1 and κ of the diagonal blocks at order N, for about twelve T in
        equal ratios up to ``steps``; the slope of log κ against log T over the upper half of them
        by least squares, with its standard error; the regime; and σ_max and κ of the homogeneous
        form at order N, estimated. The regime is ``"exponential"`` where the window amplifies a
        product of N modes more than tenfold, else ``"T"`` where the slope is below 0.5, else, and
        where no slope is known, ``"T²"``. κ is infinite beyond float64's range. The slope is
        infinite where κ is, and NaN where there are fewer than two T; its error is infinite for
        two.

    Raises:
        ValueError: for an argument outside what is allowed.

    Cost: 20 ms for T = 10⁴. With momentum, eigenvalues of banded matrices of up to 2ᴺ⁺¹T rows: for
    150 nodes at N = 2, 0.2 s for T = 100 and 10 s for T = 1000. Where B has more than 2048 rows,
    σ_min is a lower bound, 5 to 60 % too low where we compared.

    Source: ours; see the head of this module.

    Example:
        >>> spectrum = Spectrum(
        ...     nodes=[1.0, 10.0], weights=[0.5, 0.5], exact=[True, True], dimension=2,
        ...     lambda_min=1.0, lambda_min_bound=0.0, lambda_max=10.0, lambda_max_bound=0.0,
        ...     trace=11.0, trace_error=0.0, resolution=1e-9, products=2, steps=2, probes=1,
        ...     seconds=0.0, kind="hessian",
        ... )
        >>> found = conditioning(spectrum, Dynamics(lr=0.1), steps=200, order=2)
        >>> found.steps[-1], round(found.kappa[-1], 2), found.regime  # → (1 + m)/(1 − m), m = 0.9
        (200, 18.81, 'T')
    """
    steps = require_integer("steps", steps, 1)
    order = require_integer("order", order, 1)
    idle = require_integer("idle", idle, 0)
    nodes = np.append(spectrum.nodes, [spectrum.lambda_min, spectrum.lambda_max])
    nodes = np.unique(np.where(np.abs(nodes) > spectrum.resolution, nodes, 0.0))
    multipliers = _multipliers(nodes, dynamics)
    grid = sorted({round(T) for T in np.geomspace(1, steps, _GRID)})
    ends = [_ends(multipliers, T, idle, order) for T in grid]
    kappa = [_ratio(largest, smallest) for (largest, smallest), _ in ends]
    half = len(grid) // 2
    exponent, error = _slope(grid[half:], kappa[half:])
    with np.errstate(over="ignore"):
        growth = float(dynamics.multipliers(nodes).max())
    amplified = order * steps * math.log(growth) if growth > 0 else -math.inf
    if amplified > math.log(_NOTICEABLE):
        regime = "exponential"
    else:
        regime = "T" if exponent < _GROWING else "T²"  # a slope of NaN is not below
    homogeneous = [
        homogeneous_ends(spectrum, dynamics, T, order, idle=idle, truncation=truncation)
        for T in grid
    ]
    return Conditioning(
        steps=grid,
        largest=[largest for (largest, _), _ in ends],
        smallest=[smallest for (_, smallest), _ in ends],
        kappa=kappa,
        kappa_order=[_ratio(*blocks) for _, blocks in ends],
        order=order,
        exponent=exponent,
        exponent_error=error,
        regime=regime,
        largest_homogeneous=[largest for largest, _ in homogeneous],
        kappa_homogeneous=[_ratio(*found) for found in homogeneous],
    )


def _multipliers(nodes: Array, dynamics: Dynamics) -> Array:
    """M of each node, of shape (k, 1, 1), or (k, 2, 2) with momentum."""
    with np.errstate(over="ignore"):
        x, mu = dynamics.lr * nodes, dynamics.momentum
        if mu == 0:
            return np.abs(1 - x)[:, None, None]
        ahead = mu if dynamics.nesterov else 1.0
        first = 1 - (1 + mu * dynamics.nesterov) * x
        rows = [[first, np.full_like(x, -mu * ahead)], [x, np.full_like(x, mu)]]
        return np.moveaxis(np.array(rows), -1, 0)


def _ends(
    multipliers: Array, steps: int, idle: int, order: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """σ_max and σ_min at order 1, and those of the diagonal blocks at order N."""
    if multipliers.shape[-1] == 1:
        widest = slowest = multipliers[multipliers[:, 0, 0].argmax()]
    else:
        outer = [multipliers[0], multipliers[-1]]
        widest = max(outer, key=lambda M: _largest(M, 1, steps, idle))
        slowest = _slowest(multipliers, steps, idle)
    first = _largest(widest, 1, steps, idle), _smallest(slowest, 1, steps, idle)
    largest, smallest = first
    for j in range(2, order + 1):
        largest = max(largest, _largest(widest, j, steps, idle))
        smallest = min(smallest, _smallest(slowest, j, steps, idle))
    return first, (largest, smallest)


def _slowest(multipliers: Array, steps: int, idle: int) -> Array:
    """The M whose B(M) has the least σ_min."""
    bounds = _inverse_bounds(multipliers, 1, steps, idle)
    most, found = 0.0, multipliers[0]
    for i in np.argsort(-bounds):
        if bounds[i] <= most:
            break
        smallest = _smallest(multipliers[i], 1, steps, idle)
        inverse = 1 / smallest if smallest > 0 else math.inf
        if inverse > most:
            most, found = inverse, multipliers[i]
    return np.asarray(found)


def _inverse_bounds(multipliers: Array, j: int, steps: int, idle: int) -> Array:
    r"""Upper bounds of the norm of the inverse, for j-fold powers of 2 × 2 matrices M.

    Block (t, s) of the inverse is :math:`M^{t-s}`, and for idle rows that of t = T. Its norm is at
    most its Frobenius norm, and at most √(largest column sum · largest row sum) of the norms of
    its blocks. Both norms of a Kronecker power are powers.
    """
    norms = np.ones((steps + 1, len(multipliers)))
    squares = np.full(norms.shape, 2.0)
    power, volume = np.broadcast_to(np.eye(2), multipliers.shape), np.ones(len(multipliers))
    with np.errstate(over="ignore", invalid="ignore"):
        volumes = np.abs(np.linalg.det(multipliers))
        for k in range(1, steps + 1):
            power, volume = power @ multipliers, volume * volumes
            squares[k] = np.nan_to_num((power**2).sum((1, 2)), nan=np.inf, posinf=np.inf)
            # The squares of the singular values have the sum ‖·‖_F² and the product det².
            root = np.sqrt(np.maximum(squares[k] - 2 * volume, 0))
            norms[k] = (np.sqrt(squares[k] + 2 * volume) + root) / 2
        norms, squares = norms**j, squares**j
        times = np.arange(steps + 1, 0, -1.0)[:, None] + idle
        frobenius = np.sqrt((times * squares).sum(0) + squares[0] * idle * (idle + 1) / 2)
        sums = norms.cumsum(0)
        columns = np.maximum((sums + idle * norms).max(0), idle)
        found = np.fmin(frobenius, np.sqrt(columns * (sums[-1] + idle)))
    return np.asarray(np.nan_to_num(found, nan=np.inf, posinf=np.inf))


# ---- One mode ------------------------------------------------------------------------------------


def _largest(multiplier: Array, j: int, steps: int, idle: int) -> float:
    """σ_max of B(M), M the j-fold power."""
    step = _power(multiplier, j)
    if not (np.abs(step) < _HUGE).all():
        return math.inf
    if len(step) > 1:
        # It rises with either number, up to a part of about 1/T² less than its limit.
        most = _MOST_ROWS // len(step)
        steps, idle = min(steps, most), min(idle, most)
    return _singular_value(step, steps, idle, smallest=False)


def _smallest(multiplier: Array, j: int, steps: int, idle: int) -> float:
    """σ_min of B(M), M the j-fold power; 0 where it underflows."""
    step = _power(multiplier, j)
    if not (np.abs(step) < _HUGE).all():
        return 0.0
    rates, right = np.linalg.eig(step)
    i = int(np.abs(rates).argmax())
    growth = steps * math.log(max(abs(rates[i]), 1.0))
    if growth <= (_DOMINANT if len(step) == 1 else _DOMINANT_MATRIX):
        if len(step) > 1 and len(step) * (steps + idle) > _MOST_ROWS:
            return 1 / float(_inverse_bounds(multiplier[None], j, steps, idle)[0])
        return _singular_value(step, steps, idle, smallest=True)
    # The power of the growing mode, and the projector on it, are all that is left of Mᵏ. Block
    # (t, s) of the inverse is then zᵗ⁻ˢ P: a matrix of rank one, in t and s.
    left = np.linalg.inv(right)[i]
    projector = float(np.linalg.norm(right[:, i]) * np.linalg.norm(left))
    decay = math.log(abs(rates[i]))
    columns = math.expm1(-2 * decay * (steps + 1)) / math.expm1(-2 * decay)
    log_norm = growth + math.log(projector) + 0.5 * math.log(columns * (columns + idle))
    return math.exp(-log_norm)


def _power(multiplier: Array, j: int) -> Array:
    """The j-fold Kronecker power."""
    with np.errstate(over="ignore"):
        return functools.reduce(lambda a, b: np.asarray(np.kron(a, b)), [multiplier] * j)


def _singular_value(step: Array, steps: int, idle: int, smallest: bool) -> float:
    """An extreme singular value of B(M): of one multiplier to 1e-15 of itself, else of σ_max."""
    d, rows = len(step), steps + 1 + idle
    half = rows * d
    index = half if smallest else 2 * half - 1
    scale = max(1.0, float(np.abs(step).max()))
    if d == 1:
        couplings = np.full(2 * rows - 1, 1 / scale)
        couplings[1 : 2 * steps : 2] = step[0, 0] / scale
        found = eigh_tridiagonal(
            np.zeros(2 * rows),
            couplings,
            eigvals_only=True,
            select="i",
            select_range=(index, index),
            lapack_driver="stebz",
            tol=2 * np.finfo(np.float64).tiny,  # absolute: what remains is a relative one
        )
        return float(found[0]) * scale
    # The entry (i + k, i) of the symmetric matrix in bands[k, i]; left and right in turn.
    bands = np.zeros((2 * d, rows, 2, d))
    bands[d, :, 0] = 1
    for column in range(d):
        for row in range(d):
            below = bands[d + row - column]
            below[:steps, 1, column] = -step[row, column]
            below[steps:-1, 1, column] = -float(row == column)
    found = eig_banded(
        bands.reshape(2 * d, 2 * half) / scale,
        lower=True,
        eigvals_only=True,
        select="i",
        select_range=(index, index),
    )
    return float(found[0]) * scale


# ---- The slope -----------------------------------------------------------------------------------


def _ratio(largest: float, smallest: float) -> float:
    return largest / smallest if smallest > 0 and largest / smallest < math.inf else math.inf


def _slope(steps: list[int], kappa: list[float]) -> tuple[float, float]:
    """Of log κ against log T by least squares, and its standard error."""
    if len(steps) < 2:
        return math.nan, math.inf
    if math.inf in kappa:
        return math.inf, 0.0
    x, y = np.log(steps), np.log(kappa)
    x, y = x - x.mean(), y - y.mean()
    slope = float(x @ y / (x @ x))
    if len(steps) == 2:
        return slope, math.inf
    residual = float(((y - slope * x) ** 2).sum())
    return slope, math.sqrt(residual / (len(steps) - 2) / float(x @ x))
