"""Tables of a page: text to show, beside the numbers it was made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch_qsgd.report.content import Report
from torch_qsgd.report.findings import Finding, Verdict
from torch_qsgd.report.numbers import MISSING, number, share, shown, threshold, whole, with_unit

_IN_FULL = 10**10  # integers below are counts, of which all digits are worth seeing


@dataclass(frozen=True)
class Cell:
    """What stands in a table's cell.

    Attributes:
        text: to show.
        raw: to copy, where that differs: a number with all its digits.
        look: ``""``, ``"number"``, ``"short"`` for what stays on one line, or a verdict.
    """

    text: str
    raw: str = ""
    look: str = ""


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
        stacked: whether a narrow page shows each row as a list, for cells that hold sentences.
    """

    key: str
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    folded: bool = False
    stacked: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers, and so is aligned on the right."""
        return [any(c.look == "number" for c in column) for column in zip(*self.rows, strict=True)]


def cell(value: Any) -> Cell:
    """A cell of whatever it is.

    Example:
        >>> cell(1.23456e-7)
        Cell(text='1.23×10⁻⁷', raw='1.23456e-07', look='number')
        >>> cell("weights")
        Cell(text='weights', raw='', look='')
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
    rows: list[list[Any]] = []
    for assumption in report.verdicts:
        for found in report.of(assumption):
            limits = [found.value if end is None else end for end in (found.low, found.high)]
            both = found.low is not None or found.high is not None
            span = f"{number(limits[0])} to {number(limits[1])}"
            value = (
                cell(found.value)
                if found.value == found.value
                else Cell("not measured", "nan", "number")
            )
            limit = number(found.threshold)
            rows.append(
                [
                    found.quantity,
                    assumption,
                    value,
                    found.unit,
                    Cell(span, f"{limits[0]!r} to {limits[1]!r}", "short") if both else "",
                    Cell(
                        f"{found.relation} {limit}",
                        f"{found.relation} {found.threshold!r}",
                        "short",
                    )
                    if found.threshold == found.threshold
                    else Cell(MISSING, "nan"),
                    _verdict(found.verdict),
                    found.sentence,
                ]
            )
    return table(
        "findings",
        "All measures",
        ("measure", "assumption", "value", "unit", "range", "holds where", "verdict", "in words"),
        rows,
        stacked=True,
    )


# ---- Facts -------------------------------------------------------------------------------------


def named(key: str, title: str, values: Mapping[str, Any]) -> Table:
    """Names and values, such as facts and settings."""
    rows = [
        [name.replace("_", " "), replace(cell(value), look="")] for name, value in values.items()
    ]
    return table(key, title, ("name", "value"), rows)
