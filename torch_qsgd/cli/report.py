"""``torch-qsgd report``: HTML, Markdown and JSON of an audit or of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torch_qsgd.cli import common
from torch_qsgd.cli.train_report import percentage
from torch_qsgd.cli.verdict_table import verdict_tables
from torch_qsgd.names import nearest
from torch_qsgd.report.content import Report
from torch_qsgd.report.from_run import RUN_FILE, report_of_run

AUDIT_FILE, NAME = "audit.json", "report"

_SOURCES = (
    "SOURCE must be the JSON file of an audit or a report, or a folder that `torch-qsgd train` or "
    "`torch-qsgd audit` wrote to"
)


def report_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Folder that train or audit wrote to, or the JSON file of an audit or a report.",
        ),
    ],
    json: common.Json = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.html, report.md and report.json: that of SOURCE unless given."
        ),
    ] = None,
) -> None:
    """Write a report as one HTML page, as Markdown, and as JSON, all of the same numbers.

    The page holds figures and tables and needs no network; the Markdown is for
    a paper's appendix. The numbers of an audit are not measured anew.

    Example: python -m torch_qsgd report runs/train --output runs/report
    """
    console = Console(stderr=json)  # so that stdout holds nothing but the JSON
    try:
        report, beside = read_source(source)
        paths = report.write(beside if output is None else output, NAME)
    except (ValueError, OSError) as error:
        raise common.fail(error) from None
    if json:
        print(common.as_json(report.to_json()))
    else:
        for table in verdict_tables(report) or window_tables(report):
            console.print(table)
        if not report.complete:
            common.say(console, "incomplete: not all that was asked for was measured")
    for path in paths:
        common.say(console, f"{path.suffix[1:]}: {path}")


def read_source(source: Path) -> tuple[Report, Path]:
    """The report of a file or a folder, and the folder it lies in.

    Args:
        source: the JSON file of an audit or a report; run.json; or a folder with run.json or
            audit.json in it.

    Raises:
        ValueError: where it is none of these, or damaged; the message says what to give.
        OSError: where it cannot be read.
    """
    if source.is_dir():
        there = [name for name in (RUN_FILE, AUDIT_FILE) if (source / name).is_file()]
        if len(there) > 1:
            raise ValueError(f"{source} holds {' and '.join(there)}: give one of these files")
        if not there:
            raise ValueError(f"{source} holds neither {RUN_FILE} nor {AUDIT_FILE}{_hint(source)}")
        source = source / there[0]
    if not source.is_file():
        near = nearest(source.name, (path.name for path in _listed(source.parent)))
        hint = f"; did you mean '{source.parent / near}'?" if near else ""
        raise ValueError(f"{source} is not there{hint}")
    folder = source.parent
    if source.name == RUN_FILE:
        return report_of_run(folder), folder
    try:
        return Report.load(source), folder
    except ValueError as error:
        raise ValueError(f"{error}; {_SOURCES}") from error


def _hint(folder: Path) -> str:
    """What to give in place of a folder that holds no log."""
    written = folder / f"{NAME}.json"
    if written.is_file():
        return f"; did you mean '{written}'?"
    for name in (RUN_FILE, AUDIT_FILE):
        for inner in _listed(folder):
            if (inner / name).is_file():
                return f"; did you mean '{inner}'?"
    return ": give the --output folder of `torch-qsgd train` or `torch-qsgd audit`"


def _listed(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def window_tables(report: Report) -> list[Table]:
    """A table a run that has windows: a row a window."""
    tables = []
    for run in report.runs:
        if run.windows:
            table = Table(title=f"Windows of {escape(run.name)}", title_justify="left")
            for name in ("steps", "T", "loss before → after", "error vs SGD", "ended by"):
                table.add_column(name, justify="left" if name == "ended by" else "right")
            for window in run.windows:
                table.add_row(
                    f"{window.start}–{window.stop}",
                    str(window.record.steps),
                    f"{window.before.loss:.4f} → {window.after.loss:.4f}",
                    percentage(window.error, 2),
                    escape(window.record.reason),
                )
            tables.append(table)
    return tables
