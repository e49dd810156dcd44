"""The report of a training run, from the files that ``torch-qsgd train`` leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch_qsgd.files import load_json
from torch_qsgd.hessian import MonitorHistory
from torch_qsgd.hessian.masses import counted
from torch_qsgd.reading import read_as
from torch_qsgd.report.content import Report
from torch_qsgd.training import History

RUN_FILE, MONITOR_FILE = "run.json", "monitor.json"


def report_of_run(folder: str | Path) -> Report:
    """The report of a training run.

    Reads run.json, an object with ``"title"`` and ``"runs"``, a list of
    :meth:`torch_qsgd.training.History.to_json` with the ``"seconds"`` that each took, where
    ``null`` stands for what is no finite number. ``"complete"``, ``"settings"`` and ``"facts"``
    may be there. Reads monitor.json, a :class:`torch_qsgd.hessian.MonitorHistory`, where there is
    one.

    Args:
        folder: in which the files are.

    Returns:
        Of kind ``"training run"``. Incomplete where the run was interrupted, or its log does not
        say that it was not. ``seconds`` is the sum over the runs.

    Raises:
        ValueError: where run.json is missing, or a file is damaged; the message names it.
        OSError: where one cannot be read.

    Example:
        >>> import json, tempfile
        >>> log = {"title": "demo", "complete": True, "runs": [{"name": "SGD", "evaluations": [
        ...     {"step": 0, "loss": 2.3, "accuracy": None}], "windows": [], "active": 8,
        ...     "total": 8, "seconds": 1.5}]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "run.json").write_text(json.dumps(log))
        ...     report = report_of_run(folder)
        >>> report.kind, report.complete, report.runs[0].final
        ('training run', True, Evaluation(step=0, loss=2.3, accuracy=nan, predicted=False))
    """
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {RUN_FILE}: give the folder that `torch-qsgd train` wrote to, its "
            "--output"
        )
    try:
        log = load_json(path)
        if not isinstance(log, Mapping) or not isinstance(log.get("runs"), list):
            raise ValueError("it holds no list of runs")
        if not log["runs"]:
            raise ValueError("its list of runs is empty")
        runs = [_history(run, f"runs[{i}]") for i, run in enumerate(log["runs"])]
        facts, settings = (
            read_as(dict[str, Any], log.get(part, {}), part) for part in ("facts", "settings")
        )
        title = read_as(str, log.get("title", ""), "title")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no log of a training run, or damaged: {error}") from error
    beside = path.with_name(MONITOR_FILE)
    monitor = MonitorHistory.load(beside) if beside.is_file() else None
    report = Report(
        title=title,
        kind="training run",
        facts={**facts, **{f"seconds of {run.name}": seconds for run, seconds in runs}},
        settings=settings,
        complete=log.get("complete") is True,
        seconds=math.fsum(seconds for _, seconds in runs if math.isfinite(seconds)),
        runs=[run for run, _ in runs],
        monitor=monitor,
    )
    report.notes = _notes(report, log.get("complete"))
    return report


def _history(plain: Any, name: str) -> tuple[History, float]:
    """A run of the log, with NaN for ``null`` where a number must be, and its seconds."""
    if not isinstance(plain, Mapping):
        raise TypeError(f"{name} must be an object, got {plain!r}")
    rest = {part: value for part, value in plain.items() if part != "seconds"}
    if missing := [part.name for part in fields(History) if part.name not in rest]:
        raise TypeError(f"{name} lacks {', '.join(map(repr, missing))}")
    seconds = read_as(float, plain.get("seconds"), f"{name}.seconds", null=True)
    return read_as(History, rest, name, null=True), seconds


def _notes(report: Report, complete: object) -> list[str]:
    """What a reader must know beside the numbers."""
    notes = ["Loss and accuracy are of held-out batches."]
    if complete is None:
        notes.append("The log does not say whether the run was taken to its end.")
    elif not report.complete:
        notes.append("The run was interrupted: what was measured until then is here.")
    if not any(run.windows for run in report.runs):
        notes.append("No window was finished, so no error against SGD was measured.")
    monitor = report.monitor
    if monitor is not None:
        ended = sum(span.triggered for span in monitor.windows)
        notes.append(
            f"The monitor took {counted(len(monitor.records), 'spectrum', 'spectra')} with "
            f"{counted(monitor.products, 'Hessian product')}, {monitor.share:.0%} of the run's "
            f"time, and ended {ended} of {counted(len(monitor.windows), 'window')}."
        )
    return notes
