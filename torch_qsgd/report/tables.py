"""Tables of a page: text to show, beside the numbers it was made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch_qsgd.report.content import Report
from torch_qsgd.report.findings import Finding, Verdict
from torch_qsgd.report.numbers import (
    MISSING,
    amount,
    limits,
    number,
    share,
    shown,
    span,
    threshold,
    unit_of,
    whole,
    with_unit,
)
from torch_qsgd.resources import Ledger

_IN_FULL = 10**10  # integers below are counts, of which all digits are worth seeing
_LOSS_DIGITS = 5


@dataclass(frozen=True)
class Cell:
    """What stands in a table's cell.

    Attributes:
        text: to show.
        raw: to copy, where that differs: a number with all its digits.
        look: ``""``, ``"number"``, ``"short"`` for what stays on one line, or a verdict.
        digits: of a number's text, at least.
    """

    text: str
    raw: str = ""
    look: str = ""
    digits: int = 3


@dataclass(frozen=True)
class Table:
    """Rows under columns.

    Attributes:
        key: short, unique on its page.
        title: above it.
        columns: their names, with units.
        rows: of as many cells; the first one names the row.
        note: below it; may be empty.
        folded: whether it is closed until a reader opens it.
        long: whether it is closed so on a narrow page, where it would take several screens.
        stacked: whether a narrow page shows each row as a list, for cells that hold sentences.
    """

    key: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    folded: bool = False
    long: bool = False
    stacked: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers, and so is aligned on the right."""
        return [any(c.look == "number" for c in column) for column in zip(*self.rows, strict=True)]


def cell(value: Any) -> Cell:
    """A cell of whatever it is.

    Example:
        >>> cell(1.23456e-7)
        Cell(text='1.23×10⁻⁷', raw='1.23456e-07', look='number', digits=3)
        >>> cell("weights")
        Cell(text='weights', raw='', look='', digits=3)
    """
    if isinstance(value, Cell):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return Cell(shown(value))
    text = whole(value) if isinstance(value, int) and abs(value) < _IN_FULL else number(value)
    return Cell(text, repr(value), "number")


def percent(value: float) -> Cell:
    """A share of one as a percentage, which is what is copied, too."""
    text = share(value)
    raw = f"{100 * value:.6g}" if math.isfinite(value) else "nan"
    return Cell(text.removesuffix(" %"), raw, "number")


def loss(value: float) -> Cell:
    """A loss, with the digits that tell one from another of the same model.

    Example:
        >>> loss(2.1934567).text
        '2.1935'
    """
    return Cell(number(value, _LOSS_DIGITS), repr(value), "number", _LOSS_DIGITS)


def table(
    key: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], **options: Any
) -> Table:
    """A table of whatever its cells are, see :func:`cell`."""
    return Table(key, title, list(columns), [[cell(v) for v in row] for row in rows], **options)


# ---- Verdicts ----------------------------------------------------------------------------------


def verdicts(report: Report) -> Table:
    """A row an assumption: its verdict, and the finding that decided it."""
    rows: list[list[Any]] = []
    for assumption, verdict in report.verdicts.items():
        findings = report.of(assumption)
        deciding = [finding for finding in findings if finding.verdict == verdict]
        first = deciding[0]
        why = f"{first.quantity}: {_said(first)}"
        if len(deciding) < len(findings):
            why += f" ({len(deciding)} of {len(findings)} measures)"
        rows.append([assumption, _verdict(verdict), why])
    return table(
        "verdicts",
        "Verdict on each assumption",
        ("assumption", "verdict", "decided by"),
        rows,
        stacked=True,
        note="An assumption breaks where one of its measures breaks, and holds where all hold. "
        "Thresholds are our definition: the paper states none.",
    )


def _verdict(verdict: Verdict) -> Cell:
    return Cell(verdict, look=verdict)


def _said(finding: Finding) -> str:
    if math.isnan(finding.value):
        return "not measured"
    return f"{with_unit(finding.value, finding.unit)}, asked for {threshold(finding)}"


def findings(report: Report) -> Table:
    """A row a measure: value, range, threshold, verdict, and what that means."""
    rows = [
        _measure(finding) for assumption in report.verdicts for finding in report.of(assumption)
    ]
    return table(
        "findings",
        "All measures",
        ("measure", "assumption", "value", "unit", "range", "holds where", "verdict", "in words"),
        rows,
        long=True,
        stacked=True,
        note="Shares, accuracies among them, are parts of one here: 0.05 is 5 %, or 5 percentage "
        "points. Elsewhere they are in per cent where the column says %.",
    )


def _measure(found: Finding) -> list[Any]:
    known = not math.isnan(found.value)
    value = amount(found.value) if known else "not measured"
    low, high = limits(found)
    between = Cell(span(found), f"{low!r} to {high!r}", "short") if span(found) else ""
    limit = Cell(MISSING, "nan")
    if not math.isnan(found.threshold):
        sign = found.relation
        limit = Cell(f"{sign} {amount(found.threshold)}", f"{sign} {found.threshold!r}", "short")
    return [
        found.quantity,
        found.assumption,
        Cell(value, repr(found.value), "number"),
        unit_of(found.value, found.unit),
        between,
        limit,
        _verdict(found.verdict),
        found.sentence,
    ]


# ---- Facts -------------------------------------------------------------------------------------


def named(key: str, title: str, values: Mapping[str, Any]) -> Table:
    """Names and values, such as facts and settings."""
    rows = [
        [name.replace("_", " "), replace(cell(value), look="")] for name, value in values.items()
    ]
    return table(key, title, ("name", "value"), rows)


#: What a ledger was computed from, in words and with units, by the names of ``WindowSize``.
_WINDOW = {
    "parameters": "weights of the model",
    "active": "active weights n",
    "steps": "steps T",
    "order": "truncation order N",
    "idle": "idle steps after the window, p",
    "kappa": "condition number κ of the system",
    "norm": "norm of the system, ‖ℒ‖",
    "subnormalization": "subnormalization over the norm, α/‖ℒ‖",
    "row_nonzeros": "non-zeros in a row of one step's map, s",
    "largest_entry": "largest entry of one step's map, max |A_ij|",
    "largest_change": "largest change a step makes, max |A_ij − δ_ij|",
    "change_norm": "Frobenius norm of that change, ‖A − 1‖_F",
    "batches": "different batches",
    "final_probability": "probability of the final time",
    "level_one_probability": "probability of the displacement, there",
    "solver_error": "error of the solver ε, relative",
    "readout_error": "error of the readout δ, relative",
    "bits": "bits of a stored number",
    "batch_size": "samples of a batch",
    "flops": "classical operations (FLOP)",
    "bytes": "classical memory traffic (bytes)",
    "error": "error of the solver ε, relative",
    "origin": "where the numbers come from",
}


def window(ledger: Ledger) -> Table:
    """What the ledger was computed from, in words; what was not known is left out."""
    given: dict[str, Any] = {}
    for name, value in ledger.window.items():
        if value is None or name == "physical":  # which the ledger has lines of
            continue
        if name == "origin" and isinstance(value, Mapping):
            value = "; ".join(f"{_WINDOW.get(part, part)}: {said}" for part, said in value.items())
        given[_WINDOW.get(name, name)] = value
    return named("window", "The window", given)
