"""Tables of training: where runs ended, their windows, and the spectra along them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch_qsgd.hessian import MonitorHistory
from torch_qsgd.hessian.masses import percent_range
from torch_qsgd.report.figures import evenly
from torch_qsgd.report.numbers import MISSING, number
from torch_qsgd.report.tables import Cell, Table, loss, percent, table
from torch_qsgd.training import History

_MOST = 100  # rows of what grows with the length of a run


def runs(histories: Sequence[History]) -> Table:
    """A row a run: where it ended."""
    rows = []
    for run in histories:
        last = run.final if any(not e.predicted for e in run.evaluations) else None
        rows.append(
            [
                run.name,
                last.step if last else math.nan,
                loss(last.loss if last else math.nan),
                percent(last.accuracy if last else math.nan),
                run.active,
                run.total,
                len(run.windows),
            ]
        )
    columns = (
        "run",
        "steps",
        "final held-out loss",
        "final held-out accuracy (%)",
        "active weights",
        "all weights",
        "windows",
    )
    return table("runs", "Where the runs ended", columns, rows, stacked=True)


def windows(run: History) -> Table:
    """A row a window of one run."""
    kept = evenly(len(run.windows), _MOST)
    rows = []
    for place in kept:
        window = run.windows[place]
        record = window.record
        rows.append(
            [
                window.start,
                window.stop,
                record.reason,
                window.error,
                loss(window.before.loss),
                loss(window.after.loss),
                percent(window.before.accuracy),
                percent(window.after.accuracy),
                record.jet_ratio,
                record.success_probability,
                record.copies,
            ]
        )
    columns = (
        "upload at step",
        "download at step",
        "why it ended",
        "error against SGD",
        "held-out loss after upload",
        "held-out loss after download",
        "held-out accuracy after upload (%)",
        "held-out accuracy after download (%)",
        "‖c_N‖/‖c_1‖",
        "success probability",
        "copies",
    )
    note = _left_out(len(kept), len(run.windows), "windows")
    title = f"Windows of {run.name}"
    return table("windows", title, columns, rows, folded=True, note=note)


def _left_out(kept: int, there: int, things: str) -> str:
    return f"{kept} of {number(there)} {things}, evenly chosen." if kept < there else ""


def spectra(history: MonitorHistory) -> Table:
    """A row a spectrum, failed ones too."""
    kept = evenly(len(history.records), _MOST)
    rows = []
    for place in kept:
        record = history.records[place]
        found = record.spectrum
        limits = found.negative_mass_range if found else (math.nan, math.nan)
        rows.append(
            [
                record.step,
                record.taken,
                found.lambda_min if found else math.nan,
                found.lambda_max if found else math.nan,
                record.dynamics.largest_stable,
                percent(record.negative_mass),
                Cell(percent_range(limits).removesuffix(" %"), look="short")
                if found
                else Cell(MISSING, "nan"),
                record.best_window if found else math.nan,
                record.window,
                record.proxy,
                record.products,
                record.error,
            ]
        )
    columns = [
        "step",
        "taken at",
        "λ_min (loss / weight²)",
        "λ_max (loss / weight²)",
        "stable up to (loss / weight²)",
        "negative (% of eigenvalues)",
        "its range (%)",
        "best window t* (steps)",
        "window T (steps)",
        "P(T)",
        "Hessian products",
        "why it failed",
    ]
    if not any(record.error for record in history.records):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    note = _left_out(len(kept), len(history.records), "spectra")
    return table("spectra-table", "Spectra", columns, rows, folded=True, note=note)
