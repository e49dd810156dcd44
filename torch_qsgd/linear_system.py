"""A real linear system ℒx = b: what a quantum linear solver is given, and its classical facts."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sparse
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import LinearOperator, aslinearoperator, lsmr, splu, svds

from torch_qsgd.errors import SingularSystemError, SizeError

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Up to this many unknowns, singular values come from a dense decomposition.
DENSE = 512
#: Up to this many unknowns, a matrix may be written out densely.
WRITTEN_OUT = 4096


class LinearSystem:
    r"""A square real system :math:`\mathcal{L} x = b`.

    Args:
        matrix: :math:`\mathcal{L}`, of shape (D, D): an array, a ``scipy.sparse`` matrix, or a
            ``scipy.sparse.linalg.LinearOperator`` with ``matvec`` and ``rmatvec``.
        rhs: b, of shape (D,).

    Raises:
        ValueError: for shapes that do not fit, for NaN or infinity, for b = 0, whose solution a
            quantum state cannot hold.
        TypeError: for complex numbers.

    Example:
        >>> system = LinearSystem([[2.0, 0.0], [1.0, 1.0]], [2.0, 3.0])
        >>> system.solution
        array([1., 2.])
        >>> round(system.condition_number, 3)
        2.618
    """

    def __init__(self, matrix: Any, rhs: ArrayLike) -> None:
        self.rhs: Vector = _real(np.asarray(rhs), "rhs").ravel()
        if isinstance(matrix, LinearOperator):
            self._matrix = None
            self.operator: LinearOperator = matrix
        else:
            if not sparse.issparse(matrix):
                matrix = _real(np.atleast_2d(np.asarray(matrix)), "matrix")
            self._matrix = sparse.csr_array(matrix)
            _real(self._matrix.data, "matrix")
            self.operator = aslinearoperator(self._matrix)
        shape = tuple(self.operator.shape)
        if shape != (self.rhs.size, self.rhs.size):
            raise ValueError(
                f"the matrix must be square and fit the right-hand side: got shapes {shape} and "
                f"({self.rhs.size},)"
            )
        if not self.rhs.any():
            raise ValueError(
                "the right-hand side is zero, and so is the solution: no quantum state holds it"
            )

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
        return np.asarray(self.operator.matmat(np.eye(self.size)))

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
        """
        x = self.solve(self.rhs)
        residual = float(np.linalg.norm(self.operator.matvec(x) - self.rhs))
        if not np.isfinite(x).all() or residual > 1e-6 * np.linalg.norm(self.rhs):
            raise SingularSystemError(
                "the system is singular, or too ill-conditioned for double precision: its "
                f"residual is {residual:.1e}"
            )
        return x

    def solve(self, rhs: Vector, transposed: bool = False) -> Vector:
        """ℒ⁻¹ or ℒ⁻ᵀ applied to a vector of shape (D,).

        Cost: a sparse LU factorisation once, kept. Where only products are known, D of them write
        ℒ out up to 4096 unknowns; above, least squares, some hundreds to thousands.
        """
        if self.matrix is None and self.size > WRITTEN_OUT:
            operator = self.operator.adjoint() if transposed else self.operator
            return np.asarray(
                lsmr(operator, rhs, atol=1e-14, btol=1e-14, conlim=0, maxiter=20 * self.size)[0]
            )
        return np.asarray(self._factors.solve(rhs, trans="T" if transposed else "N"))

    @cached_property
    def _factors(self) -> Any:
        try:
            return splu(sparse.csc_array(self.dense() if self.matrix is None else self.matrix))
        except RuntimeError as error:
            raise SingularSystemError(
                "the system is singular: it has no solution, or many"
            ) from error

    # ---- Singular values ---------------------------------------------------------------------

    @cached_property
    def norm(self) -> float:
        """‖ℒ‖, the largest singular value, to about 1e-10. Cost: tens of products."""
        if self.size <= DENSE:
            return float(self._singular_values[0])
        return _largest(self.operator, self.size)

    @cached_property
    def smallest_singular_value(self) -> float:
        """σ_min(ℒ), from products with the inverse. Cost: tens of solutions.

        Raises:
            SingularSystemError: where it is zero to rounding.
        """
        if self.size <= DENSE:
            value = float(self._singular_values[-1])
        else:
            inverse = LinearOperator(
                (self.size, self.size),
                matvec=self.solve,
                rmatvec=lambda b: self.solve(b, transposed=True),
                dtype=np.float64,
            )
            value = 1.0 / _largest(inverse, self.size)
        if not value > 1e-15 * self.norm:
            raise SingularSystemError(
                f"the system is singular: its smallest singular value is {value:.1e}, its largest "
                f"{self.norm:.1e}"
            )
        return value

    @property
    def condition_number(self) -> float:
        """κ = ‖ℒ‖ / σ_min(ℒ)."""
        return self.norm / self.smallest_singular_value

    @cached_property
    def _singular_values(self) -> Vector:
        return np.asarray(scipy.linalg.svdvals(self.dense()))


def _largest(operator: LinearOperator, size: int) -> float:
    start = np.random.default_rng(0).standard_normal(size)
    return float(svds(operator, k=1, return_singular_vectors=False, v0=start, tol=1e-10)[0])


def _real(values: NDArray[Any], name: str) -> NDArray[np.float64]:
    if np.iscomplexobj(values):
        raise TypeError(f"{name} must be real, got {values.dtype}")
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return values
