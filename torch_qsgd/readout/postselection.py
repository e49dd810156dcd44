r"""The odds of reading what is wanted from the solution of a window's Carleman system.

The homogeneous form has :math:`z = (1, u/\gamma)` and blocks :math:`y_j = z^{\otimes j}`, cut at
order N. Graded by order, :math:`z = \sum_k z_k` with :math:`z_1 = (1, c_1/\gamma)` and
:math:`z_k = (0, c_k/\gamma)` for k ≥ 2, where :math:`c_k` are the window's jets. The cut solution
has exactly the terms of order up to N,

.. math::
    y_j = \sum_{k_1 + … + k_j \le N} z_{k_1} \otimes … \otimes z_{k_j}, \qquad
    \|y_j\|^2 = \sum_{a,b \le N} [s^a t^b]\, M(s, t)^j,

with :math:`M(s,t) = \sum_{kl} \langle z_k, z_l \rangle s^k t^l` and :math:`\langle z_k, z_l
\rangle = G_{kl}/\gamma^2 + \delta_{k1}\delta_{l1}`. So the N×N Gram matrix G of the jets gives
all norms, at any model size. With momentum, z holds the velocities too, and G is the sum of both
Gram matrices; the displacement's share is then that of both together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from torch_qsgd.checks import require_flag, require_integer, require_number
from torch_qsgd.linear_system import real_array

Array = NDArray[np.float64]

#: γ is sought within this factor of the final displacement's length, up and down.
REACH = 1e3


@dataclass(frozen=True)
class PostSelection:
    r"""The odds of reading a window's displacement, and the length of its history state.

    Attributes:
        final: the probability that the clock is found at the last step, or idling after it:
            :math:`(p+1)\|y(T)\|^2 / \|Y\|^2`.
        level_one: the probability, there, that the state is found in the displacement's part of
            block 1: :math:`\|u/\gamma\|^2 / \|y(T)\|^2`.
        constant: the probability, there, of block 1's constant: :math:`1 / \|y(T)\|^2`.
        norm: :math:`\|Y\|` of the whole history, idle steps included.
        rescaling: γ.
    """

    final: float
    level_one: float
    constant: float
    norm: float
    rescaling: float

    @property
    def probability(self) -> float:
        """Of one run's success: ``final`` times ``level_one``."""
        return self.final * self.level_one


def block_norms(
    gram: ArrayLike, order: int, rescaling: float = 1.0, constant: bool = True
) -> Array:
    r"""Squared norms of the blocks of a truncated Carleman solution, from its jets' Gram matrix.

    Args:
        gram: :math:`G_{kl} = \langle c_k, c_l \rangle`, of shape (…, K, K) with K ≥ N.
        order: N.
        rescaling: γ.
        constant: whether z has the constant 1; without it, the blocks are :math:`(u/\gamma)^{
            \otimes j}`, cut in the same way.

    Returns:
        :math:`\|y_1\|^2 … \|y_N\|^2`, of shape (…, N).

    Raises:
        ValueError: for a shape that does not fit, NaN or infinity, an N or γ out of its range, or
            norms that overflow.
        TypeError: for a Gram matrix that does not hold real numbers.

    Cost: N⁵ operations a Gram matrix.

    Example:
        One jet, u = (0, 2): z = (1, 0, 2) has length √5.

        >>> block_norms([[4.0]], order=1)
        array([5.])
    """
    grams = _checked(gram)
    require_flag("constant", constant)
    order = require_integer("order", order, 1, grams.shape[-1])
    rescaling = require_number("rescaling", rescaling, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = _norms(grams[..., :order, :order] / rescaling / rescaling, constant)
    if not np.isfinite(norms).all():
        raise ValueError(
            f"the blocks' norms overflow at rescaling={rescaling:g}: choose one nearer to the "
            "length of the displacement"
        )
    return norms


def _norms(inner: Array, constant: bool) -> Array:
    order = inner.shape[-1]
    if constant:
        inner = inner.copy()
        inner[..., 0, 0] += 1.0
    power = inner
    norms = [inner.sum(axis=(-2, -1))]
    for _ in range(1, order):
        # Position (k, l) holds the coefficient of s^(k+1) t^(l+1).
        product = np.zeros_like(inner)
        for k in range(order - 1):
            for l in range(order - 1):  # noqa: E741 - as in the formula
                product[..., k + 1 :, l + 1 :] += (
                    inner[..., k, l, None, None] * power[..., : order - 1 - k, : order - 1 - l]
                )
        power = product
        norms.append(power.sum(axis=(-2, -1)))
    # A sum over a Gram matrix is a squared length; rounding may take it below zero.
    squares: Array = np.maximum(np.stack(norms, axis=-1), 0.0)
    return squares


def post_selection(
    grams: ArrayLike, rescaling: float | None = None, idle: int = 0
) -> PostSelection:
    r"""The odds of reading a window's displacement from its history state.

    .. math::
        P(\text{final}) = \frac{(p+1)\|y(T)\|^2}{\sum_{t<T}\|y(t)\|^2 + (p+1)\|y(T)\|^2},
        \qquad \|y\|^2 = \sum_{j=1}^{N} \|y_j\|^2

    Args:
        grams: Gram matrices of the jets after t = 0 … T steps, of shape (T+1, N, N).
        rescaling: γ, in the unit of the parameters. By default the one that makes
            ``final`` · ``level_one`` largest, within a factor of 10³ of ‖u(T)‖: our definition.
            At N = 1 smaller is always better, and the lower end is taken.
        idle: p, the steps after the window that hold its last state.

    Raises:
        ValueError: for a shape that does not fit, NaN or infinity, a γ or p out of its range, or
            norms that overflow; for a final displacement of zero, of which there is nothing to
            read.
        TypeError: for Gram matrices that do not hold real numbers.

    Cost: T·N⁵ operations, about 100 times over where γ is to be found.

    Example:
        Two steps of equal length, order 1: the history has blocks (1, 0), (1, 1) and (1, 2).

        >>> odds = post_selection([[[0.0]], [[1.0]], [[4.0]]], rescaling=1.0)
        >>> odds.final, odds.level_one, odds.constant
        (0.625, 0.8, 0.2)
    """
    matrices = _checked(grams)
    if matrices.ndim != 3 or len(matrices) < 2:
        raise ValueError(f"grams must have shape (T+1, N, N) with T ≥ 1, got {matrices.shape}")
    idle = require_integer("idle", idle, 0)
    if rescaling is not None:
        rescaling = require_number("rescaling", rescaling, 0, otherwise=", or None for the best")
    displacement = float(matrices[-1].sum())
    if not displacement > 0:
        raise ValueError("the final displacement is zero: there is nothing to read")
    if rescaling is None:
        rescaling = _best_rescaling(matrices, idle, displacement)
    return _odds(matrices, rescaling, idle, displacement)


def _odds(grams: Array, rescaling: float, idle: int, displacement: float) -> PostSelection:
    lengths = block_norms(grams, grams.shape[-1], rescaling).sum(axis=-1)
    last = (idle + 1) * float(lengths[-1])
    total = float(lengths[:-1].sum()) + last
    return PostSelection(
        final=last / total,
        level_one=displacement / rescaling / rescaling / float(lengths[-1]),
        constant=1.0 / float(lengths[-1]),
        norm=float(np.sqrt(total)),
        rescaling=rescaling,
    )


def _best_rescaling(grams: Array, idle: int, displacement: float) -> float:
    length = float(np.sqrt(displacement))

    def loss(exponent: float) -> float:
        return -_odds(grams, length * float(np.exp(exponent)), idle, displacement).probability

    # A grid first: nothing says that there is one maximum only.
    reach = float(np.log(REACH))
    grid = np.linspace(-reach, reach, 57)
    best = int(np.argmin([loss(float(exponent)) for exponent in grid]))
    around = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = float(minimize_scalar(loss, bounds=around, method="bounded").x)
    best_exponent = min(found, float(grid[best]), key=loss)
    return length * float(np.exp(best_exponent))


def _checked(grams: ArrayLike) -> Array:
    matrices = real_array("a Gram matrix", grams)
    if matrices.ndim < 2 or matrices.shape[-1] != matrices.shape[-2] or matrices.size == 0:
        raise ValueError(f"a Gram matrix must be square, got shape {matrices.shape}")
    return matrices
