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
from torch_qsgd.resources.window import WindowSize
from torch_qsgd.solvers.queries import amplification_rounds

#: Names of the solvers.
SOLVERS = tuple(row.name for row in ROWS)
_YEAR = 365.25 * 24 * 3600


def ledger(window: WindowSize, solver: str = "shortcut") -> Ledger:
    r"""What a quantum computer would need for a window, line by line.

    .. math::
        \text{T gates} = \text{copies} \times \text{runs a copy} \times \text{queries a run}
        \times \text{T gates a query}

    The line that dominates is the factor with the largest logarithm. Every line has its formula
    and source. Where κ is infinite, or a number overflows, so do the lines that follow from it,
    and the sentence says so. It is an estimate of order of magnitude, for the best published
    methods as far as they are known here, and claims no advantage.

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
    # Of several infinite factors, the queries are what the others follow from.
    dominant = max(factors, key=lambda key: (lines[key], key == row.key))
    return Ledger(
        window={**asdict(window), "solver": solver},
        entries=lines.entries,
        dominant=dominant,
        sentence=_sentence(lines, factors, dominant, window),
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
        row.success_formula,
        row.source,
        "proven" if row.success is not None and row.tag == "proven" else OURS,
    )
    final = lines.add(
        group,
        "success_final",
        "P(final): the clock found at the final time",
        window.final,
        "",
        "(p+1)/(T+1+p), states of equal length" if window.final_probability is None else "as given",
        "",
        OURS if window.final_probability is None else "measured",
    )
    level = lines.add(
        group,
        "success_level_one",
        "P(u | final): the displacement found there",
        window.level_one_probability,
        "",
        "‖u/γ‖²/‖y(T)‖²; 1/2 where γ = ‖u‖ and N = 1",
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
    lines.add(
        group,
        "amplification",
        "runs in one amplitude amplification",
        rounds,
        "runs",
        "2r + 1, r = ⌊π/(4 asin √p)⌋; needs a solver that runs without measurements",
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
        lines.add(
            group,
            f"total_{key}",
            f"in all, {where}",
            lines["copies"] * copy,
            unit,
            "copies × T gates a copy",
        )
    lines.add(
        group,
        "total_guaranteed",
        "in all, QROAM, with the proven number of copies",
        lines["copies_guaranteed"] * lines["copy_qroam"],
        unit,
        "proven copies × T gates a copy",
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


# ---- The sentence --------------------------------------------------------------------------------


def factor_name(key: str) -> str:
    """What a factor of the T gates stands for, by its key.

    Example:
        >>> factor_name("copies"), factor_name("queries_shortcut")
        ('readout', 'queries')
    """
    names = {"copies": "readout", "runs": "post-selection", "query_qroam": "loading"}
    return names.get(key, "queries")


def short(value: float) -> str:
    """A number in two digits, or whole where it is small.

    Example:
        >>> short(7.21e8), short(23.0), short(1.5), short(4e-7), short(float("inf"))
        ('7.2e8', '23', '1.5', '4e-7', '∞')
    """
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0 or 0.01 <= abs(value) < 1e4:
        return f"{value:.2g}" if abs(value) < 10 else f"{value:,.0f}"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}" if exponent else digits


def _sentence(lines: Lines, factors: tuple[str, ...], dominant: str, window: WindowSize) -> str:
    if math.isinf(window.condition_number):
        return (
            "No number of queries is enough: the system's condition number κ is infinite, and so "
            "are all totals."
        )
    if math.isinf(window.encoded_condition_number):
        return (
            "No number of queries is enough: the block encoding's subnormalization α is beyond "
            "all floats, and so are all totals."
        )
    name = factor_name(dominant)
    what = {"readout": "copies", "post-selection": "runs a copy", "queries": "queries a run"}
    copies, runs, queries, query = (short(lines[key]) for key in factors)
    text = (
        f"{name.capitalize()} dominate{'' if name == 'queries' else 's'}, with "
        f"{short(lines[dominant])} {what.get(name, 'T gates a query')}: {copies} copies × {runs} "
        f"runs × {queries} queries × {query} T gates = {short(lines['total_qroam'])} T gates "
        "(QROAM)"
    )
    if not math.isnan(lines["ratio_qroam"]):
        text += f", {short(lines['ratio_qroam'])} for each classical FLOP"
    return text + "."
