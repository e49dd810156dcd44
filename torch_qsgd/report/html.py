"""A report as one HTML page that needs no network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from torch_qsgd.report import (
    figures_ledger,
    figures_spectra,
    figures_training,
    figures_window,
    tables,
    tables_training,
    tables_window,
)
from torch_qsgd.report.content import Report
from torch_qsgd.report.figures import Figure
from torch_qsgd.report.numbers import number, share, whole
from torch_qsgd.report.palette import DARK, variables
from torch_qsgd.report.tables import Table

_RUN = "training run"
_ICONS = {"holds": "✓", "breaks": "✗", "cannot tell": "?"}


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: of its address.
        title: above it.
        lead: what it is about, in plain sentences.
        figures, tables: in their order, all figures first.
        dense: whether the figures stand side by side where there is room.
        numbers: above all, the few that say most: names and values.
    """

    key: str
    title: str
    lead: str = ""
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    dense: bool = False
    numbers: list[tuple[str, str]] = field(default_factory=list)


def page(report: Report) -> str:
    """The whole page: text, tables, plots and the script that draws them.

    Nothing is loaded from elsewhere; the page forbids its browser to. Plots that a reader's
    settings want dark are dark, and curves with more points than a picture shows are thinned.

    Args:
        report: of an audit or a training run; what is ``None`` or empty is left out and named.

    Returns:
        HTML, some 5 MB, nearly all of it the plotting library plotly.js.

    Cost: a second or less; the error proxy of some thousand steps is computed anew.

    Example:
        >>> text = page(Report("a model <1>", "audit", {"parameters": 7}))
        >>> "<title>a model &lt;1&gt;</title>" in text, "src=" in text.split("plotly.js")[0]
        (True, False)
    """
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    found = list(sections(report))
    plots = {figure.key: figure.plain() for section in found for figure in section.figures}
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {
        "allow_nan": False,
        "separators": (",", ":"),
        "ensure_ascii": False,
    }
    return environment.from_string(_file("page.html.j2")).render(
        report=report,
        sections=found,
        missing=missing(report),
        notes=list(dict.fromkeys(note.strip() for note in report.notes if note.strip())),
        wall_time=duration(report.seconds) if report.seconds > 0 else "",
        icons=_ICONS,
        plots={"figures": plots, "dark": DARK},
        light=variables(dark=False),
        dark=variables(dark=True),
        style=_file("page.css"),
        script=_file("page.js"),
        # In its strings, where alone it could stand, the backslash changes nothing.
        plotly=re.sub(r"</(?=script)", r"<\\/", get_plotlyjs(), flags=re.IGNORECASE),
    )


def _file(name: str) -> str:
    return resources.files("torch_qsgd.report").joinpath(name).read_text(encoding="utf-8")


def duration(seconds: float) -> str:
    """A time in a unit that suits it.

    Example:
        >>> duration(3.21), duration(750), duration(3e5), duration(1e9)
        ('3.21 s', '12.5 minutes', '3.47 days', '31.7 years')
    """
    for size, unit in ((31_557_600, "years"), (86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds)} s"


# ---- Parts ---------------------------------------------------------------------------------------


def sections(report: Report) -> Iterator[Section]:
    """All parts for which the report has something, in the order of the page."""
    if report.findings:
        yield Section(
            "verdicts",
            "Verdicts",
            "Which of the method's assumptions hold for this model, as measured.",
            tables=[tables.verdicts(report), tables.findings(report)],
        )
    parts = [*_dynamics(report), *_training(report)]
    # Of a run a reader asks first what came of it.
    yield from sorted(parts, key=lambda part: part.key != "training" and report.kind == _RUN)
    yield from _window(report)
    yield from _cost(report)
    given = (("facts", "Facts", report.facts), ("settings", "Settings", report.settings))
    if any(values for *_, values in given):
        yield Section(
            "settings",
            "Facts and settings",
            "What the numbers are of, and what they depend on.",
            tables=[tables.named(*part) for part in given if part[2]],
        )


def _dynamics(report: Report) -> Iterator[Section]:
    if report.monitor is not None and report.monitor.records:
        history = report.monitor
        drawn = [figures_spectra.spectra(history), figures_spectra.proxy(history)]
        yield Section(
            "dynamics",
            "Dynamics: spectrum and error proxy",
            "A step multiplies the mode of eigenvalue λ by 1 − ηλ at learning rate η: modes with "
            "λ between 0 and 2/η are damped, and with them the error of the truncated system; "
            "negative ones, and those beyond 2/η, grow."
            + (" Every spectrum failed; the table says why." if drawn == [None, None] else ""),
            [figure for figure in drawn if figure is not None],
            [tables_training.spectra(history)],
        )


def _training(report: Report) -> Iterator[Section]:
    if any(run.evaluations for run in report.runs):
        drawn = [figures_training.curves(report.runs), figures_training.window_errors(report.runs)]
        windows = [run for run in report.runs if run.windows]
        yield Section(
            "training",
            "Training",
            "What training did to the held-out loss, with the dips that each upload's pruning "
            "makes and that later steps win back.",
            [figure for figure in drawn if figure is not None],
            [tables_training.runs(report.runs), *map(tables_training.windows, windows)],
        )


def _window(report: Report) -> Iterator[Section]:
    if (truncation := report.truncation) is not None:
        yield Section(
            "truncation",
            "Truncation",
            "How well a window of the truncated linear system follows true SGD.",
            [figures_window.truncation(truncation)],
            [tables_window.truncation(truncation)],
        )
    if (pruning := report.pruning) is not None:
        drawn = figures_window.pruning(pruning)
        yield Section(
            "pruning",
            "Sparse parameters: pruning",
            f"Of {whole(pruning.parameters)} weights {whole(pruning.active)} stay, "
            f"{share(pruning.density)} of all; pruning may take {whole(pruning.prunable)} of them.",
            [drawn] if drawn else [],
            [tables_window.pruning(pruning)],
        )
    if (rows := report.rows) is not None:
        drawn = figures_window.rows(rows)
        yield Section(
            "rows",
            "Sparse model: rows of the Hessian",
            "The method's cost grows with the non-zeros of a row of its matrix, which sparse "
            "weights alone do not make few.",
            [drawn] if drawn else [],
            [tables_window.rows(rows)],
        )
    if (conditioning := report.conditioning) is not None and conditioning.steps:
        yield Section(
            "conditioning",
            "Conditioning",
            "How the condition number κ of the window's linear system grows with its steps.",
            [figures_window.conditioning(conditioning)],
            [tables_window.conditioning(conditioning)],
        )
    if (transfer := report.transfer) is not None:
        drawn = figures_window.readout(transfer)
        yield Section(
            "transfer",
            "Upload and download",
            "What it takes to bring the weights into the machine and the displacement out.",
            [drawn] if drawn else [],
            [tables_window.transfer(transfer)]
            + ([tables_window.trials(transfer)] if transfer.trials else []),
        )
    if report.modes:
        yield Section(
            "derivatives",
            "Derivatives",
            "Which ways to differentiate run on this model, and agree with a reference.",
            tables=[tables_window.modes(report.modes)],
        )


def _cost(report: Report) -> Iterator[Section]:
    if (ledger := report.ledger) is not None and ledger.entries:
        window = tables.window(ledger)
        yield Section(
            "ledger",
            "Ledger: what a quantum computer would need",
            "On a logarithmic axis a bar twice as long is far more than twice as much. The table "
            "has every line, with its formula and source, and whether it is proven, numerical, "
            "assumes a known norm, our estimate, or measured.",
            figures_ledger.bars(ledger),
            [tables_window.ledger(ledger)] + ([window] if window.rows else []),
            dense=True,
            numbers=figures_ledger.totals(ledger),
        )
    if report.scaling:
        yield Section(
            "scaling",
            "Scaling",
            "How the ledger's totals grow when one size changes and all else is held. A T gate of "
            "a fault-tolerant computer takes far longer than a floating-point operation of a "
            "processor, so that lines that meet are not equal in time. Look at the slopes: only "
            "where T gates grow more slowly than classical operations does a larger size help.",
            figures_ledger.scaling(report.scaling),
            [tables_window.scaling(report.scaling, report.ledger)],
            dense=True,
        )


def missing(report: Report) -> list[str]:
    """What a reader would look for and was not measured, in words."""
    monitored = report.monitor is not None and report.monitor.records
    both: list[tuple[Any, str]] = [
        (monitored, "spectra of the Hessian, and with them the error proxy"),
        (any(run.evaluations for run in report.runs), "loss and accuracy over training"),
    ]
    audited: list[tuple[Any, str]] = [
        (report.findings, "verdicts"),
        (report.truncation, "truncation error"),
        (report.pruning, "pruning"),
        (report.rows, "rows of the Hessian"),
        (report.conditioning, "conditioning"),
        (report.transfer, "upload and download"),
        (report.modes, "derivatives"),
        (report.ledger, "the ledger"),
        (report.scaling, "scaling"),
    ]
    expected = both + (audited if report.kind == "audit" else [])
    return [name for there, name in expected if not there]
