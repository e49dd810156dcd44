r"""The size of a window, as far as the cost of solving it on a quantum computer depends on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from torch_qsgd.checks import require_integer, require_number
from torch_qsgd.resources.loading import index_bits, sparse_subnormalization

#: What the ledger reads of a physical estimate.
PHYSICAL = ("physical_qubits", "seconds_per_copy", "error_budget")
#: Floating-point operations a parameter and sample: 2 forward, 4 backward.
FLOPS = 6
#: Points of time in which a window's states are summed, at most.
_TIMES = 4096


@dataclass(frozen=True)
class WindowSize:
    r"""A window of T steps, as the ledger sees it: numbers only, measured or assumed.

    Solved is the homogeneous form, :math:`\mathcal{L} = 1 - S \otimes A` with S the shift in time,
    whose block j has :math:`P_1^{\otimes j}` on its diagonal, where :math:`P_1` is one step's
    linear map. Two numbers say how hard that is:

    - the condition number :math:`\kappa = \|\mathcal{L}\| / \sigma_{\min}`. Where it is not given,
      2(T+1+p) stands for it, our estimate. It would be a bound were :math:`\|A\| \le 1`, for
      :math:`\|\mathcal{L}\| \le 1 + \|A\|` and :math:`1/\sigma_{\min} \le \sum_{k \le T+p}
      \|A^k\|`. The gradient beside the 1 in :math:`P_1` takes the norm over 1: with u in units of
      its own length, and modes that shrink without changing sign, κ was up to 1.8 times the
      estimate at N = 2, and 3.1 times at N = 3. Growing modes take it over 1 by much.
    - the subnormalization :math:`\alpha` of the block encoding, a unitary that holds
      :math:`\mathcal{L}/\alpha` in a corner, counted in units of :math:`\|\mathcal{L}\|`: 1 is
      ideal. Solvers then see :math:`\kappa_{BE} = \alpha / \sigma_{\min} = (\alpha /
      \|\mathcal{L}\|)\, \kappa`.

    Where α is not given and s is, it follows from sparse access to :math:`P_1`, or to
    :math:`P_1 - 1` beside a 1 of its own, whichever is less; block N takes it N times over, and
    :math:`\mathcal{L}` is the sum with another 1:

    .. math::
        \alpha = 1 + \min\left( s \max_{ij} |A_{ij}|,\; 1 + s \max_{ij} |A_{ij} - \delta_{ij}|,
        \; 1 + \|A - 1\|_F \right)^N,

    the last from states of the rows of A − 1, a dense matrix or not. The state is solved to an
    error of ε or :math:`δ\sqrt{p}/3`, whichever is less, with p = P(final) P(u | final): it is up
    to :math:`1/\sqrt{p}` times larger in the displacement, which δ is the error of.

    Args:
        parameters: all weights of the model.
        active: n, those that stay after pruning.
        steps: T.
        order: N.
        idle: p, idle steps after the window.
        kappa: κ of ℒ, above 1; infinite where it has no inverse. ``None`` for 2(T+1+p).
        norm: ‖ℒ‖, at least 1. It is used with ``row_nonzeros``, and for the odds of HHL and QSVT.
        subnormalization: α/‖ℒ‖, at least 1; ``None`` for sparse access where ``row_nonzeros`` is
            given, and else for an ideal block encoding, α = ‖ℒ‖.
        row_nonzeros: s, non-zeros in a row (and in a column) of one step's linear map, from 1 to
            n + 1: the most of any row. ``None`` where it is not known: the table then holds one
            number a weight, and the ledger is a lower bound.
        largest_entry: max |A_ij| of one step's linear map.
        largest_change: max |A_ij − δ_ij|, η max |H_ij| for plain SGD; ``None`` where not known.
        change_norm: ‖A − 1‖_F; ``None`` where not known. It is used with ``row_nonzeros``.
        batches: how many different batches, and so maps A_t, the table holds: 1 where all steps
            use one batch, T where each has its own.
        final_probability: of finding the clock at the final time, in (0, 1]; ``None`` for
            that of u(t) = (t/T) u with γ = ‖u‖.
        level_one_probability: of finding the displacement there, in (0, 1]; ``None`` for that of
            γ = ‖u‖, :math:`1/(2^{N+1} - 2)`.
        solver_error: ε, of the state, in (0, 1).
        readout_error: δ, relative ℓ2 error of the displacement read, in (0, 1).
        bits: b, of each stored number, 1 to 64.
        batch_size: samples of a step; with it, unknown ``flops`` are estimated.
        flops: floating-point operations of the same T steps on a classical computer.
        bytes: that these steps move, or hold.
        physical: ``"physical_qubits"``, ``"seconds_per_copy"`` and ``"error_budget"`` of a
            physical estimate.
        origin: where numbers come from, in words, by the names of these arguments.

    Raises:
        ValueError: for a number out of its range, or a key of ``physical`` or ``origin`` that is
            not known.

    Source: sparse access and sums of block encodings, A. Gilyén et al., arXiv:1806.01838; κ, the
    norm of ℒ⁻¹ block by block.

    Example:
        >>> window = WindowSize(parameters=103_000_000, active=10_300_000, steps=100, order=3)
        >>> window.condition_number, window.encoded_condition_number, window.entries
        (202.0, 202.0, 10300000)
    """

    parameters: int
    active: int
    steps: int
    order: int = 1
    idle: int = 0
    kappa: float | None = None
    norm: float = 2.0
    subnormalization: float | None = None
    row_nonzeros: float | None = None
    largest_entry: float = 1.0
    largest_change: float | None = None
    change_norm: float | None = None
    batches: int = 1
    final_probability: float | None = None
    level_one_probability: float | None = None
    solver_error: float = 1e-3
    readout_error: float = 0.1
    bits: int = 16
    batch_size: int | None = None
    flops: float | None = None
    bytes: float | None = None
    physical: Mapping[str, float] | None = None
    origin: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        def check(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        def given(name: str) -> bool:
            return getattr(self, name) is not None

        for name in ("parameters", "steps", "order"):
            check(name, require_integer(name, getattr(self, name), 1))
        check("batches", require_integer("batches", self.batches, 1, self.steps))
        check("active", require_integer("active", self.active, 1, self.parameters))
        check("idle", require_integer("idle", self.idle, 0))
        check("bits", require_integer("bits", self.bits, 1, 64))
        if given("batch_size"):
            check("batch_size", require_integer("batch_size", self.batch_size, 1))
        if given("kappa") and self.kappa != math.inf:
            otherwise = ", inf where there is no inverse, or None for 2(T+1+p)"
            check("kappa", require_number("kappa", self.kappa, 1, otherwise=otherwise))
        for name, otherwise in (
            ("norm", ""),
            ("subnormalization", ", or None to have it from row_nonzeros"),
            ("row_nonzeros", ", or None where it is not known"),
        ):
            if given(name):
                check(name, _at_least_one(name, getattr(self, name), otherwise))
        if self.row_nonzeros is not None and self.row_nonzeros > self.active + 1:
            raise ValueError(
                f"row_nonzeros must be at most active + 1 = {self.active + 1:,}, the entries that "
                f"a row has: got {self.row_nonzeros:g}"
            )
        for name in ("largest_entry", "largest_change", "change_norm", "flops", "bytes"):
            if given(name):
                check(name, require_number(name, getattr(self, name), 0))
        for name in ("final_probability", "level_one_probability"):
            if given(name):
                check(name, require_number(name, getattr(self, name), 0, math.nextafter(1, 2)))
        for name in ("solver_error", "readout_error"):
            check(name, require_number(name, getattr(self, name), 0, 1))
        if given("physical"):
            check("physical", _checked_physical(self.physical))
        if given("origin"):
            check("origin", _checked_origin(self.origin))

    # ---- The linear system -----------------------------------------------------------------------

    @property
    def times(self) -> int:
        """T + 1 + p, the time steps that the state holds."""
        return self.steps + 1 + self.idle

    @property
    def condition_number(self) -> float:
        """κ of ℒ as given, or 2(T+1+p), our estimate."""
        return 2.0 * self.times if self.kappa is None else self.kappa

    @property
    def step_encodings(self) -> dict[str, float]:
        """α of one step's map, by the way it is encoded; empty where s is not known.

        ``"entries"`` of A and ``"change"``, those of A − 1, by sparse access; ``"rows"``, states of
        the rows of A − 1.
        """
        if self.row_nonzeros is None:
            return {}
        s = self.row_nonzeros
        found = {"entries": sparse_subnormalization(s, s, self.largest_entry)}
        if self.largest_change is not None:
            found["change"] = 1 + sparse_subnormalization(s, s, self.largest_change)
        if self.change_norm is not None:
            found["rows"] = 1 + self.change_norm
        return found

    @property
    def step_encoding(self) -> str:
        """The way with the least α; ``"entries"`` where s is not known, or α is given."""
        ways = {} if self.subnormalization is not None else self.step_encodings
        return min(ways, key=lambda way: ways[way]) if ways else "entries"

    @property
    def relative_subnormalization(self) -> float:
        """α/‖ℒ‖, at least 1; infinite where it overflows."""
        if self.subnormalization is not None:
            return self.subnormalization
        if self.row_nonzeros is None:
            return 1.0
        try:
            alpha = 1 + min(self.step_encodings.values()) ** self.order
        except OverflowError:
            return math.inf
        # A block encoding has α ≥ ‖ℒ‖; the norm may be an overestimate.
        return max(1.0, alpha / self.norm)

    @property
    def encoded_condition_number(self) -> float:
        """κ_BE = α/σ_min(ℒ), which all query counts use."""
        return self.relative_subnormalization * self.condition_number

    @property
    def reach(self) -> float:
        r"""A lower bound of :math:`\sigma_{\min} \|\mathcal{L}^{-1}b\| / \|b\|`.

        The odds of HHL and QSVT are its square, but for a constant. Each of the T+1+p states of
        the homogeneous form holds the constant 1, all that b has, where the window starts at
        u = 0; so :math:`\|\mathcal{L}^{-1}b\| \ge \sqrt{T+1+p}\, \|b\|`. Above 1, κ is smaller
        than that of any homogeneous form of this length and norm.
        """
        return self.norm / self.condition_number * math.sqrt(self.times)

    # ---- What is stored --------------------------------------------------------------------------

    @property
    def entries(self) -> int:
        """L, numbers in the table: those of one step's linear map, for each different batch."""
        a_row = 1.0 if self.row_nonzeros is None else self.row_nonzeros
        return self.batches * math.ceil(self.active * a_row)

    @property
    def word(self) -> int:
        """Bits of a table's entry: a number and, in a sparse row, its column."""
        return self.bits + (0 if self.row_nonzeros is None else self.index_bits)

    @property
    def index_bits(self) -> int:
        """⌈log₂(n+1)⌉, qubits of one (1, u)."""
        return index_bits(self.active + 1)

    @property
    def time_bits(self) -> int:
        """⌈log₂(T+1+p)⌉, qubits of the time."""
        return index_bits(self.times)

    # ---- Reading it ------------------------------------------------------------------------------

    @property
    def final(self) -> float:
        """P(final) as given, or that of u(t) = (t/T) u at γ = ‖u‖."""
        if self.final_probability is not None:
            return self.final_probability
        # ‖y(t)‖², a sum over j ≤ N of q^j with q = 1 + (t/T)², as a share of 2^N.
        points = np.linspace(0.0, 1.0, min(self.steps, _TIMES) + 1)
        log_q = np.log1p(points**2)
        shares = np.full(points.shape, self.order * 2.0**-self.order)
        ratio = np.exp(self.order * (log_q[1:] - math.log(2))) * -np.expm1(-self.order * log_q[1:])
        shares[1:] = (1 + points[1:] ** -2) * ratio
        last = (self.idle + 1) * shares[-1]
        # The trapezoidal rule over the points; exact where each is a step.
        before = self.steps * float(np.mean((shares[1:] + shares[:-1]) / 2))
        before += float(shares[0] - shares[-1]) / 2
        return float(last / (before + last))

    @property
    def level_one(self) -> float:
        """P(u | final) as given, or that at γ = ‖u‖."""
        if self.level_one_probability is not None:
            return self.level_one_probability
        return 2.0**-self.order / (2 - 2.0 ** (1 - self.order))

    @property
    def state_error(self) -> float:
        """ε, or δ√p/3 where that is less: p = P(final) · P(u | final)."""
        allowed = self.readout_error * math.sqrt(self.final * self.level_one) / 3
        return max(min(self.solver_error, allowed), 1e-300)

    # ---- The same steps on a classical computer --------------------------------------------------

    @property
    def classical_flops(self) -> float:
        """As given, or 6 · parameters · batch_size · T, or NaN where neither is known."""
        if self.flops is not None:
            return self.flops
        if self.batch_size is None:
            return math.nan
        return float(FLOPS * self.parameters * self.batch_size * self.steps)


def _at_least_one(name: str, given: Any, otherwise: str) -> float:
    try:
        return require_number(name, given, math.nextafter(1, 0), otherwise=otherwise)
    except ValueError:
        raise ValueError(
            f"{name} must be a number of at least 1{otherwise}, got {given!r}"
        ) from None


def _checked_physical(given: Any) -> dict[str, float]:
    if not isinstance(given, Mapping) or set(given) - set(PHYSICAL):
        raise ValueError(
            f"physical must be a mapping with no other keys than {' and '.join(PHYSICAL)}, got "
            f"{given!r}"
        )
    return {key: require_number(f"physical[{key!r}]", value, 0) for key, value in given.items()}


def _checked_origin(given: Any) -> dict[str, str]:
    names = {field.name for field in fields(WindowSize)}
    words = isinstance(given, Mapping) and all(isinstance(text, str) for text in given.values())
    if not words or set(given) - names:
        raise ValueError(
            f"origin must be a mapping from the names of a window's numbers to words, got {given!r}"
        )
    return dict(given)
