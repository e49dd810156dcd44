"""``torch-qsgd resources``: the ledger of a window from its sizes alone, without a model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torch_qsgd.auditing.costs import system_of
from torch_qsgd.checks import require_integer, require_number
from torch_qsgd.cli import common
from torch_qsgd.errors import SizeError
from torch_qsgd.report.content import Report
from torch_qsgd.resources import (
    SOLVER,
    SOLVERS,
    Entry,
    Ledger,
    ScalingCurve,
    WindowSize,
    ledger,
    plot_ledger,
    plot_scaling,
    scaling,
)
from torch_qsgd.resources.physical import PhysicalUnavailable, physical_of
from torch_qsgd.resources.sentence import short

#: What the options stand for where they are not given.
_DENSITY, _WINDOW, _ORDER, _SOLVER = 0.1, 100, 2, SOLVER
#: Options that an audit's numbers may be looked at with.
_FREE = ("solver", "epsilon", "precision")
#: What the options are called in a window's size.
_NAMES = {
    "kappa": "kappa",
    "row_nonzeros": "row_nonzeros",
    "alpha": "subnormalization",
    "epsilon": "solver_error",
    "precision": "readout_error",
    "batch_size": "batch_size",
}


@dataclass(frozen=True)
class _Found:
    """What is printed and written."""

    title: str
    ledger: Ledger
    curves: list[ScalingCurve]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; ``null`` stands for infinity and for what is not known."""
        return {
            "title": self.title,
            "ledger": asdict(self.ledger),
            "scaling": [asdict(curve) for curve in self.curves],
            "notes": self.notes,
        }


def resources_command(
    context: typer.Context,
    parameters: Annotated[
        float | None, typer.Option(help="All weights of the model, as 1.03e8.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of the weights that stays; 0.1 by default.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Steps T of the window; 100 by default.")
    ] = None,
    order: Annotated[int | None, typer.Option(help="Truncation order N; 2 by default.")] = None,
    kappa: Annotated[
        float | None,
        typer.Option(
            help="Condition number of the system, inf for none; by default 2(T+1), an estimate."
        ),
    ] = None,
    row_nonzeros: Annotated[
        float | None,
        typer.Option(help="Non-zeros in a row of a step's linear map; by default not known."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Block encoding's subnormalization α/‖ℒ‖; by default from --row-nonzeros, or 1, "
            "the ideal."
        ),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Error of the solver's state; 0.001 by default.")
    ] = None,
    precision: Annotated[
        float | None, typer.Option(help="Relative error of the readout; 0.1 by default.")
    ] = None,
    batches: Annotated[
        int | None,
        typer.Option(help="Different batches that the tables hold; by default one a step."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Samples a batch, for the classical FLOPs at 6 a weight and sample; convolutions "
            "take more."
        ),
    ] = None,
    solver: Annotated[
        str | None,
        typer.Option(help=f"Whose queries the totals take: {', '.join(SOLVERS)}."),
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option(
            help="An audit's JSON file, whose measured window is taken; then only --solver, "
            "--epsilon and --precision may be given beside it."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
    output: Annotated[
        Path, typer.Option(help="Folder for resources.json, ledger.png and scaling.png.")
    ] = Path("runs/resources"),
) -> None:
    """Count what a quantum computer would need for one window of training.

    No model is built: the ledger follows from the window's sizes. Sizes that
    are not given are assumed, mostly in the quantum computer's favour.

    Example: python -m torch_qsgd resources --parameters 1.03e8 --density 0.1
    --window 100 --order 3 --batch-size 128

    Example: python -m torch_qsgd resources --audit runs/audit/audit.json
    --solver qsvt-relative
    """
    console = Console(stderr=json)  # so that stdout holds nothing but the JSON
    given = {k: v for k, v in context.params.items() if v is not None}
    try:
        found = _from_sizes(given) if audit is None else _from_audit(audit, given)
        output.mkdir(parents=True, exist_ok=True)
        files = {
            "json": output / "resources.json",
            "ledger": output / "ledger.png",
            "scaling": output / "scaling.png",
        }
        common.write_json(files["json"], found.to_json())
        plot_ledger(found.ledger, files["ledger"], title=found.title)
        plot_scaling(found.curves, files["scaling"], title=found.title)
    except OverflowError:
        raise common.fail("the totals are beyond what can be drawn: give smaller sizes") from None
    except (ValueError, OSError) as error:
        raise common.fail(error) from None
    if json:
        print(common.as_json(found.to_json()))
    else:
        console.print(Text(found.title, style="bold"))
        for table in ledger_tables(found.ledger):
            console.print(table)
        console.print(Text("\n* assumed hardware: no such memory has been built\n"))
        console.print(Text(found.ledger.sentence, style="bold"))
    for note in found.notes:
        console.print(Text(note))
    for name, path in files.items():
        common.say(console, f"{name}: {path}")


# ---- Where the window's sizes come from ----------------------------------------------------------


def _from_sizes(given: Mapping[str, Any]) -> _Found:
    """The ledger of a window that the options describe."""
    if "parameters" not in given:
        raise ValueError("give --parameters, as --parameters 1.03e8, or --audit with its JSON file")
    parameters = require_number("parameters", given["parameters"], 0)
    if not parameters.is_integer():
        raise ValueError(f"parameters must be a whole number, got {parameters:g}")
    density = given.get("density", _DENSITY)
    if density != 1:
        require_number("density", density, 0, 1, otherwise=", or 1 for no pruning")
    steps = require_integer("window", given.get("window", _WINDOW), 1)
    order = require_integer("order", given.get("order", _ORDER), 1)
    size = _size(
        given,
        parameters=int(parameters),
        active=max(1, round(parameters * density)),
        steps=steps,
        order=order,
        batches=given.get("batches", steps),
    )
    title = (
        f"{int(parameters):,} weights at density {density:g}, a window of {steps:,} steps at "
        f"order {order}"
    )
    return _reckoned(size, given.get("solver", _SOLVER), title)


def _from_audit(path: Path, given: Mapping[str, Any]) -> _Found:
    """The ledger that an audit made, or another of the same window."""
    fixed = [name for name in given if name not in (*_FREE, "audit", "json", "output")]
    if fixed:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in fixed)
        raise ValueError(
            f"--audit has measured the window's sizes: leave out {names}, or leave out --audit"
        )
    report = Report.load(path)
    if report.ledger is None:
        raise ValueError(f"{path} holds no ledger: take the JSON file of a complete audit")
    stored = dict(report.ledger.window)
    solver = stored.pop("solver", _SOLVER)
    if not any(name in given for name in _FREE):
        return _Found(report.title, report.ledger, report.scaling)
    try:
        size = _size(given, **{**stored, "physical": None})
    except TypeError as error:
        raise ValueError(f"{path} holds a window of another version: {error}") from error
    return _reckoned(size, given.get("solver", solver), report.title, system_of(report))


def _size(given: Mapping[str, Any], **known: Any) -> WindowSize:
    """A window's size, with the options among those that rename one of its fields.

    Raises:
        ValueError: that names the option.
    """
    renamed = {_NAMES[name]: value for name, value in given.items() if name in _NAMES}
    try:
        return WindowSize(**{**known, **renamed})
    except ValueError as error:
        field, _, rest = str(error).partition(" ")
        options = {name: option for option, name in _NAMES.items()}
        raise ValueError(f"{options.get(field, field)} {rest}") from error


def _reckoned(
    size: WindowSize,
    solver: str,
    title: str,
    system: Callable[[int], tuple[float, float]] | None = None,
) -> _Found:
    """The ledger, with a physical estimate where there can be one, and its growth."""
    found, notes = ledger(size, solver), []
    try:
        cost = physical_of(found)
        found = ledger(replace(size, physical=cost.for_ledger()), solver)
        notes.append(
            f"Physical: one copy on a surface code of distance {cost.code_distance}, with "
            f"{cost.factories:,} T factories and {short(cost.cycle_seconds * 1e6)} µs a T gate."
        )
    except (PhysicalUnavailable, SizeError) as error:
        notes.append(f"There is no physical estimate: {error}.")
    if math.isnan(found["flops"]):
        notes.append("The same steps' classical FLOPs are not known: give --batch-size.")
    curves = [
        scaling(size, over, solver=solver, system_of=system)
        for over in ("active", "steps", "density")
    ]
    return _Found(title, found, curves, notes)


# ---- Tables --------------------------------------------------------------------------------------

_ASSUMED = "QRAM (assumed hardware)"


def ledger_tables(found: Ledger) -> list[Table]:
    """A table a group, without the lines that are not known; the dominating one is bold."""
    shown = [entry for entry in found.entries if not math.isnan(entry.value)]
    groups = itertools.groupby(shown, key=lambda entry: entry.group)
    return [_table(group, list(entries), found) for group, entries in groups]


def _table(group: str, entries: list[Entry], found: Ledger) -> Table:
    title = group[0].upper() + group[1:]
    if sourced := group == "queries":
        title += f" of one run; totals take those of {found.window['solver']}"
    table = Table(
        title=Text(f"\n{title}", style="bold cyan"),
        title_justify="left",
        box=None,
        show_header=False,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        expand=True,
    )
    table.add_column(**({"no_wrap": True} if sourced else {"ratio": 1}))
    table.add_column(justify="right", width=7, no_wrap=True)
    table.add_column(width=18, no_wrap=True)
    if sourced:
        table.add_column(ratio=1, overflow="fold")
    units = {entry.unit for entry in entries}
    for entry in entries:
        cells = [_quantity(entry, group, units), short(entry.value), entry.tag]
        if sourced:
            cells.append(entry.source)
        style = "bold" if entry.key == found.dominant else ""
        table.add_row(*map(Text, cells), style=style)
    return table


def _quantity(entry: Entry, group: str, units: set[str]) -> str:
    """In words, with the unit where neither they nor the group tell it."""
    told = not entry.unit or entry.unit == group or units == {entry.unit}
    unit = "" if told or entry.unit in entry.quantity else f", {entry.unit}"
    return entry.quantity.replace(_ASSUMED, "QRAM*") + unit
