"""The ledger in a sentence: what dominates it, and what it rests on."""

from __future__ import annotations

import math

from torch_qsgd.resources.entries import Lines
from torch_qsgd.resources.queries import SolverRow
from torch_qsgd.resources.window import WindowSize


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


def sentence(lines: Lines, factors: tuple[str, ...], dominant: str, window: WindowSize) -> str:
    """What dominates the T gates, and how they come about."""
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
    least = "at least " if window.row_nonzeros is None else ""
    text = (
        f"{name.capitalize()} dominate{'' if name == 'queries' else 's'}, with "
        f"{short(lines[dominant])} {what.get(name, 'T gates a query')}: {copies} copies × {runs} "
        f"runs × {queries} queries × {query} T gates = {least}"
        f"{short(lines['total_qroam'])} T gates (QROAM)"
    )
    if not math.isnan(lines["ratio_qroam"]):
        text += f", {short(lines['ratio_qroam'])} for each classical FLOP"
    return text + "."


def assumptions(window: WindowSize, row: SolverRow) -> str:
    """One sentence of what the numbers rest on beside what was measured or given."""
    origin = window.origin or {}
    said = []
    if window.kappa is None:
        said.append("κ = 2(T+1+p)")
    elif "kappa" in origin:
        said.append(f"κ {origin['kappa']}")
    if window.row_nonzeros is None:
        said.append("one number a weight in the table, for a row's non-zeros s are not known")
    elif "row_nonzeros" in origin:
        said.append(f"s {origin['row_nonzeros']}")
    if window.subnormalization is None and window.row_nonzeros is None:
        said.append("an ideal block encoding, α = ‖ℒ‖")
    if window.order > 1:
        said.append("no table for derivatives beyond the Hessian")
    if window.final_probability is None or window.level_one_probability is None:
        said.append("odds of u(t) = (t/T) u")
    if row.once:
        said.append("‖x‖ found once serves all copies")
    if row.name.startswith("hhl"):
        said.append("a query of e^{iMt} charged as one of the block encoding")
    said.append("copies as measured by emulation, not as proven")
    return f"Assumed: {'; '.join(said)}."
