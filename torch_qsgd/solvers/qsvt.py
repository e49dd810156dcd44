"""Quantum singular value transformation: a polynomial near 1/x, applied to a block encoding."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch

from torch_qsgd.linear_system import LinearSystem, Vector
from torch_qsgd.solvers.base import Solution, Solver, solution_of
from torch_qsgd.solvers.inverse_polynomial import (
    InversePolynomial,
    check_options,
    inverse_polynomial,
)

#: The least κ a polynomial is made for: for a multiple of an orthogonal matrix the interval
#: [1/κ, 1] would be a point, and a wider interval is always right.
LEAST_KAPPA = 1.0001


class ConditionWarning(UserWarning):
    """The polynomial was asked for a κ below the system's: its error may exceed ε."""


class QSVT(Solver):
    r"""Matrix inversion by quantum singular value transformation, emulated without a circuit.

    A block encoding of :math:`A = \mathcal{L}/\alpha = \sum_i \sigma_i w_i v_i^T` and the phases of
    an odd polynomial p ≈ 1/x, scaled down by M to fit below 1, give

    .. math:: \frac{p(A^\dagger)}{M} \hat b = \frac1M \sum_i p(\sigma_i) v_i w_i^T \hat b
       \approx \frac{\alpha}{M} \mathcal{L}^{-1} \hat b, \qquad
       P = \|p(A^\dagger) \hat b\|^2 / M^2,

    and with the known :math:`\|b\|`, M, α and the measured P the length of x. The emulator applies
    p by its Chebyshev recurrence, T_{k+1}(A) = 2 A T_k(A) − T_{k−1}(A) with A and A† in turn, so it
    needs products only, and equals the circuit to rounding.

    The solution's error is at most ε ‖x‖ where ``kappa`` is no less than α/σ_min(ℒ).

    Args:
        epsilon: ε, the error relative to ‖x‖, in (0, 1).
        kind: which polynomial, see
            :func:`~torch_qsgd.solvers.inverse_polynomial.inverse_polynomial`; ``"relative"`` has
            the least degree.
        kappa: a bound on α/σ_min(ℒ), > 1; by default the measured value.
        subnormalization: α ≥ ‖ℒ‖ of the block encoding; by default ‖ℒ‖, the best there can be.

    Raises:
        ValueError: for an argument out of its range; in ``solve`` for α < ‖ℒ‖.

    Cost: quantum, one query of the block encoding or its inverse for each degree of the
    polynomial, about α/σ_min · ln(2/ε) for one run, which succeeds with probability P. Classical,
    as many products with ℒ and ℒᵀ, plus ‖ℒ‖, σ_min and the exact solution.

    Source: the transformation, arXiv:1806.01838; the polynomials, see ``inverse_polynomial``.

    Example:
        >>> system = LinearSystem([[2.0, 0.0], [1.0, -1.0]], [2.0, 3.0])  # x = (1, -2)
        >>> solution = QSVT(epsilon=1e-6).solve(system)
        >>> solution.vector.round(4), solution.queries, solution.error <= 1e-6
        (array([ 1., -2.]), 37, True)
    """

    name = "qsvt"

    def __init__(
        self,
        epsilon: float = 1e-3,
        kind: str = "relative",
        kappa: float | None = None,
        subnormalization: float | None = None,
    ) -> None:
        check_options(kind, epsilon, kappa)
        if subnormalization is not None and not 0 < subnormalization < math.inf:
            raise ValueError(
                f"subnormalization must be positive and finite, got {subnormalization}"
            )
        self.epsilon = epsilon
        self.kind = kind
        self.kappa = kappa
        self.subnormalization = subnormalization

    def __repr__(self) -> str:
        return (
            f"QSVT(epsilon={self.epsilon}, kind={self.kind!r}, kappa={self.kappa}, "
            f"subnormalization={self.subnormalization})"
        )

    def encoding(self, system: LinearSystem) -> tuple[float, InversePolynomial]:
        """α of the block encoding, and the polynomial for it; emulator and circuit share both.

        Raises:
            ValueError: where the given α is less than ‖ℒ‖.
            SingularSystemError: where ℒ has no inverse.

        Warns:
            ConditionWarning: where the given κ is less than α/σ_min(ℒ).
        """
        norm = system.norm
        alpha = norm if self.subnormalization is None else float(self.subnormalization)
        # Up to rounding, a subnormalization of ‖ℒ‖ found in another way is welcome.
        if alpha < norm * (1 - 1e-12):
            raise ValueError(
                f"subnormalization {alpha:.6g} is less than the norm {norm:.6g} of the matrix, "
                f"and no unitary holds a block of norm {norm / alpha:.6g}: give at least "
                f"{norm:.6g}, or None"
            )
        alpha = max(alpha, norm)
        measured = alpha / system.smallest_singular_value
        kappa = measured if self.kappa is None else float(self.kappa)
        if kappa < measured * (1 - 1e-9):
            warnings.warn(
                f"kappa={kappa:.6g} is less than the system's {measured:.6g}: below 1/kappa the "
                f"polynomial is not 1/x, and the error may exceed epsilon={self.epsilon:g}",
                ConditionWarning,
                stacklevel=2,
            )
        return alpha, inverse_polynomial(self.kind, max(kappa, LEAST_KAPPA), self.epsilon)

    def _solve_linear(self, system: LinearSystem, generator: torch.Generator) -> Solution:
        alpha, polynomial = self.encoding(system)
        length = float(np.linalg.norm(system.rhs))
        transformed = _transformed(polynomial, system, alpha, system.rhs / length)
        return solution_of(
            system,
            transformed * (length / alpha),
            success_probability=float(
                (np.linalg.norm(transformed) / polynomial.normalization) ** 2
            ),
            queries=polynomial.degree,
        )


def _transformed(
    polynomial: InversePolynomial, system: LinearSystem, alpha: float, vector: Vector
) -> Vector:
    """Σ_i p(σ_i) v_i w_iᵀ b for ℒ/α = Σ_i σ_i w_i v_iᵀ, from products with ℒ and ℒᵀ."""
    even: Vector = vector
    odd: Vector = system.operator.rmatvec(vector) / alpha
    total: Vector = polynomial.coefficients[0] * odd
    for c in polynomial.coefficients[1:]:
        even = 2 / alpha * system.operator.matvec(odd) - even
        odd = 2 / alpha * system.operator.rmatvec(even) - odd
        total += c * odd
    return total
