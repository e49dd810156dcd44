"""Quantum singular value transformation: a polynomial near 1/x, applied to a block encoding."""

from __future__ import annotations

import torch

from torch_qsgd.checks import require_number
from torch_qsgd.linear_system import LinearSystem, Vector, length, normalized
from torch_qsgd.solvers.base import Solution, Solver, solution_of, warn_of_kappa
from torch_qsgd.solvers.inverse_polynomial import (
    InversePolynomial,
    check_options,
    inverse_polynomial,
)

#: The least κ a polynomial is made for: for a multiple of an orthogonal matrix the interval
#: [1/κ, 1] would be a point, and a wider interval is always right.
LEAST_KAPPA = 1.0001


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

    The solution's error is at most ε ‖x‖ where ``kappa`` is no less than α/σ_min(ℒ), and ε well
    above rounding, which adds some 1e-16 κ.

    Args:
        epsilon: ε, the error relative to ‖x‖, from 1e-15 up and below 1.
        kind: which polynomial, see
            :func:`~torch_qsgd.solvers.inverse_polynomial.inverse_polynomial`; ``"relative"`` has
            the least degree.
        kappa: a bound on α/σ_min(ℒ), > 1; by default the measured value.
        subnormalization: α ≥ ‖ℒ‖ of the block encoding; by default ‖ℒ‖, the best there can be.

    Raises:
        ValueError: for an argument out of its range; in ``solve`` for α < ‖ℒ‖.

    Warns:
        ConditionWarning: in ``solve``, where ``kappa`` is less than α/σ_min(ℒ).

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
        if subnormalization is not None:
            require_number("subnormalization", subnormalization, 0, otherwise=", or None for ‖ℒ‖")
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
        warn_of_kappa(
            self.kappa,
            measured,
            "below 1/kappa the polynomial is not 1/x, and the error may exceed "
            f"epsilon={self.epsilon:g}",
        )
        return alpha, inverse_polynomial(self.kind, max(kappa, LEAST_KAPPA), self.epsilon)

    def _solve_linear(self, system: LinearSystem, generator: torch.Generator) -> Solution:
        _ = system.solution  # refused here where it over- or underflows
        alpha, polynomial = self.encoding(system)
        state, scale = normalized(system.rhs)
        transformed = _transformed(polynomial, system, alpha, state)
        return solution_of(
            system,
            transformed * (scale / alpha),
            success_probability=(length(transformed) / polynomial.normalization) ** 2,
            queries=polynomial.degree,
        )


def _transformed(
    polynomial: InversePolynomial, system: LinearSystem, alpha: float, vector: Vector
) -> Vector:
    """Σ_i p(σ_i) v_i w_iᵀ b for ℒ/α = Σ_i σ_i w_i v_iᵀ, from products with ℒ and ℒᵀ."""
    even: Vector = vector
    odd: Vector = system.transposed_product(vector) / alpha
    total: Vector = polynomial.coefficients[0] * odd
    for c in polynomial.coefficients[1:]:
        even = 2 * (system.operator.matvec(odd) / alpha) - even
        odd = 2 * (system.transposed_product(even) / alpha) - odd
        total += c * odd
    return total
