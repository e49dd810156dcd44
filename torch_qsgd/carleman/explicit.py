r"""The explicit representation: a window as one block-bidiagonal linear system ℒY = B."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import scipy.sparse as sparse
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import LinearOperator

from torch_qsgd.carleman.blocks import (
    StepOperator,
    block_powers,
    block_size,
    nonzeros,
    step_matrix,
)
from torch_qsgd.carleman.bounds import best_rescaling
from torch_qsgd.carleman.polynomial import PolynomialMap
from torch_qsgd.checks import require_integer, require_number, require_one_of
from torch_qsgd.errors import SizeError
from torch_qsgd.linear_system import LinearSystem, Vector

CLOSURES = ("homogeneous", "standard")
ETA_ORDERS = ("all", "first")
BASES = ("kronecker", "monomial")
S = TypeVar("S")
R = TypeVar("R")
#: Memory that a system may take, in bytes.
LIMIT = 2**32


@dataclass(frozen=True)
class SystemSize:
    """What a Carleman system will take, known before anything is built.

    Attributes:
        step: D, unknowns of one time step.
        unknowns: (T + 1 + p) D.
        vector_bytes: of one vector of unknowns, in float64.
        product_bytes: of what a matrix-free product works on, beside its vectors, about.
        matrix_bytes: of ℒ as a sparse matrix, an upper bound.
    """

    step: int
    unknowns: int
    vector_bytes: int
    product_bytes: int
    matrix_bytes: int


class CarlemanSystem(LinearSystem):
    r"""T steps of a polynomial map as a truncated discrete Carleman system.

    .. math::
        y(0) = y_{in}, \qquad y(t+1) - A_t\,y(t) = b_t \;(t < T), \qquad
        y(t+1) - y(t) = 0 \;(T \le t < T + p)

    with :math:`y = (y_1, …, y_N)`. In the **standard** form :math:`y_j = (u/\gamma)^{\otimes j}`
    and :math:`b_t` holds the powers of :math:`G_0`; in the **homogeneous** form
    :math:`y_j = (1, u/\gamma)^{\otimes j}` and :math:`b_t = 0`. The unknowns are ordered by time,
    then by block.

    Args:
        maps: one :class:`PolynomialMap` for all steps, or a sequence of T of them.
        steps: T, at least 1.
        order: N, at least 1.
        start: u(0), of shape (n,); zero by default.
        idle: p, steps at the end that repeat the final state, at least 0.
        closure: ``"homogeneous"`` or ``"standard"``.
        eta_orders: ``"all"``, or ``"first"`` to keep only terms with at most one factor that is
            not the identity: the Euler step of the continuous-time system, an ablation.
        basis: ``"kronecker"``, or ``"monomial"`` for symmetric tensors only, C(n+j−1, j) unknowns
            a block instead of n^j.
        rescaling: γ, or ``"auto"`` for :func:`torch_qsgd.carleman.bounds.best_rescaling`.
        limit: bytes that a vector of unknowns, or the sparse matrix, may take.

    Raises:
        SizeError: where a vector of unknowns would pass ``limit``; on reading ``matrix``, where
            that would. Nothing has been built then, and the message says what would work.
        ValueError: for an argument outside what is allowed.

    Cost: of a product (T + p) products of one step (:class:`torch_qsgd.carleman.blocks
    .StepOperator`), matrix-free; ``matrix`` is built when first read.

    Source: the standard form in continuous time, Liu et al., PNAS 118, e2026805118 (2021); the
    discrete forms with all orders of η are ours.

    Example:
        >>> halving = PolynomialMap([0.0], [[0.5]], [[0.1]])
        >>> system = CarlemanSystem(halving, steps=2, order=3, start=[1.0])
        >>> u = 1.0
        >>> for _ in range(2):
        ...     u = 0.5 * u + 0.1 * u**2
        >>> abs(float(system.displacement(system.solution)[0]) - u) < 2e-3
        True
    """

    def __init__(
        self,
        maps: PolynomialMap | Sequence[PolynomialMap],
        steps: int,
        *,
        order: int,
        start: ArrayLike | None = None,
        idle: int = 0,
        closure: str = "homogeneous",
        eta_orders: str = "all",
        basis: str = "kronecker",
        rescaling: float | str = 1.0,
        limit: int = LIMIT,
    ) -> None:
        first = maps if isinstance(maps, PolynomialMap) else next(iter(maps), None)
        if not isinstance(first, PolynomialMap):
            raise ValueError(f"maps must be a PolynomialMap, or a sequence of them, got {maps!r}")
        require_one_of("eta_orders", eta_orders, ETA_ORDERS)
        require_integer("limit", limit, 1)
        self.footprint = system_size(first, steps, order, idle=idle, closure=closure, basis=basis)
        _guard(
            max(self.footprint.vector_bytes, self.footprint.product_bytes),
            limit,
            self.footprint,
            "Krylov representation in fewer dimensions, the jet representation, a lower order",
        )
        self.maps = [maps] * steps if isinstance(maps, PolynomialMap) else list(maps)
        self.steps, self.order, self.idle = int(steps), int(order), int(idle)
        self.closure, self.eta_orders, self.basis, self.limit = closure, eta_orders, basis, limit
        self._check_maps()
        self.dimension = first.dimension
        self.start = np.zeros(self.dimension) if start is None else np.asarray(start, dtype=float)
        if self.start.shape != (self.dimension,) or not np.isfinite(self.start).all():
            raise ValueError(f"start must hold {self.dimension} finite numbers, got {start!r}")
        self.rescaling = self._choose_rescaling(rescaling)
        self._steps = self._lifted()
        self.operators = _each_once(
            self._steps, lambda step: StepOperator(step, order, eta_orders, basis)
        )
        super().__init__(self._products(), self._right_hand_side())

    def _check_maps(self) -> None:
        if len(self.maps) != self.steps:
            raise ValueError(
                f"give one map, or one for each of the {self.steps} steps: got {len(self.maps)}"
            )
        if len({m.dimension for m in self.maps}) != 1:
            raise ValueError("all maps must have the same dimension")

    def _choose_rescaling(self, rescaling: float | str) -> float:
        if isinstance(rescaling, str) and rescaling == "auto":
            return best_rescaling(self.maps, self.steps, self.order, start=self.start)
        return require_number("rescaling", rescaling, 0, otherwise=", or 'auto'")

    def _lifted(self) -> list[PolynomialMap]:
        """The map of each step, rescaled, of z where homogeneous."""

        def lift(step: PolynomialMap) -> PolynomialMap:
            scaled = step.rescaled(self.rescaling)
            return scaled.homogeneous() if self.closure == "homogeneous" else scaled

        return _each_once(self.maps, lift)

    # ---- The system --------------------------------------------------------------------------

    @property
    def step_size(self) -> int:
        """D, the unknowns of one time step."""
        return self.footprint.step

    @property
    def block_sizes(self) -> list[int]:
        """Unknowns of the blocks 1 … N."""
        return self.operators[0].sizes

    def _right_hand_side(self) -> Vector:
        blocks = np.zeros((self.steps + 1 + self.idle, self.step_size))
        blocks[0] = self._lift_state(self.start)
        forcings = _each_once(self.operators, lambda operator: operator.forcing())
        blocks[1 : self.steps + 1] = forcings
        return blocks.ravel()

    def _lift_state(self, u: Vector) -> Vector:
        """y = (z, z⊗z, …) of one point u."""
        z = u / self.rescaling
        if self.closure == "homogeneous":
            z = np.concatenate([[1.0], z])
        return block_powers(z, self.order, self.basis)

    def _products(self) -> LinearOperator:
        rows = (self.steps + 1 + self.idle, self.step_size)
        size = rows[0] * rows[1]

        def matvec(vector: Vector) -> Vector:
            y = vector.reshape(rows)
            image = y.copy()
            image[1 : self.steps + 1] -= self._advance(y[: self.steps])
            image[self.steps + 1 :] -= y[self.steps : -1]
            return image.ravel()

        def rmatvec(vector: Vector) -> Vector:
            y = vector.reshape(rows)
            image = y.copy()
            image[: self.steps] -= self._advance(y[1 : self.steps + 1], transposed=True)
            image[self.steps : -1] -= y[self.steps + 1 :]
            return image.ravel()

        return LinearOperator((size, size), matvec=matvec, rmatvec=rmatvec, dtype=np.float64)

    def _advance(self, y: NDArray[np.float64], transposed: bool = False) -> NDArray[np.float64]:
        """A_t y_t, or A_tᵀ y_t, of T time steps; steps of one map go through it together."""
        image = np.empty_like(y)
        together: dict[int, list[int]] = {}
        for t, operator in enumerate(self.operators):
            together.setdefault(id(operator), []).append(t)
        for times in together.values():
            operator = self.operators[times[0]]
            product = operator.apply_transposed if transposed else operator.apply
            image[times] = product(y[times].T).T
        return image

    @cached_property
    def step_matrices(self) -> list[sparse.csr_array]:
        """A_t of each step, as sparse matrices.

        Raises:
            SizeError: where ℒ would pass the limit.
        """
        what = "matrix-free operator (solvers `qsvt` and `exact`)"
        _guard(self.footprint.matrix_bytes, self.limit, self.footprint, what)
        return _each_once(
            self._steps,
            lambda step: step_matrix(step, self.order, self.eta_orders, self.basis)[0],
        )

    @cached_property
    def _sparse_matrix(self) -> sparse.csr_array:
        idle = [sparse.eye_array(self.step_size)] * self.idle
        below = sparse.block_diag([*self.step_matrices, *idle], format="coo")
        row, column = below.coords
        shifted = sparse.coo_array(
            (-below.data, (row + self.step_size, column)), shape=(self.size, self.size)
        )
        return sparse.csr_array(sparse.eye_array(self.size) + shifted)

    @property
    def matrix(self) -> sparse.csr_array:
        """ℒ as a sparse matrix, built when first read; see ``step_matrices``."""
        return self._sparse_matrix

    def solve(self, rhs: Vector, transposed: bool = False) -> Vector:
        """ℒ⁻¹ or ℒ⁻ᵀ applied to a vector, by substitution through the steps, matrix-free."""
        y = np.array(rhs, dtype=np.float64).reshape(-1, self.step_size)
        if transposed:
            for t in range(len(y) - 2, -1, -1):
                following = y[t + 1]
                if t < self.steps:
                    following = self.operators[t].apply_transposed(following[:, None])[:, 0]
                y[t] += following
        else:
            for t in range(len(y) - 1):
                known = y[t]
                y[t + 1] += (
                    self.operators[t].apply(known[:, None])[:, 0] if t < self.steps else known
                )
        return y.ravel()

    # ---- Reading a solution ------------------------------------------------------------------

    def blocks(self, vector: Vector) -> NDArray[np.float64]:
        """A vector of unknowns by time: shape (T + 1 + p, D)."""
        return np.asarray(vector).reshape(-1, self.step_size)

    def history(self, vector: Vector) -> NDArray[np.float64]:
        """u(0) … u(T) out of a solution: shape (T + 1, n)."""
        first = self.blocks(vector)[: self.steps + 1, self.displacement_slots]
        return np.asarray(first * self.rescaling)

    def displacement(self, vector: Vector) -> Vector:
        """u(T) out of a solution, of shape (n,): the mean of its p + 1 copies."""
        copies = self.blocks(vector)[self.steps :, self.displacement_slots]
        return np.asarray(copies.mean(axis=0) * self.rescaling)

    def final_probability(self, vector: Vector) -> float:
        """P(final): of finding the time register at one of the final copies."""
        weights = (self.blocks(vector) ** 2).sum(axis=1)
        return float(weights[self.steps :].sum() / weights.sum())

    def level_one_probability(self, vector: Vector) -> float:
        """P(u | final): of finding the displacement in block 1, given a final copy.

        The constant 1 of the homogeneous form is not counted.
        """
        final = self.blocks(vector)[self.steps :]
        weight = float((final**2).sum())
        return float((final[:, self.displacement_slots] ** 2).sum()) / weight if weight else 0.0

    @property
    def displacement_slots(self) -> slice:
        """Where u/γ stands among the unknowns of one time step."""
        skip = int(self.closure == "homogeneous")
        return slice(skip, skip + self.dimension)


def system_size(
    step: PolynomialMap,
    steps: int,
    order: int,
    *,
    idle: int = 0,
    closure: str = "homogeneous",
    basis: str = "kronecker",
) -> SystemSize:
    """Unknowns and memory of a Carleman system; nothing is built.

    Example:
        >>> step = PolynomialMap([0.0] * 4, None, None)
        >>> system_size(step, steps=10, order=3, closure="standard").unknowns  # 11 (4 + 16 + 64)
        924
    """
    for name, value, least in (("steps", steps, 1), ("order", order, 1), ("idle", idle, 0)):
        require_integer(name, value, least)
    require_one_of("closure", closure, CLOSURES)
    require_one_of("basis", basis, BASES)
    homogeneous = closure == "homogeneous"
    n, counts = step.dimension, step.nonzeros
    if homogeneous:  # z = (1, u), with G_0 and the constant in the linear factor
        n += 1
        counts = [0, 1 + sum(counts[:2]), *counts[2:]]
    size = sum(block_size(n, j, basis) for j in range(1, order + 1))
    entries = nonzeros(counts, n, order, basis)
    unknowns = (steps + 1 + idle) * size
    widest = 8 * n**order * (3 if basis == "kronecker" else 2 * order + 6)
    return SystemSize(
        step=size,
        unknowns=unknowns,
        vector_bytes=8 * unknowns,
        product_bytes=widest,
        # A number and its column, which may take eight bytes; and where each row begins.
        matrix_bytes=16 * (unknowns + idle * size + steps * entries) + 8 * (unknowns + 1),
    )


def _guard(needed: int, limit: int, size: SystemSize, instead: str) -> None:
    if needed > limit:
        raise SizeError(
            f"{size.unknowns:,} unknowns, {size.step:,} a step: a vector takes "
            f"{size.vector_bytes / 2**20:,.3g} MiB and the matrix up to "
            f"{size.matrix_bytes / 2**20:,.3g} MiB, over the limit of {limit / 2**20:,.3g} MiB. "
            f"Nothing was built: use the {instead}, or raise `limit`"
        )


def _each_once(items: Sequence[S], function: Callable[[S], R]) -> list[R]:
    """The function of each item, called once for each distinct object."""
    known: dict[int, R] = {}
    for item in items:
        if id(item) not in known:
            known[id(item)] = function(item)
    return [known[id(item)] for item in items]
