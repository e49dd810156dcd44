"""A real linear system ℒx = b: what a quantum linear solver is given, and its classical facts."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sparse
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import (
    ArpackError,
    LinearOperator,
    aslinearoperator,
    lsmr,
    splu,
    svds,
)
from torch import Tensor

from torch_qsgd.errors import SingularSystemError, SizeError

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Up to this many unknowns, singular values come from a dense decomposition.
DENSE = 512
#: Up to this many unknowns, a matrix may be written out densely.
WRITTEN_OUT = 4096


class LinearSystem:
    r"""A square real system :math:`\mathcal{L} x = b`.

    Any scale that float64 holds will do, of ℒ and of b alike.

    Args:
        matrix: :math:`\mathcal{L}`, of shape (D, D): an array, a ``scipy.sparse`` matrix, or a
            ``scipy.sparse.linalg.LinearOperator`` with ``matvec`` and ``rmatvec``.
        rhs: b, of shape (D,).

    Raises:
        ValueError: for shapes that do not fit, for NaN or infinity, for b = 0, whose solution a
            quantum state cannot hold.
        TypeError: for complex numbers, or what are no numbers.

    Example:
        >>> system = LinearSystem([[2.0, 0.0], [1.0, 1.0]], [2.0, 3.0])
        >>> system.solution
        array([1., 2.])
        >>> round(system.condition_number, 3)
        2.618
    """

    def __init__(self, matrix: Any, rhs: ArrayLike) -> None:
        given = real_array("rhs", rhs)
        if given.size != max(given.shape, default=1):
            raise ValueError(f"rhs must be a vector, got shape {given.shape}")
        self.rhs: Vector = given.ravel()
        if isinstance(matrix, LinearOperator):
            if np.issubdtype(matrix.dtype, np.complexfloating):
                raise TypeError(f"matrix must be real, got a LinearOperator of {matrix.dtype}")
            self._matrix = None
            self.operator: LinearOperator = matrix
        else:
            self._matrix = _sparse(matrix)
            self.operator = aslinearoperator(self._matrix)
        shape = tuple(self.operator.shape)
        if shape != (self.rhs.size, self.rhs.size):
            raise ValueError(_misfit(shape, self.rhs.size))
        if not self.rhs.any():
            raise ValueError(
                "the right-hand side is zero, and so is the solution: no quantum state holds it"
            )
        if not math.isfinite(length(self.rhs)):
            raise ValueError("the right-hand side's length overflows float64: scale it down")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size} unknowns)"

    @property
    def size(self) -> int:
        """D, the number of unknowns."""
        return int(self.rhs.size)

    @property
    def matrix(self) -> sparse.csr_array | None:
        """ℒ as a sparse matrix, or ``None`` where only its products are known."""
        return self._matrix

    def dense(self, limit: int = WRITTEN_OUT) -> Matrix:
        """ℒ as an array of shape (D, D).

        Raises:
            SizeError: above ``limit`` unknowns, before anything is built.
        """
        if self.size > limit:
            raise SizeError(
                f"{self.size:,} unknowns are more than the {limit:,} allowed for a dense matrix "
                f"({8 * self.size**2 / 2**30:.3g} GiB): use the `qsvt` or `exact` solver, which "
                "need products only"
            )
        matrix = self.matrix
        if matrix is not None:
            return np.asarray(matrix.toarray())
        return real_array("the LinearOperator", self.operator.matmat(np.eye(self.size)))

    def transposed_product(self, vector: Vector) -> Vector:
        """ℒᵀ times a vector of shape (D,).

        Raises:
            TypeError: where the ``LinearOperator`` was given without ``rmatvec``.
        """
        try:
            return np.asarray(self.operator.rmatvec(vector))
        except NotImplementedError as error:
            raise TypeError("the LinearOperator needs rmatvec, the product with ℒᵀ") from error

    @cached_property
    def is_symmetric(self) -> bool:
        """Whether ℒ = ℒᵀ to rounding. False where only products are known."""
        matrix = self.matrix
        if matrix is None:
            return False
        gap = abs(matrix - matrix.T).max()
        return bool(gap <= 1e-14 * abs(matrix).max())

    # ---- Exact solution ----------------------------------------------------------------------

    @cached_property
    def solution(self) -> Vector:
        """ℒ⁻¹b to rounding: the reference of every emulated solver.

        Raises:
            SingularSystemError: where ℒ has no inverse in double precision.
            ValueError: where ℒ has one, and ℒ⁻¹b is too large or too small for float64.
        """
        # With b of ℒ's own scale, x is of order 1 to κ; b's scale is put back after the check.
        shift = self._exponent - _exponent_of(self.rhs)
        rhs = np.ldexp(self.rhs, shift)
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = self.solve(rhs)
            residual = length(self.operator.matvec(scaled) - rhs) / length(rhs)
        if not residual <= 1e-6:
            raise _singular(self.norm * length(scaled) / length(rhs))
        with np.errstate(over="ignore", under="ignore"):
            x: Vector = np.ldexp(scaled, -shift)
        if not math.isfinite(length(x)) or length(x) < np.finfo(np.float64).tiny:
            raise ValueError(
                "the solution is too large or too small for float64, about 10^"
                f"{(_exponent_of(scaled) - shift) * math.log10(2):.0f}: scale the matrix or the "
                "right-hand side"
            )
        return x

    def solve(self, rhs: Vector, transposed: bool = False) -> Vector:
        """ℒ⁻¹ or ℒ⁻ᵀ applied to a vector of shape (D,).

        Cost: a sparse LU factorisation once, kept. Where only products are known, D of them write
        ℒ out up to 4096 unknowns; above, least squares, some hundreds to thousands.
        """
        if self.matrix is None and self.size > WRITTEN_OUT:
            operator = self._unit_scale.adjoint() if transposed else self._unit_scale
            shift = _exponent_of(rhs)
            scaled = lsmr(
                operator,
                np.ldexp(rhs, -shift),
                atol=1e-14,
                btol=1e-14,
                conlim=0,
                maxiter=20 * self.size,
            )[0]
            return np.asarray(np.ldexp(scaled, shift - self._exponent))
        return np.asarray(self._factors.solve(rhs, trans="T" if transposed else "N"))

    @cached_property
    def _factors(self) -> Any:
        try:
            return splu(sparse.csc_array(self.dense() if self.matrix is None else self.matrix))
        except RuntimeError as error:
            raise _singular(math.inf) from error

    # ---- Singular values ---------------------------------------------------------------------

    @cached_property
    def norm(self) -> float:
        """‖ℒ‖, the largest singular value, to about 1e-10. Cost: tens of products.

        Raises:
            ValueError: where it overflows.
        """
        if self.size <= DENSE:
            value = float(self._singular_values[0])
        else:
            with np.errstate(over="ignore"):
                value = float(np.ldexp(_largest(self._unit_scale, self.size), self._exponent))
        if not math.isfinite(value):
            raise ValueError("the matrix's norm overflows float64: scale the matrix down")
        return value

    @cached_property
    def smallest_singular_value(self) -> float:
        """σ_min(ℒ), from products with the inverse. Cost: tens of solutions.

        Raises:
            SingularSystemError: where it is zero to rounding.
        """
        if self.size <= DENSE:
            value = float(self._singular_values[-1])
        else:

            def scaled(b: Vector, transposed: bool = False) -> Vector:
                x = np.ldexp(self.solve(b, transposed), self._exponent)
                if not np.isfinite(x).all():
                    raise _singular(math.inf)
                return x

            inverse = LinearOperator(
                (self.size, self.size),
                matvec=scaled,
                rmatvec=lambda b: scaled(b, transposed=True),
                dtype=np.float64,
            )
            value = float(np.ldexp(1 / _largest(inverse, self.size), self._exponent))
        check_invertible(value, self.norm)
        return value

    @property
    def condition_number(self) -> float:
        """κ = ‖ℒ‖ / σ_min(ℒ)."""
        return self.norm / self.smallest_singular_value

    @cached_property
    def _singular_values(self) -> Vector:
        return np.asarray(scipy.linalg.svdvals(self.dense()))

    @cached_property
    def _exponent(self) -> int:
        """About log₂ of ℒ's largest entry: 2 to it is a scale of ℒ, exact to divide by."""
        if self._matrix is not None:
            return _exponent_of(self._matrix.data)
        start = np.random.default_rng(0).standard_normal(self.size)
        product = real_array("a product of the LinearOperator", self.operator.matvec(start))
        return _exponent_of(product)

    @property
    def _unit_scale(self) -> LinearOperator:
        """ℒ/2^e: the iterative methods square what they are given."""
        return LinearOperator(
            (self.size, self.size),
            matvec=lambda x: np.ldexp(self.operator.matvec(x), -self._exponent),
            rmatvec=lambda x: np.ldexp(self.transposed_product(x), -self._exponent),
            dtype=np.float64,
        )


# ---- Vectors of any scale --------------------------------------------------------------------


def real_array(name: str, given: Any) -> NDArray[np.float64]:
    """What was given as an array of float64.

    Args:
        name: of the argument, for messages.
        given: numbers, in an array, a tensor or lists.

    Raises:
        TypeError: for complex numbers, or what are no numbers.
        ValueError: for ragged lists, NaN or infinity.

    Example:
        >>> real_array("rhs", [1, 2])
        array([1., 2.])
    """
    if isinstance(given, Tensor):
        given = given.detach().cpu().to_dense()
        given = (given.double() if given.is_floating_point() else given).numpy()
    try:
        values = np.asarray(given)
    except ValueError as error:
        raise ValueError(f"{name} must be an array of numbers: {error}") from error
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be real numbers, got {values.dtype}")
    with np.errstate(over="ignore"):
        values = values.astype(np.float64, copy=False)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return values


def normalized(vector: Vector) -> tuple[Vector, float]:
    """A vector's direction and its length, with no square that over- or underflows.

    Zero, NaN and infinity have no direction, and are divided by 1.

    Example:
        >>> normalized(np.array([0.0, -4e200]))
        (array([ 0., -1.]), 4e+200)
    """
    largest = float(np.abs(vector).max(initial=0.0))
    if not 0 < largest < math.inf:
        return vector, largest
    direction = vector / largest
    rest = float(np.linalg.norm(direction))
    return direction / rest, largest * rest


def length(vector: Vector) -> float:
    """The Euclidean length, with no square that over- or underflows.

    Example:
        >>> length(np.array([3e-200, -4e-200]))
        5e-200
    """
    return normalized(vector)[1]


def check_invertible(smallest: float, largest: float) -> None:
    """Refuse singular values whose smallest one is rounding beside the largest.

    Raises:
        SingularSystemError: where their ratio is below 1e-15.
    """
    if not smallest > 1e-15 * largest:
        raise _singular(largest / smallest if smallest > 0 else math.inf)


def _singular(kappa: float) -> SingularSystemError:
    kappa = math.inf if math.isnan(kappa) else kappa
    return SingularSystemError(
        f"the system is singular, or too ill-conditioned for double precision (κ about {kappa:.0e})"
    )


def _exponent_of(values: Vector) -> int:
    """e with the largest magnitude in [2^(e−1), 2^e); 0 for zeros alone."""
    return math.frexp(float(np.abs(values).max(initial=0.0)))[1]


def _largest(operator: LinearOperator, size: int) -> float:
    start = np.random.default_rng(0).standard_normal(size)
    try:
        return float(svds(operator, k=1, return_singular_vectors=False, v0=start, tol=1e-10)[0])
    except ArpackError:
        return _largest_of_few(operator, start)


def _largest_of_few(operator: LinearOperator, start: Vector) -> float:
    """The largest singular value where there are few different ones, which ends Lanczos early."""
    basis: list[Vector] = []
    direction, rest = normalized(start)
    while rest > 1e-10 and len(basis) < min(100, start.size):
        basis.append(direction)
        vector, _ = normalized(operator.rmatvec(operator.matvec(direction)))
        for _ in range(2):
            for known in basis:
                vector = vector - (known @ vector) * known
        direction, rest = normalized(vector)
    images = np.stack([operator.matvec(vector) for vector in basis], axis=1)
    return float(scipy.linalg.svdvals(images)[0])


def _sparse(matrix: Any) -> sparse.csr_array:
    """A matrix given by its entries, in float64."""
    if not sparse.issparse(matrix):
        matrix = np.atleast_2d(real_array("matrix", matrix))
    if len(matrix.shape) != 2:
        raise ValueError(f"the matrix must be square, got shape {matrix.shape}")
    matrix = sparse.csr_array(matrix)
    data = real_array("matrix", matrix.data)
    return sparse.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _misfit(shape: tuple[int, ...], size: int) -> str:
    return (
        f"the matrix must be square and fit the right-hand side: got shapes {shape} and ({size},)"
    )
