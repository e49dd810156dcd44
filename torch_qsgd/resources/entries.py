"""The ledger's lines up to one query: qubits, queries of every solver, the block encoding."""

from __future__ import annotations

import math

from torch_qsgd.resources.ledger import Entry
from torch_qsgd.resources.loading import (
    lookup_and_undo,
    qroam,
    state_by_gates,
    state_by_tables,
)
from torch_qsgd.resources.queries import ROWS, SolverRow, clock_qubits
from torch_qsgd.resources.window import WindowSize

OURS = "our estimate"


class Lines:
    """Entries in the making; each value is there for those that follow."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._values: dict[str, float] = {}

    def __getitem__(self, key: str) -> float:
        return self._values[key]

    def add(
        self,
        group: str,
        key: str,
        quantity: str,
        value: float,
        unit: str,
        formula: str,
        source: str = "",
        tag: str = OURS,
    ) -> float:
        """Append a line and return its value."""
        value = _float(value)
        self._values[key] = value
        self.entries.append(Entry(key, group, quantity, value, unit, formula, source, tag))
        return value


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond all floats
        return math.inf


# ---- Qubits --------------------------------------------------------------------------------------


def add_qubits(lines: Lines, window: WindowSize, row: SolverRow) -> None:
    """Logical qubits: of the state, of block encoding and lookup, of the solver."""
    group, unit, w = "qubits", "qubits", window
    table = qroam(w.entries, w.word)
    data = lines.add(
        group,
        "data_qubits",
        "the state: time, block and N displacements",
        w.time_bits + (w.order - 1).bit_length() + w.order * w.index_bits,
        unit,
        "⌈log₂(T+1+p)⌉ + ⌈log₂ N⌉ + N ⌈log₂(n+1)⌉",
        "layout of the homogeneous form",
    )
    encoding = lines.add(
        group,
        "encoding_qubits",
        "ancillas of the block encoding",
        w.order * (w.index_bits + 3) + 1,
        unit,
        "N (⌈log₂(n+1)⌉ + 3) + 1: sparse access for each factor, one to add 1",
        "arXiv:1806.01838",
    )
    lookup = lines.add(
        group,
        "lookup_qubits",
        "output and ancillas of a QROAM lookup",
        w.word + table.ancillas,
        unit,
        f"b' K + ⌈log₂(L/K)⌉ with K = {table.blocks:,} entries of b' = {w.word} bits at a time",
        "arXiv:1812.00954, arXiv:1902.02134",
    )
    clock = lines.add(
        group,
        "clock_qubits",
        "clock of HHL with the sine window",
        clock_qubits("sine", w.encoded_condition_number, w.state_error),
        unit,
        "least t with 0.17 (κ_BE/(0.45·2^t))² ≤ ε",
        "measured here with HHL's emulator",
        "numerical",
    )
    if row.name == "hhl-uniform":
        clock = clock_qubits("uniform", w.encoded_condition_number, w.state_error)
    solver = clock + 1 if row.name.startswith("hhl") else 2
    lines.add(
        group,
        "logical_qubits",
        "all of them, tables in QROAM",
        data + encoding + lookup + solver,
        unit,
        f"state + block encoding + lookup + {solver:g} of the solver ({row.title})",
    )
    lines.add(
        group,
        "logical_qubits_qram",
        "all of them, tables in QRAM",
        data + encoding + w.word + (w.entries - 1).bit_length() + solver,
        unit,
        "as before with one word and its address in place of QROAM's ancillas; the memory's own "
        "cells are not counted here",
    )


# ---- Queries -------------------------------------------------------------------------------------


def add_queries(lines: Lines, window: WindowSize) -> None:
    """Queries of every solver at κ_BE and ε."""
    for row in ROWS:
        lines.add(
            "queries",
            row.key,
            row.title,
            row.count(window),
            "queries",
            f"{row.formula}; κ = κ_BE" if row.name != "jennings" else row.formula,
            row.source,
            row.tag,
        )


# ---- Block encoding ------------------------------------------------------------------------------


def add_block_encoding(lines: Lines, window: WindowSize) -> None:
    """κ, α, the table, and the T gates of one query."""
    group, w = "block encoding", window
    origin = w.origin or {}
    lines.add(
        group,
        "kappa",
        "condition number κ of ℒ",
        w.condition_number,
        "",
        "2(T+1+p); a bound only for ‖A‖ ≤ 1, which the gradient takes over 1: κ was up to 1.8 "
        "times that at N = 2, and 3.1 at N = 3, of modes that shrink without changing sign"
        if w.kappa is None
        else origin.get("kappa", "as given"),
    )
    lines.add(
        group,
        "alpha",
        "subnormalization α/‖ℒ‖",
        w.relative_subnormalization,
        "",
        _how_encoded(w),
        "arXiv:1806.01838",
    )
    lines.add(
        group,
        "kappa_be",
        "condition number κ_BE that solvers see",
        w.encoded_condition_number,
        "",
        "α/σ_min = (α/‖ℒ‖) κ",
        "arXiv:1806.01838",
    )
    entries = lines.add(
        group,
        "entries",
        "entries L of the table",
        w.entries,
        "numbers",
        f"{_how_stored(w)}; the gradients, n · batches, and derivatives beyond the Hessian, in "
        "blocks of order 2 and more, are not counted",
    )
    lines.add(
        group,
        "qram_cells",
        "cells of a QRAM that holds the table",
        entries * w.word,
        "bits",
        f"L b' with b' = {w.word} bits",
    )
    _add_query(lines, w)
    lines.add(
        group,
        "upload_gates",
        "one upload gate by gate, for comparison",
        state_by_gates(w.active, w.index_bits, w.state_error),
        "T gates",
        "n-sparse state without tables and few ancillas, rotations at 3 log₂(R/ε); not in the "
        "totals, where tables prepare it with fewer T gates and more qubits",
        "doi:10.1109/DAC18074.2021.9586240, arXiv:1403.2975",
        "proven",
    )


def _add_query(lines: Lines, w: WindowSize) -> None:
    group, unit = "block encoding", "T gates"
    tables = (
        ("qroam", "QROAM", False, "arXiv:1812.00954, arXiv:1902.02134"),
        ("qram", "QRAM (assumed hardware)", True, "arXiv:1603.08675"),
    )
    for key, where, memory, source in tables:
        cost = "2 b' ⌈log₂ L⌉" if memory else "4(⌈L/K⌉ − 2) + 4b'(K−1) + 4(⌈L/K'⌉ + K')"
        lookup = lines.add(
            group,
            f"lookup_{key}",
            f"one lookup and its undoing, {where}",
            lookup_and_undo(w.entries, w.word, memory),
            unit,
            f"{cost}, b' = {w.word} bits an entry",
            source,
        )
        upload = lines.add(
            group,
            f"upload_{key}",
            f"one upload of the gradient's n amplitudes, {where}",
            state_by_tables(w.active, w.bits, memory, w.batches),
            unit,
            "Σ over ⌈log₂ n⌉ levels l: lookup and undoing of one of batches · 2^l angles, and 4b",
            source,
        )
        if w.step_encoding == "rows":
            a_row = max(1, math.ceil(w.row_nonzeros or w.active))
            numbers: float = state_by_tables(a_row, w.bits, memory, w.active * w.batches)
            numbers += state_by_tables(w.active, w.bits, memory, w.batches)
            how = "two states, of a row and of the rows' lengths, by tables as the gradient's"
        else:
            numbers = lookup + 4 * w.bits
            how = "lookup + 4b: an entry, compared with all b-bit numbers at once"
        lines.add(
            group,
            f"query_{key}",
            f"one query of the block encoding, {where}",
            w.order * (numbers + upload) + 4 * w.time_bits,
            unit,
            "N (a step + upload) + 4 ⌈log₂(T+1+p)⌉: block N takes P₁ N times, each a step's map "
            f"and the gradient, which the homogeneous form has in ℒ; then a step in time. A step: "
            f"{how}",
            "arXiv:1806.01838, arXiv:1807.03206, arXiv:1603.08675",
        )


def _how_encoded(w: WindowSize) -> str:
    if w.subnormalization is not None:
        return "as given"
    if w.row_nonzeros is None:
        return "1, an ideal block encoding: the non-zeros of a row are not known"
    words = {
        "entries": f"s max|A_ij| = {w.row_nonzeros:.3g} · {w.largest_entry:.3g}, sparse access",
        "change": f"1 + s max|A_ij − δ_ij| = 1 + {w.row_nonzeros:.3g} · "
        f"{w.largest_change or 0:.3g}, sparse access to A − 1",
        "rows": f"1 + ‖A − 1‖_F = 1 + {w.change_norm or 0:.3g}, states of the rows of A − 1",
    }
    others = [f"{way} {alpha:.3g}" for way, alpha in w.step_encodings.items()]
    symbols = {
        "row_nonzeros": "s",
        "largest_change": "max|A_ij − δ_ij|",
        "change_norm": "‖A − 1‖_F",
    }
    because = "".join(_because(w, name, symbol) for name, symbol in symbols.items())
    return (
        f"(1 + α₁^N)/‖ℒ‖, at least 1, ‖ℒ‖ = {w.norm:.3g}; α₁ = {words[w.step_encoding]}, the "
        f"least of: {', '.join(others)}{because}"
    )


def _because(w: WindowSize, name: str, symbol: str) -> str:
    """Where a number comes from, as the rest of a sentence."""
    words = (w.origin or {}).get(name)
    return f"; {symbol}: {words}" if words else ""


def _how_stored(w: WindowSize) -> str:
    if w.row_nonzeros is None:
        return "n · batches: one number a weight, a lower bound, for a row's non-zeros are unknown"
    because = _because(w, "row_nonzeros", "s")
    return f"n · s · batches with s = {w.row_nonzeros:.3g} non-zeros a row{because}"
