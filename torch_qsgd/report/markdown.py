"""A report as Markdown: all its numbers as tables, for a paper's appendix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from torch_qsgd.report import tables, tables_training, tables_window
from torch_qsgd.report.content import Report
from torch_qsgd.report.measurements import Conditioning, Truncation
from torch_qsgd.report.numbers import number
from torch_qsgd.report.pipe_table import pipe_table, plain
from torch_qsgd.report.tables import Cell, Table, table

_KINDS = {
    "audit": "What this is: an audit. The assumptions of Liu et al., *Towards provably efficient "
    "quantum algorithms for large-scale machine-learning models* (arXiv:2303.03428), each measured "
    "on this model.",
    "training run": "What this is: the log of a training run, in which windows of SGD steps were "
    "replaced by a truncated linear system and measured against true SGD.",
}
_CLAIM = (
    "torch_qsgd claims no quantum advantage: it measures what the assumptions come to on this "
    "model, and what a fault-tolerant quantum computer would cost."
)
_DIGITS = 4
_INCOMPLETE = "**Incomplete**: not all that was asked for was measured."


def document(report: Report) -> str:
    """All numbers of a report as tables of GitHub-flavoured Markdown.

    The tables are those of the HTML page, and the window's errors at a few times t besides. Parts
    that were not measured are left out. Columns line up in plain text; ``∞`` stands for infinity
    and ``–`` for what is not known.

    Args:
        report: of an audit or a training run.

    Returns:
        The text, which ends with a newline.

    Example:
        >>> text = document(Report("digits", "audit", {"parameters": 123}, complete=True))
        >>> text.splitlines()[0], "| parameters | 123   |" in text
        ('# digits', True)
    """
    return "\n\n".join(_blocks(report)) + "\n"


def _blocks(report: Report) -> Iterator[str]:
    """Paragraphs, headings and tables."""
    yield f"# {plain(report.title) or plain(report.kind)}"
    yield _KINDS.get(report.kind) or f"What this is: {plain(report.kind)}."
    yield _CLAIM
    if not report.complete:
        yield _INCOMPLETE
    if report.seconds > 0:
        yield f"Wall time: {number(report.seconds)} s."
    if report.findings:
        yield from _section(tables.verdicts(report))
        yield from _section(tables.findings(report))
    if report.facts:
        yield from _section(tables.named("facts", "Facts", report.facts))
    if report.settings:
        yield from _section(tables.named("settings", "Settings", report.settings))
    yield from _window(report)
    yield from _costs(report)
    if report.runs:
        yield from _section(tables_training.runs(report.runs))
        for run in report.runs:
            if run.windows:
                yield from _section(tables_training.windows(run))
    if report.monitor is not None and report.monitor.records:
        yield from _section(tables_training.spectra(report.monitor))
    if report.notes:
        yield "## Notes"
        yield "\n".join(f"- {note}" for note in dict.fromkeys(map(plain, report.notes)))


def _section(given: Table) -> Iterator[str]:
    """A heading, a table, and what is to be known beside it."""
    yield f"## {plain(given.title)}"
    rows = [[_text(cell) for cell in row] for row in given.rows]
    numeric = [
        any(row[i].look == "number" for row in given.rows) for i in range(len(given.columns))
    ]
    yield "\n".join(pipe_table(given.columns, rows, "".join("r" if n else "l" for n in numeric)))
    if given.note:
        yield plain(given.note)


def _text(cell: Cell) -> str:
    """Numbers with a digit more than on the page, where all can be copied."""
    digits = max(_DIGITS, cell.digits)
    return number(float(cell.raw), digits) if cell.look == "number" else cell.text


# ---- Of the window -------------------------------------------------------------------------------


def _window(report: Report) -> Iterator[str]:
    if report.pruning is not None:
        yield from _section(tables_window.pruning(report.pruning))
    if report.truncation is not None:
        yield from _section(_errors(report.truncation))
        yield from _section(tables_window.truncation(report.truncation))
        yield _series(report.truncation)
    if report.conditioning is not None:
        yield from _section(tables_window.conditioning(report.conditioning))
        yield _growth(report.conditioning)
    if report.rows is not None:
        yield from _section(tables_window.rows(report.rows))
    if report.transfer is not None:
        yield from _section(tables_window.transfer(report.transfer))
        if report.transfer.trials:
            yield from _section(tables_window.trials(report.transfer))
    if report.modes:
        yield from _section(tables_window.modes(report.modes))


def _few_steps(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50 … and the last.

    Example:
        >>> _few_steps(30)
        [1, 2, 5, 10, 20, 30]
    """
    series = (digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5))
    return sorted({*takewhile(lambda t: t <= most, series), *([most] if most > 0 else [])})


def _errors(found: Truncation) -> Table:
    """A row a time t: the error of each order, and the part that none removes."""
    columns = ("t (steps)", *(f"order {order.order}" for order in found.orders), "kink floor")
    series = [*(order.errors for order in found.orders), found.floor or []]
    rows = [[t, *(_at(errors, t) for errors in series)] for t in _few_steps(found.steps)]
    note = "‖u_N(t) − u(t)‖/‖u(t)‖, u of true SGD from the same anchor on the same batches."
    return table("errors", "Truncation error", columns, rows, note=note)


def _at(values: Sequence[float], step: int) -> float:
    """The value after so many steps; NaN where there is none."""
    return values[step - 1] if step <= len(values) else math.nan


def _series(found: Truncation) -> str:
    said = [f"Largest η‖g‖ at the anchor: {number(found.forcing)}."]
    if not math.isnan(found.cubic):
        said.append(f"‖G_2‖ = (η/2)‖∇³L‖ is at least {number(found.cubic)}.")
    kind = {2: "quadratic", 3: "cubic"}.get(found.smooth_degree)
    if kind:
        said.append(f"Along all probes the loss is {kind} in the weights.")
    if found.unfrozen:
        said.append(f"Operations not held on their piece: {', '.join(found.unfrozen)}.")
    return plain(" ".join(said))


def _growth(found: Conditioning) -> str:
    growth = {"T": "as T", "T²": "as T²"}.get(found.regime, "exponentially in T")
    return (
        f"Exponent of κ in T: {number(found.exponent)} ± {number(found.exponent_error)}; κT, the "
        f"queries until the final time is found, grows {growth}."
    )


# ---- Of the quantum computer ---------------------------------------------------------------------


def _costs(report: Report) -> Iterator[str]:
    if report.ledger is not None:
        yield from _section(tables_window.ledger(report.ledger))
        if report.ledger.sentence:
            yield f"**{plain(report.ledger.sentence)}**"
        if report.ledger.window:
            yield from _section(
                replace(tables.window(report.ledger), title="What the ledger is of")
            )
    if report.scaling:
        yield from _section(tables_window.scaling(report.scaling, report.ledger))
