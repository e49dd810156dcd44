"""What ``torch-qsgd train`` prints and writes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from torch_qsgd.cli import common
from torch_qsgd.hessian import DissipativityMonitor, MonitorHistory
from torch_qsgd.hessian.masses import counted
from torch_qsgd.report.from_run import MONITOR_FILE, RUN_FILE
from torch_qsgd.training import History, WindowReport


class WindowLines:
    """One line a window, beside a progress bar."""

    _WIDTHS = (11, 5, 19, 12, 11, 9)

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def header(self) -> None:
        """Print the names of the columns."""
        names = ("steps", "T", "loss before → after", "error vs SGD", "‖c_N‖/‖c_1‖", "active")
        self._line(names, style="bold")

    def window(self, report: WindowReport) -> None:
        """Print one window."""
        record = report.record
        self._line(
            (
                f"{report.start}–{report.stop}",
                str(record.steps),
                f"{report.before.loss:.4f} → {report.after.loss:.4f}",
                percentage(report.error, 2),
                f"{record.jet_ratio:.2e}",
                f"{record.active:,}",
            )
        )

    def _line(self, cells: tuple[str, ...], style: str = "") -> None:
        text = "  ".join(c.rjust(w) for c, w in zip(cells, self._WIDTHS, strict=True))
        self._progress.console.print(text, style=style, highlight=False, soft_wrap=True)


def percentage(share: float, decimals: int = 1) -> str:
    """A share in per cent, or a dash where it is not known.

    Example:
        >>> percentage(0.5), percentage(float("nan"))
        ('50.0%', '–')
    """
    return "–" if math.isnan(share) else f"{share:.{decimals}%}"


@dataclass
class TrainReport:
    """Runs as they go on; tables or JSON, and files, of what they have measured.

    Attributes:
        console: for all that is not JSON.
        output: folder of the files.
        as_json: print JSON on stdout, too.
        title: of model and data.
        settings, facts: by name, as plain values.
        runs: the run of ``QuantumSGD`` first.
        seconds: of each run, by its name.
        complete: whether all runs have been taken to their end.
    """

    console: Console
    output: Path
    as_json: bool
    title: str
    settings: dict[str, Any]
    facts: dict[str, Any]
    runs: list[History] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    complete: bool = False

    def write(self, model: nn.Module, monitor: DissipativityMonitor | None) -> None:
        """Print and write, where there is a measurement: numbers and weights before pictures.

        Raises:
            Exception: of the first picture that failed, after all the rest was written.
        """
        from torch_qsgd.report.curves import plot_curves

        measured = [run for run in self.runs if run.evaluations]
        if not measured:
            return
        self.console.print(self._summary(measured))
        files = {"log": self.output / RUN_FILE, "weights": self.output / "model.pt"}
        log = self._log(measured)
        common.write_json(files["log"], log)
        torch.save(model.state_dict(), files["weights"])
        unit = "nats" if self.settings.get("loss") == "cross-entropy" else ""
        pictures: dict[str, tuple[Path, Callable[[Path], object]]] = {
            "curves": (
                self.output / "curves.png",
                lambda path: plot_curves(measured, path, self.title, unit),
            )
        }
        if monitor is not None and monitor.history.records:
            history = monitor.history
            files["monitor"] = self.output / MONITOR_FILE
            history.save(files["monitor"])
            pictures["spectra"] = (
                self.output / "monitor.png",
                lambda path: history.plot(path, title=self.title),
            )
        failures: list[Exception] = []
        for name, (path, draw) in pictures.items():
            try:
                draw(path)
                files[name] = path
            except Exception as error:  # raised once all the rest is written
                failures.append(error)
        for name, path in files.items():
            common.say(self.console, f"{name}: {path}")
        if "monitor" in files:
            common.say(self.console, _watched(history))
        common.say(self.console, f"report: torch-qsgd report {self.output}")
        if self.as_json:
            print(common.as_json({**log, "files": {k: str(path) for k, path in files.items()}}))
        if failures:
            raise failures[0]

    def _log(self, runs: list[History]) -> dict[str, Any]:
        """What :func:`torch_qsgd.report.from_run.report_of_run` reads."""
        return {
            "title": self.title,
            "complete": self.complete,
            "settings": self.settings,
            "facts": self.facts,
            "runs": [{**run.to_json(), "seconds": self.seconds[run.name]} for run in runs],
        }

    def _summary(self, runs: list[History]) -> Table:
        table = Table(title="At the end, on the validation images", title_justify="left")
        table.add_column("run")
        for name in ("active weights", "of all", "loss", "accuracy", "seconds"):
            table.add_column(name, justify="right")
        for run in runs:
            table.add_row(
                run.name,
                f"{run.active:,}",
                f"{run.active / run.total:.1%}",
                f"{run.final.loss:.4f}",
                percentage(run.final.accuracy),
                f"{self.seconds[run.name]:.0f}",
            )
        return table


def _watched(history: MonitorHistory) -> str:
    """What the monitor cost and did."""
    ended = sum(span.triggered for span in history.windows)
    return (
        f"  {counted(len(history.records), 'spectrum', 'spectra')}, "
        f"{counted(history.products, 'product')}, "
        f"{history.seconds:.1f} s, {history.share:.0%} of the run; "
        f"ended {ended} of {counted(len(history.windows), 'window')}"
    )
