"""Verdicts and findings as tables for a terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from torch_qsgd.report.content import Report
from torch_qsgd.report.findings import Finding, Verdict
from torch_qsgd.report.numbers import ranged, threshold, with_unit

#: A mark tells verdicts apart without colours too.
_LOOKS: dict[Verdict, str] = {
    "holds": "[green]✓ holds[/green]",
    "breaks": "[red]✗ breaks[/red]",
    "cannot tell": "[yellow]? cannot tell[/yellow]",
}


def verdict_tables(report: Report) -> list[Table]:
    """One table: a row a finding, under its assumption and that one's verdict.

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
    table = Table(title="Verdicts", title_justify="left")
    table.add_column("assumption", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("holds where", justify="right")
    table.add_column("verdict", no_wrap=True)
    for assumption, verdict in report.verdicts.items():
        table.add_row(f"[bold]{escape(assumption)}[/bold]", "", "", _LOOKS[verdict])
        for found in report.of(assumption):
            table.add_row(
                f"  {escape(found.quantity)}",
                escape(_value(found)),
                escape(threshold(found)),
                _LOOKS[found.verdict],
            )
        table.add_section()
    table.caption = "Thresholds are our definition; sentences to each finding: in the report."
    table.caption_justify = "left"
    return [table]


def _value(found: Finding) -> str:
    """With the range where it is why there is no verdict."""
    unclear = found.verdict == "cannot tell" and found.low is not None
    return ranged(found) if unclear else with_unit(found.value, found.unit)
