"""Verdicts and findings as tables for a terminal."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from torch_qsgd.report.content import Report
from torch_qsgd.report.findings import Verdict
from torch_qsgd.report.numbers import number, with_unit

#: A mark tells verdicts apart without colours too.
_LOOKS: dict[Verdict, tuple[str, str]] = {
    "holds": ("✓", "green"),
    "breaks": ("✗", "red"),
    "cannot tell": ("?", "yellow"),
}


def verdict_tables(report: Report) -> list[Table]:
    """One table for 80 columns: a row a finding, under its assumption and that one's verdict.

    Args:
        report: of an audit.

    Returns:
        None where there are no findings.

    Example:
        >>> verdict_tables(Report("a model", "audit"))
        []
    """
    if not report.findings:
        return []
    table = Table(title="Verdicts", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("", no_wrap=True)
    table.add_column("assumption, and what was measured", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("holds where", justify="right")
    for assumption, verdict in report.verdicts.items():
        mark, colour = _LOOKS[verdict]
        table.add_row(
            Text(mark, colour), Text(assumption, "bold"), Text(verdict, f"bold {colour}"), ""
        )
        for found in report.of(assumption):
            mark, colour = _LOOKS[found.verdict]
            limit = f"{found.relation} {number(found.threshold)}"
            value = with_unit(found.value, found.unit)
            table.add_row(Text(mark, colour), f"  {escape(found.quantity)}", value, limit)
        table.add_section()
    table.caption = "Thresholds are our definition; ranges and a sentence each: in the report."
    table.caption_justify = "left"
    return [table]
