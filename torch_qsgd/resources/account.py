"""The whole ledger of a window, and the sentence that says what dominates it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict

from torch_qsgd.names import nearest
from torch_qsgd.readout import expected_copies, guaranteed_copies
from torch_qsgd.resources.entries import OURS, Lines, add_block_encoding, add_qubits, add_queries
from torch_qsgd.resources.ledger import Ledger
from torch_qsgd.resources.queries import ROWS, SolverRow
from torch_qsgd.resources.sentence import assumptions, sentence
from torch_qsgd.resources.window import WindowSize
from torch_qsgd.solvers.queries import amplification_rounds

#: Names of the solvers.
SOLVERS = tuple(row.name for row in ROWS)
#: Whose queries the totals take where none is named.
SOLVER = "shortcut-known-norm"
_YEAR = 365.25 * 24 * 3600


def ledger(window: WindowSize, solver: str = SOLVER) -> Ledger:
    r"""What a quantum computer would need for a window, line by line.

    .. math::
        \text{T gates} = \text{copies} \times \text{runs a copy} \times \text{queries a run}
        \times \text{T gates a query} + \text{finding } \|x\| \text{ once}

    The line that dominates is the factor with the largest logarithm. Every line has its formula
    and source. Where κ is infinite, or a number overflows, so do the lines that follow from it,
    and the sentence says so; it ends with what was assumed and not measured. It is an estimate of
    order of magnitude for some published methods with constants known here, not for the best that
    may exist, and claims no advantage. By default a copy takes the queries of the shortcut method
    with a known ‖x‖, and ‖x‖ is found once, by the same method's row for an unknown one: that one
    run's estimate serves all copies is ours.

    Args:
        window: its size.
        solver: whose queries the totals take, one of :data:`SOLVERS`; the others' are listed too.

    Raises:
        ValueError: for a solver that is not known.

    Cost: a millisecond.

    Example:
        >>> window = WindowSize(parameters=103_000_000, active=10_300_000, steps=100, order=3)
        >>> found = ledger(window)
        >>> found["data_qubits"], found["queries_shortcut"] // 100, f"{found['copies']:.1e}"
        (81.0, 131.0, '7.2e+08')
        >>> found.dominant
        'copies'
    """
    row = _row(solver)
    lines = Lines()
    add_qubits(lines, window, row)
    add_queries(lines, window)
    add_block_encoding(lines, window)
    _add_repetitions(lines, window, row)
    _add_readout(lines, window)
    factors = _add_t_gates(lines, row)
    _add_physical(lines, window)
    _add_classical(lines, window)
    assumed = assumptions(window, row)
    # Of several infinite factors, the queries are what the others follow from.
    dominant = max(factors, key=lambda key: (lines[key], key == row.key))
    return Ledger(
        window={**asdict(window), "solver": solver},
        entries=lines.entries,
        dominant=dominant,
        sentence=f"{sentence(lines, factors, dominant, window)} {assumed}",
        assumptions=assumed,
    )


def _row(solver: str) -> SolverRow:
    for row in ROWS:
        if row.name == solver:
            return row
    near = nearest(solver, SOLVERS) if isinstance(solver, str) else None
    hint = f"; did you mean {near!r}?" if near else ""
    raise ValueError(f"unknown solver {solver!r}; known: {', '.join(SOLVERS)}{hint}")


# ---- From one query to all T gates ---------------------------------------------------------------


def _add_repetitions(lines: Lines, window: WindowSize, row: SolverRow) -> None:
    group = "repetitions"
    solved = lines.add(
        group,
        "success_solver",
        f"success of one run of the solver ({row.title})",
        row.odds(window),
        "",
        row.success_formula
        + (
            "; r is taken as 1: κ is below that of any homogeneous form" if window.reach > 1 else ""
        ),
        row.source,
        "proven" if row.success is not None and row.tag == "proven" else OURS,
    )
    final = lines.add(
        group,
        "success_final",
        "P(final): the clock found at the final time",
        window.final,
        "",
        "(p+1)‖y(T)‖²/Σ‖y‖² of u(t) = (t/T) u, γ = ‖u‖"
        if window.final_probability is None
        else "as given",
        "",
        OURS if window.final_probability is None else "measured",
    )
    level = lines.add(
        group,
        "success_level_one",
        "P(u | final): the displacement found there",
        window.level_one,
        "",
        "1/(2^(N+1) − 2), γ = ‖u‖" if window.level_one_probability is None else "as given",
        "",
        OURS if window.level_one_probability is None else "measured",
    )
    odds = lines.add(
        group,
        "success",
        "success of one run in all",
        solved * final * level,
        "",
        "solver × P(final) × P(u | final)",
    )
    rounds = 2.0 * amplification_rounds(odds) + 1 if odds > 0 else math.inf
    if not row.coherent:
        rounds = 1.0
    lines.add(
        group,
        "amplification",
        "runs in one amplitude amplification",
        rounds,
        "runs",
        "2r + 1, r = ⌊π/(4 asin √p)⌋"
        if row.coherent
        else "1: this solver measures, or leaves a mixture, and cannot be amplified",
        "arXiv:quant-ph/0005055",
        "proven",
    )
    lines.add(
        group,
        "runs",
        "runs for one copy of the displacement",
        _runs(odds, rounds),
        "runs",
        "(2r+1)/sin²((2r+1) asin √p), or 1/p without amplification where that is less",
        "arXiv:quant-ph/0005055",
        "proven",
    )


def _runs(odds: float, amplified: float) -> float:
    """The expected number of runs until success, amplified ones counted as that many runs."""
    if odds == 0:
        return math.inf
    reached = math.sin(amplified * math.asin(math.sqrt(odds))) ** 2
    return min(amplified / reached if reached > 0 else math.inf, 1 / odds)


def _add_readout(lines: Lines, window: WindowSize) -> None:
    s, delta = window.active, window.readout_error
    error = lines.add(
        "readout",
        "state_error",
        "error of the state that queries are counted for",
        window.state_error,
        "",
        "min(ε, δ√p/3), p = P(final) · P(u | final)",
    )
    lines.add(
        "readout",
        "displacement_error",
        "what it can make of the displacement, relative",
        error / math.sqrt(window.final * window.level_one) if window.level_one else math.inf,
        "",
        f"ε/√p, at most; beside δ = {delta:g} of the readout",
    )
    for key, quantity, count, formula, source, tag in (
        (
            "copies",
            "copies to read the displacement, as measured",
            expected_copies,
            "2 · 0.35 n/δ²: magnitudes, and signs",
            "measured here with the emulated tomography",
            "numerical",
        ),
        (
            "copies_guaranteed",
            "copies to read the displacement, as proven",
            guaranteed_copies,
            "2 · 36 n ln n/δ²",
            "arXiv:1808.09266",
            "proven",
        ),
    ):
        copies = _or_infinite(count, s, delta)
        lines.add("readout", key, quantity, copies, "copies", formula, source, tag)

    lines.add(
        "readout",
        "unitary_calls",
        "runs in place of copies, could all be undone",
        s / delta,
        "runs",
        "n/δ, without constant and logarithms: readout by the unitary that prepares the state and "
        "its inverse; not in the totals",
        "arXiv:2207.08800",
    )


def _or_infinite(count: Callable[[int, float], int], support: int, precision: float) -> float:
    """Copies, infinite where float64 does not count them: support and precision are checked."""
    try:
        return count(support, precision)
    except ValueError:
        return math.inf


def _add_t_gates(lines: Lines, row: SolverRow) -> tuple[str, ...]:
    """Add the totals; return the keys of their factors with QROAM."""
    group, unit = "T gates", "T gates"
    for key, where in (("qroam", "QROAM"), ("qram", "QRAM (assumed hardware)")):
        copy = lines.add(
            group,
            f"copy_{key}",
            f"one copy of the displacement, {where}",
            lines["runs"] * lines[row.key] * lines[f"query_{key}"],
            unit,
            f"runs × queries ({row.title}) × T gates a query",
        )
        once = 0.0
        if row.once:
            finder = _row(row.once)
            once = lines.add(
                group,
                f"norm_{key}",
                f"finding ‖x‖ once, {where}",
                lines[finder.key] * lines[f"query_{key}"],
                unit,
                f"queries ({finder.title}) × T gates a query; that it serves all copies is ours",
                finder.source,
            )
        lines.add(
            group,
            f"total_{key}",
            f"in all, {where}",
            lines["copies"] * copy + once,
            unit,
            "copies × T gates a copy" + (" + finding ‖x‖ once" if once else ""),
        )
    lines.add(
        group,
        "total_guaranteed",
        "in all, QROAM, with the proven number of copies",
        lines["copies_guaranteed"] * lines["copy_qroam"] + (lines["norm_qroam"] if row.once else 0),
        unit,
        "proven copies × T gates a copy" + (" + finding ‖x‖ once" if row.once else ""),
    )
    return ("copies", "runs", row.key, "query_qroam")


# ---- Beside them ---------------------------------------------------------------------------------


def _add_physical(lines: Lines, window: WindowSize) -> None:
    given: Mapping[str, float] = window.physical or {}
    estimate, none = "surface-code estimate, as given", "not known: no physical estimate was given"
    seconds = given.get("seconds_per_copy", math.nan)
    lines.add(
        "physical",
        "physical_qubits",
        "physical qubits",
        given.get("physical_qubits", math.nan),
        "qubits",
        estimate if "physical_qubits" in given else none,
    )
    budget = given.get("error_budget", math.nan)
    lines.add(
        "physical",
        "error_budget",
        "share of copies that may fail unseen",
        budget,
        "",
        f"error budget of a copy; at most δ² = {window.readout_error**2:.2g}, or the readout fails"
        if "error_budget" in given
        else none,
    )
    known = "seconds_per_copy" in given
    lines.add(
        "physical", "seconds_copy", "time of one copy", seconds, "s", estimate if known else none
    )
    for key, quantity, unit, value in (
        ("seconds", "time in all, one computer", "s", seconds * lines["copies"]),
        ("years", "time in all, one computer", "years", seconds * lines["copies"] / _YEAR),
    ):
        formula = "time of one copy × copies, one after the other" if known else none
        lines.add("physical", key, quantity, value, unit, formula)


def _add_classical(lines: Lines, window: WindowSize) -> None:
    counted = window.flops is not None
    missing = "not known: give flops, or batch_size for an estimate"
    formula = "6 · parameters · batch size · T" if window.batch_size is not None else missing
    flops = lines.add(
        "classical",
        "flops",
        "floating-point operations of the same T steps",
        window.classical_flops,
        "FLOP",
        "as given" if counted else formula,
        "",
        "measured" if counted else OURS,
    )
    moved = window.bytes
    lines.add(
        "classical",
        "bytes",
        "memory of the same T steps",
        math.nan if moved is None else moved,
        "bytes",
        "not known: give bytes" if moved is None else "as given",
        "",
        OURS if moved is None else "measured",
    )
    for key, where in (("qroam", "QROAM"), ("qram", "QRAM (assumed hardware)")):
        lines.add(
            "ratio",
            f"ratio_{key}",
            f"T gates for each classical FLOP, {where}",
            lines[f"total_{key}"] / flops,
            "T gates/FLOP",
            "T gates in all / FLOP" if not math.isnan(flops) else missing,
        )
