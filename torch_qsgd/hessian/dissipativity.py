r"""Which modes of a spectrum gradient descent damps, which it amplifies, and when to stop.

Around an anchor, a step of gradient descent at learning rate η multiplies the mode of eigenvalue
λ by :math:`1 - ηλ`: modes with :math:`0 < λ < 2/η` are dissipated, negative ones grow, and so
does the error of a truncated Carleman system along them.

The error proxy is our own definition; the formula of the paper that DESIGN follows could not be
read, only that its curve falls and then grows exponentially, as this one does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torch_qsgd.checks import require_number

Array = NDArray[np.float64]
T = TypeVar("T", float, Array)

_CHUNK = 1 << 20  # numbers held at once while many t are evaluated
_MOST_STEPS = 1 << 1023  # a float64 holds no larger power of two


@dataclass(frozen=True, eq=False)
class ErrorProxy(Generic[T]):
    """P(t) and its two parts; numbers for one t, arrays of the same shape for an array of t.

    Attributes:
        total: P(t), the sum of both.
        positive: the part of the modes that are positive, or zero to the resolution. It falls,
            but for modes beyond 2/η.
        negative: the part of the modes with λ below minus the resolution. It grows.
    """

    total: T
    positive: T
    negative: T


def multipliers(nodes: ArrayLike, lr: float) -> Array:
    """|1 − ηλ|: the factor of each mode's size in one step of gradient descent.

    Args:
        nodes: eigenvalues λ, of shape (k,), in loss per squared weight.
        lr: η, above 0, in squared weights per loss.

    Returns:
        Shape (k,), float64; infinite where the product overflows.

    Raises:
        ValueError: for nodes that are no list of finite numbers, or η outside what is allowed.

    Example:
        >>> multipliers([-1.0, 0.0, 5.0, 30.0], lr=0.1)
        array([1.1, 1. , 0.5, 2. ])
    """
    with np.errstate(over="ignore"):
        return np.abs(1.0 - require_number("lr", lr, 0) * _vector("nodes", nodes))


@overload
def error_proxy(
    nodes: ArrayLike, weights: ArrayLike, lr: float, steps: float, *, resolution: float = 0.0
) -> ErrorProxy[float]: ...
@overload
def error_proxy(
    nodes: ArrayLike, weights: ArrayLike, lr: float, steps: ArrayLike, *, resolution: float = 0.0
) -> ErrorProxy[Array]: ...
def error_proxy(
    nodes: ArrayLike, weights: ArrayLike, lr: float, steps: ArrayLike, *, resolution: float = 0.0
) -> ErrorProxy[Any]:
    r"""The error proxy of gradient descent's modes after t steps.

    .. math:: P(t) = \sum_i w_i \, |1 - ηλ_i|^t

    It is convex in t, and P(0) = 1: dissipated modes let it fall, then the negative ones, and
    those beyond 2/η, take over and it grows exponentially.

    Args:
        nodes: eigenvalues λ, of shape (k,).
        weights: their shares w of all eigenvalues, of shape (k,), at least 0, with sum 1.
        lr: η, above 0.
        steps: t, at least 0: one number, or an array of any shape.
        resolution: at least 0; modes with |λ| at or below it cannot be told from zero, and are
            taken as zero.

    Returns:
        P and its parts, as numbers or in the shape of ``steps``; infinite beyond float64's range.

    Raises:
        ValueError: for an argument outside what is allowed.

    Cost: k operations for each t, however large t is.

    Source: ours.

    Example:
        >>> proxy = error_proxy([-1.0, 5.0], [0.25, 0.75], lr=0.1, steps=[0, 1, 2])
        >>> proxy.negative
        array([0.25  , 0.275 , 0.3025])
        >>> proxy.total
        array([1.  , 0.65, 0.49])
    """
    modes = _Modes.of(nodes, weights, lr, resolution)
    times = _times(steps)
    flat = times.reshape(-1)
    parts = np.zeros((2, flat.size))
    length = max(1, _CHUNK // max(1, modes.log_weights.size))
    for start in range(0, flat.size, length):
        chunk = slice(start, start + length)
        with np.errstate(over="ignore", under="ignore"):
            terms = np.exp(modes.log_terms(flat[chunk]))
        parts[0, chunk] = terms[:, ~modes.negative].sum(1)
        parts[1, chunk] = terms[:, modes.negative].sum(1)
    positive, negative = parts.reshape(2, *times.shape)
    if np.ndim(steps) == 0:
        one, other = float(positive), float(negative)
        return ErrorProxy(total=one + other, positive=one, negative=other)
    return ErrorProxy(total=positive + negative, positive=positive, negative=negative)


def best_window(
    nodes: ArrayLike, weights: ArrayLike, lr: float, *, resolution: float = 0.0
) -> int | float:
    """The number of steps t* at which the error proxy is least.

    P(t + 1) − P(t) = Σ w |m|^t (|m| − 1) never falls with t, so its first t at or above zero is
    found by doubling and bisection; it is compared in logarithms, which no t overflows.

    Of a quadrature, it is as coarse as the few nodes near zero on which it depends, and has no
    error bar: compare it with that of more steps, or another probe.

    Args:
        nodes, weights, lr, resolution: as in :func:`error_proxy`.

    Returns:
        t*, an integer of at least 0, the first where several are least; ``math.inf`` where P
        never rises, as for a convex loss with η below 2/λ.

    Raises:
        ValueError: for an argument outside what is allowed.

    Cost: k operations for each of at most 2·log₂ t* trials.

    Source: ours.

    Example:
        >>> best_window([-1.0, 5.0], [0.25, 0.75], lr=0.1)
        4
        >>> best_window([0.0, 5.0], [0.25, 0.75], lr=0.1)
        inf
    """
    modes = _Modes.of(nodes, weights, lr, resolution)
    if not (modes.log_multipliers > 0).any():
        return math.inf
    stop = 1
    while not modes.rises(stop - 1):
        stop *= 2
        if stop > _MOST_STEPS:
            return math.inf
    # P rises from stop − 1 on, and does not yet at stop // 2 − 1.
    low, high = stop // 2, stop - 1
    while low < high:
        middle = (low + high) // 2
        if modes.rises(middle):
            high = middle
        else:
            low = middle + 1
    return low


# ---- Modes in logarithms -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Modes:
    """Modes of a weight above zero: log w, log |m|, log ||m| − 1|, and which are negative."""

    log_weights: Array
    log_multipliers: Array
    log_changes: Array
    negative: NDArray[np.bool_]

    @classmethod
    def of(cls, nodes: ArrayLike, weights: ArrayLike, lr: float, resolution: float) -> _Modes:
        eigenvalues, shares = _vector("nodes", nodes), _vector("weights", weights)
        if eigenvalues.shape != shares.shape or eigenvalues.size == 0 or (shares < 0).any():
            raise ValueError(
                "give one weight of at least 0 for each node, and at least one node: got "
                f"{eigenvalues.size} nodes and {shares.size} weights, the least "
                f"{shares.min(initial=math.inf):g}"
            )
        lr = require_number("lr", lr, 0)
        if resolution != 0:
            require_number("resolution", resolution, 0, otherwise=", or 0")
        there = shares > 0
        eigenvalues, shares = eigenvalues[there], shares[there]
        resolved = np.where(np.abs(eigenvalues) > resolution, eigenvalues, 0.0)
        with np.errstate(over="ignore", under="ignore", divide="ignore"):
            x = lr * resolved
            far = x > 1.0
            near = np.where(far, 0.0, x)
            # log1p keeps what 1 − x has lost where x is small, and that is what counts at large t.
            logs = np.where(far, np.log(np.where(far, x - 1.0, 1.0)), np.log1p(-near))
            # |m| − 1 is −x up to the mode that is damped out at once, and x − 2 beyond it.
            changes = np.log(np.where(far, np.abs(x - 2.0), np.abs(near)))
            return cls(np.log(shares), logs, changes, eigenvalues < -resolution)

    def log_terms(self, times: Array) -> Array:
        """log of w |m|^t, of shape (times, modes); |m|⁰ is 1 for every m."""
        with np.errstate(over="ignore", invalid="ignore"):
            powers = times[:, None] * self.log_multipliers
        return self.log_weights + np.where(times[:, None] == 0, 0.0, powers)

    def rises(self, t: int) -> bool:
        """Whether P(t + 1) ≥ P(t)."""
        terms = self.log_terms(np.array([float(t)]))[0] + self.log_changes
        grows = self.log_multipliers > 0
        growth = np.logaddexp.reduce(terms[grows], initial=-np.inf)
        decay = np.logaddexp.reduce(terms[~grows], initial=-np.inf)
        return bool(growth >= decay)


# ---- Arguments -----------------------------------------------------------------------------------


def _vector(name: str, given: Any) -> Array:
    values = np.asarray(given)
    if values.ndim != 1 or values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        raise ValueError(f"{name} must be a list of finite numbers, got {given!r}")
    return values.astype(np.float64)


def _times(given: Any) -> Array:
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.array(np.nan)
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"steps must be finite numbers of at least 0, got {given!r}")
    return values
