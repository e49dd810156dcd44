r"""Every linear solver of the ledger: queries, success of one run, source, and what backs them.

All counts are at κ_BE, and in closed form, so that κ may have any size; where a count overflows, or
κ is infinite, it is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy.optimize import minimize_scalar

from torch_qsgd.checks import require_number, require_one_of
from torch_qsgd.resources.window import WindowSize
from torch_qsgd.solvers.hhl import ROTATION
from torch_qsgd.solvers.inverse_polynomial import SUP_NORM
from torch_qsgd.solvers.queries import (
    ADIABATIC_PROVEN,
    discrete_adiabatic,
    hhl,
    jennings,
    jennings_success,
    shortcut,
    shortcut_known_norm,
)

#: Share of a turn that the eigenvalue 1 takes: HHL with a guard band.
SPAN = 0.45
#: Relative error of HHL, times K² with the sine window or K with the uniform one, where
#: K = 0.45 · 2^t/κ: measured on random systems and on windows; of the uniform one, the largest.
SINE, UNIFORM = 0.17, 0.16
#: Clock windows.
CLOCKS = ("sine", "uniform")
#: Polynomials that approximate 1/x.
KINDS = ("relative", "absolute", "cks")


def clock_qubits(clock: str, kappa: float, epsilon: float) -> float:
    r"""t of HHL for an error ε: the least with :math:`0.17/K^2 \le ε`, or :math:`0.16/K \le ε`.

    Here :math:`K = 0.45 \cdot 2^t / κ`, and the first is the sine window's, the second the uniform
    one's.

    Args:
        clock: ``"sine"`` or ``"uniform"``.
        kappa: κ_BE, above 1.
        epsilon: ε, in (0, 1).

    Returns:
        An integer, or infinity.

    Raises:
        ValueError: for an unknown clock, or numbers out of their range.

    Source: measured with ``torch_qsgd.solvers.HHL``.

    Example:
        >>> clock_qubits("sine", 100, 1e-3), clock_qubits("uniform", 100, 1e-3)
        (12.0, 16.0)
    """
    require_one_of("clock", clock, CLOCKS)
    if kappa == math.inf:
        return math.inf
    kappa, epsilon = require_number("kappa", kappa, 1), require_number("epsilon", epsilon, 0, 1)
    log_k = math.log2(SINE / epsilon) / 2 if clock == "sine" else math.log2(UNIFORM / epsilon)
    return float(max(1, math.ceil(math.log2(kappa) - math.log2(SPAN) + log_k)))


def degree(kind: str, kappa: float, epsilon: float) -> float:
    r"""The degree of :func:`~torch_qsgd.solvers.inverse_polynomial.inverse_polynomial`, unbuilt.

    Args:
        kind: ``"relative"``, ``"absolute"`` or ``"cks"``.
        kappa: κ_BE, above 1.
        epsilon: ε, in (0, 1).

    Raises:
        ValueError: for an unknown kind, or numbers out of their range.
        OverflowError: where κ² does.

    Source: as of that function.

    Example:
        >>> degree("relative", 50, 1e-3), degree("absolute", 50, 1e-3), degree("cks", 50, 1e-3)
        (379.0, 541.0, 1417.0)
    """
    require_one_of("kind", kind, KINDS)
    kappa, epsilon = require_number("kappa", kappa, 1), require_number("epsilon", epsilon, 0, 1)
    if kind == "cks":
        power = math.ceil(kappa**2 * math.log(kappa / epsilon))
        terms = 1 + math.ceil(math.sqrt(power * math.log(4 * power / epsilon)))
        return 2.0 * min(terms, power) - 1
    rate = 2 * math.atanh(1 / kappa)
    if kind == "relative":
        return 2.0 * max(1, math.ceil(math.acosh(1 / epsilon) / rate)) - 1
    return 2.0 * max(1, math.ceil(1 + math.log((kappa - 1) / epsilon) / rate)) - 1


def sup_norm(kind: str, kappa: float, epsilon: float) -> float:
    r"""sup |p(x)|/κ of that polynomial, in the limit of large κ.

    With y = κx, w = √(1 − y²), and c = arcosh(1/ε) or ln(κ/ε), p/κ tends to

    - relative: :math:`(1 - \cosh(cw)/\cosh c)/y`,
    - absolute: :math:`(1 - e^{-c}(\cosh cw + w \sinh cw))/y`,
    - cks: :math:`(1 - e^{-cy^2})/y`, largest at cy² = 1.2564, where it is 0.6382 √c.

    Args:
        kind: ``"relative"``, ``"absolute"`` or ``"cks"``.
        kappa: κ_BE, above 1.
        epsilon: ε, in (0, 1).

    Raises:
        ValueError: for an unknown kind, or numbers out of their range.

    Source: the limit of the closed forms in ``torch_qsgd.solvers.inverse_polynomial``.

    Example:
        >>> [round(sup_norm(kind, 100, 1e-3), 2) for kind in ("relative", "absolute", "cks")]
        [1.3, 1.61, 2.17]
    """
    require_one_of("kind", kind, KINDS)
    kappa, epsilon = require_number("kappa", kappa, 1), require_number("epsilon", epsilon, 0, 1)
    c = math.acosh(1 / epsilon) if kind == "relative" else math.log(kappa / epsilon)
    if kind == "cks":
        return 0.6382 * math.sqrt(c)

    def negative(y: float) -> float:
        w = math.sqrt((1 - y) * (1 + y))
        # cosh(cw) e^{−c} and sinh(cw) e^{−c}, which do not overflow.
        grow, shrink = math.exp(c * (w - 1)) / 2, math.exp(-c * (w + 1)) / 2
        if kind == "relative":
            return -(1 - (grow + shrink) / (0.5 * (1 + math.exp(-2 * c)))) / y
        return -(1 - (grow + shrink) - w * (grow - shrink)) / y

    # Below y = 1 there is one maximum; beyond it |1 − xp| ≤ ε.
    return -float(minimize_scalar(negative, bounds=(1e-6, 1.0), method="bounded").fun)


@dataclass(frozen=True)
class SolverRow:
    """One linear solver.

    Attributes:
        name: for programs.
        title: for readers.
        queries: of a window; may overflow.
        success: the probability that one run ends with the solution; None where it is taken as 1.
        formula, source, tag: of the queries, as in :class:`.Entry`.
        success_formula: of the success.
        coherent: whether a run is a unitary, which amplitude amplification can take back.
        once: name of the row that finds ‖x‖, once for all copies; empty where none is needed.
    """

    name: str
    title: str
    queries: Callable[[WindowSize], float]
    success: Callable[[WindowSize], float] | None
    formula: str
    source: str
    tag: str
    success_formula: str = "1, taken: the bound is read as queries until it succeeds"
    coherent: bool = True
    once: str = ""

    @property
    def key(self) -> str:
        """Of its line in the ledger."""
        return f"queries_{self.name.replace('-', '_')}"

    def count(self, window: WindowSize) -> float:
        """Queries, a whole number; infinite where κ_BE is, or where they overflow."""
        if math.isinf(window.encoded_condition_number):
            return math.inf
        try:
            queries = float(self.queries(window))
            return float(math.ceil(queries)) if math.isfinite(queries) else queries
        except OverflowError:
            return math.inf

    def odds(self, window: WindowSize) -> float:
        """The success probability of one run; 0 where κ is infinite."""
        if math.isinf(window.encoded_condition_number):
            return 0.0
        return 1.0 if self.success is None else min(1.0, self.success(window))


# ---- The rows ------------------------------------------------------------------------------------


def _of(count: Callable[[float, float], float]) -> Callable[[WindowSize], float]:
    """A count by κ_BE and ε, as one by the window."""
    return lambda w: count(w.encoded_condition_number, w.state_error)


def _hhl(clock: str) -> Callable[[WindowSize], float]:
    def count(kappa: float, epsilon: float) -> float:
        t = clock_qubits(clock, kappa, epsilon)
        return hhl(int(t)) if t <= 1023 else math.inf

    return _of(count)


def _polynomial(kind: str) -> Callable[[WindowSize], float]:
    return _of(lambda kappa, epsilon: degree(kind, kappa, epsilon))


def _polynomial_success(kind: str) -> Callable[[WindowSize], float]:
    def odds(w: WindowSize) -> float:
        largest = sup_norm(kind, w.encoded_condition_number, w.state_error)
        return (SUP_NORM / largest * min(1.0, w.reach)) ** 2

    return odds


_HHL = (
    "2(2^t − 1) controlled e^{iMt₀}, which takes several queries of the block encoding and is "
    "charged as one; "
)
_HHL_SUCCESS = "(0.75 r)², r = min(1, σ_min √(T+1+p)) ≤ σ_min ‖ℒ⁻¹b‖/‖b‖"
_QSVT_SUCCESS = "(0.99 κ r / sup|p|)², r = min(1, σ_min √(T+1+p)) ≤ σ_min ‖ℒ⁻¹b‖/‖b‖"

ROWS = (
    SolverRow(
        "hhl-uniform",
        "HHL, uniform clock, e^{iMt}",
        _hhl("uniform"),
        lambda w: (ROTATION * min(1.0, w.reach)) ** 2,
        _HHL + "t: 0.16 κ/(0.45·2^t) ≤ ε",
        "arXiv:0811.3171; the error measured here",
        "numerical",
        _HHL_SUCCESS,
    ),
    SolverRow(
        "hhl-sine",
        "HHL, sine clock, e^{iMt}",
        _hhl("sine"),
        lambda w: (ROTATION * min(1.0, w.reach)) ** 2,
        _HHL + "t: 0.17 (κ/(0.45·2^t))² ≤ ε",
        "arXiv:0811.3171, doi:10.1103/PhysRevLett.82.2207; the error measured here",
        "numerical",
        _HHL_SUCCESS,
    ),
    SolverRow(
        "cks",
        "CKS, Chebyshev",
        _polynomial("cks"),
        _polynomial_success("cks"),
        "2D + 1, D = ⌈√(b ln(4b/ε))⌉, b = ⌈κ² ln(κ/ε)⌉",
        "arXiv:1511.02306",
        "proven",
        _QSVT_SUCCESS,
    ),
    SolverRow(
        "qsvt-absolute",
        "QSVT, absolute error",
        _polynomial("absolute"),
        _polynomial_success("absolute"),
        "2n − 1, least n with (1−a)^n/(a(1+a)^(n−1)) ≤ ε, a = 1/κ; ≈ κ ln(κ/ε)",
        "arXiv:2507.15537",
        "proven",
        _QSVT_SUCCESS,
    ),
    SolverRow(
        "qsvt-relative",
        "QSVT, relative error",
        _polynomial("relative"),
        _polynomial_success("relative"),
        "2n − 1, least n with 1/T_n((1+a²)/(1−a²)) ≤ ε, a = 1/κ; ≈ κ ln(2/ε)",
        "minimax property of Chebyshev polynomials, derived here",
        "proven",
        _QSVT_SUCCESS,
    ),
    SolverRow(
        "adiabatic-proven",
        "discrete adiabatic, c = 2305",
        _of(lambda kappa, epsilon: discrete_adiabatic(kappa, epsilon, ADIABATIC_PROVEN)),
        None,
        "2305 κ + κ ln(2/ε)",
        "arXiv:2111.08152",
        "proven",
        "1, taken: the walk's own failures are not counted",
    ),
    SolverRow(
        "adiabatic",
        "discrete adiabatic, c = 1.84",
        _of(discrete_adiabatic),
        None,
        "1.84 κ + κ ln(2/ε)",
        "arXiv:2312.07690",
        "numerical",
        "1, taken: the walk's own failures are not counted",
    ),
    SolverRow(
        "shortcut",
        "shortcut, ‖x‖ unknown",
        _of(shortcut),
        None,
        "56 κ + 1.05 κ ln(√(1−ε²)/ε) + 2.78 ln³κ + 3.17; finds ‖x‖ anew for every copy",
        "arXiv:2406.12086",
        "proven",
        coherent=False,
    ),
    SolverRow(
        "shortcut-known-norm",
        "shortcut, ‖x‖ known",
        _of(shortcut_known_norm),
        None,
        "κ ln(2√2/ε), to leading order",
        "arXiv:2406.12086",
        "assumes known norm",
        "1, taken: the kernel reflection's own failures are not counted",
        once="shortcut",
    ),
    SolverRow(
        "jennings",
        "Jennings et al., Theorem 1",
        lambda w: jennings(w.condition_number, w.state_error, w.relative_subnormalization),
        lambda w: jennings_success(w.state_error),
        "Q*(α/‖ℒ‖, κ, ε) of Theorem 1",
        "arXiv:2305.11352",
        "proven",
        "0.39 − 0.201 ε",
        coherent=False,
    ),
)
