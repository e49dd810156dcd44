r"""Queries that quantum linear solvers need, in closed form: what to compare a measured count with.

All are for a state within ε of :math:`x/\|x\|` and count calls of the block encoding of
:math:`\mathcal{L}/\alpha` or its inverse, HHL of :math:`e^{iMt}`. Where α is not an argument, κ is
that of the block encoding, α/σ_min(ℒ). The solvers ``HHL`` and ``QSVT`` report their own count with
each solution; a polynomial's degree is
:func:`~torch_qsgd.solvers.inverse_polynomial.inverse_polynomial`\ ``(...).degree``.

Each function is tagged:

- **proven**: a theorem with its constants.
- **numerical**: a constant measured on random systems.
- **assumes known norm**: proven, if ‖x‖ is known beforehand, as it usually is not.

.. [Jennings2023] D. Jennings et al., Efficient quantum linear solver algorithm with detailed
   running costs, arXiv:2305.11352.
.. [Dalzell2024] A. M. Dalzell, A shortcut to an optimal quantum linear system solver,
   arXiv:2406.12086.
.. [Costa2022] P. C. S. Costa et al., Optimal scaling quantum linear-systems solver via discrete
   adiabatic theorem, arXiv:2111.08152; its constant as measured, arXiv:2312.07690.
.. [Harrow2009] A. W. Harrow, A. Hassidim and S. Lloyd, Quantum algorithm for linear systems of
   equations, arXiv:0811.3171.
"""

from __future__ import annotations

from math import asin, cbrt, e, floor, log, nextafter, pi, sqrt

from torch_qsgd.checks import require_integer, require_number

#: The discrete adiabatic walk's constant: as proven, and as measured.
ADIABATIC_PROVEN, ADIABATIC_MEASURED = 2305.0, 1.84


def jennings(kappa: float, epsilon: float, subnormalization: float = 1.0) -> float:
    r"""Queries of Theorem 1 of Jennings et al., which succeeds as :func:`jennings_success` says.

    .. math::
        Q = \frac{1741 \alpha e}{500} \sqrt{\kappa^2 + 1} \left[ \left( \frac{133}{125}
        + \frac{4}{25 \kappa^{1/3}} \right) \pi \ln(2\kappa + 3) + 1 \right] + \frac{351}{50}
        \ln^2(2\kappa + 3) \left[ \ln \frac{451 \ln^2(2\kappa + 3)}{\varepsilon} + 1 \right]
        + \alpha\kappa \ln \frac{32}{\varepsilon}

    Args:
        kappa: κ = ‖ℒ‖/σ_min(ℒ), above 1; here α is an argument of its own.
        epsilon: ε, in (0, 1).
        subnormalization: α, with ‖ℒ‖ as unit.

    Raises:
        ValueError: for an argument out of its range, as all functions here.

    Tag: proven.

    Source: [Jennings2023]_, as transcribed by public code that cites it.

    Example:
        >>> round(jennings(50, 1e-3, subnormalization=2), 2)
        19825.72
    """
    kappa, epsilon = _checked(kappa, epsilon)
    alpha = require_number("subnormalization", subnormalization, 0)
    rise = log(2 * kappa + 3)
    walk = (133 / 125 + 4 / (25 * cbrt(kappa))) * pi * rise + 1
    return (
        1741 * alpha * e / 500 * sqrt(kappa**2 + 1) * walk
        + 351 / 50 * rise**2 * (log(451 * rise**2 / epsilon) + 1)
        + alpha * kappa * log(32 / epsilon)
    )


def jennings_success(epsilon: float) -> float:
    r"""A lower bound of that algorithm's success probability: :math:`0.39 − 0.201 ε`.

    Tag: proven.

    Source: [Jennings2023]_, as transcribed by public code that cites it.

    Example:
        >>> round(jennings_success(1e-3), 4)
        0.3898
    """
    return 0.39 - 0.201 * require_number("epsilon", epsilon, 0, 1)


def shortcut(kappa: float, epsilon: float) -> float:
    r"""Queries of the shortcut, where ‖x‖ is not known.

    .. math::
        Q = 56\kappa + 1.05\,\kappa \ln \frac{\sqrt{1 - \varepsilon^2}}{\varepsilon}
        + 2.78 \ln^3 \kappa + 3.17

    Args:
        kappa: κ of the block encoding, above 1.
        epsilon: ε, in (0, 1).

    Tag: proven.

    Source: [Dalzell2024]_, and public code that cites it.

    Example:
        >>> round(shortcut(10, 1e-3))
        670
    """
    kappa, epsilon = _checked(kappa, epsilon)
    filtering = log(sqrt((1 - epsilon) * (1 + epsilon)) / epsilon)
    return 56 * kappa + 1.05 * kappa * filtering + 2.78 * log(kappa) ** 3 + 3.17


def shortcut_known_norm(kappa: float, epsilon: float) -> float:
    r"""Queries of the shortcut, where ‖x‖ is known: :math:`κ \ln(2\sqrt 2/ε)`.

    To leading order: the theorem has a factor 1 + O(ε) before it.

    Args:
        kappa: κ of the block encoding, above 1.
        epsilon: ε, in (0, 1).

    Tag: assumes known norm.

    Source: [Dalzell2024]_.

    Example:
        >>> round(shortcut_known_norm(10, 1e-3), 1)
        79.5
    """
    kappa, epsilon = _checked(kappa, epsilon)
    return kappa * log(2 * sqrt(2) / epsilon)


def discrete_adiabatic(kappa: float, epsilon: float, constant: float = ADIABATIC_MEASURED) -> float:
    r"""Queries of the discrete adiabatic walk and its filter: :math:`cκ + κ \ln(2/ε)`.

    Args:
        kappa: κ of the block encoding, above 1.
        epsilon: ε, in (0, 1).
        constant: c; ``ADIABATIC_MEASURED`` = 1.84, or ``ADIABATIC_PROVEN`` = 2305.

    Tag: numerical with the measured constant, proven with the other.

    Source: [Costa2022]_.

    Example:
        >>> round(discrete_adiabatic(10, 1e-3))
        94
        >>> round(discrete_adiabatic(10, 1e-3, ADIABATIC_PROVEN))
        23126
    """
    kappa, epsilon = _checked(kappa, epsilon)
    return (require_number("constant", constant, 0) + log(2 / epsilon)) * kappa


def hhl(clock_qubits: int) -> int:
    r"""Queries of HHL: :math:`2(2^t − 1)`, of phase estimation and its inverse.

    Args:
        clock_qubits: t, at least 1.

    Tag: proven; the error it leaves depends on κ, the window and b, see ``HHL``.

    Source: [Harrow2009]_.

    Example:
        >>> hhl(10)
        2046
    """
    return int(2 * (2 ** require_integer("clock_qubits", clock_qubits, 1, 1023) - 1))


def amplification_rounds(probability: float) -> int:
    r"""Rounds of amplitude amplification: :math:`\lfloor π/(4 \arcsin \sqrt p) \rfloor`.

    Each of r rounds runs the algorithm and its inverse, so that in all it runs 2r + 1 times.

    Args:
        probability: p of one run's success, above 0 and at most 1.

    Tag: proven.

    Source: G. Brassard et al., Quantum amplitude amplification and estimation,
    arXiv:quant-ph/0005055.

    Example:
        >>> amplification_rounds(1e-4), amplification_rounds(1)
        (78, 0)
    """
    p = require_number("probability", probability, 0, nextafter(1, 2))
    return floor(pi / (4 * asin(sqrt(p))))


def _checked(kappa: float, epsilon: float) -> tuple[float, float]:
    return require_number("kappa", kappa, 1), require_number("epsilon", epsilon, 0, 1)
