"""Figures of training: loss and accuracy over the steps, and the windows' errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch_qsgd.report.figures import (
    Figure,
    Trace,
    axis,
    evenly,
    known,
    layout,
    line,
    log_axis,
    look,
    marks,
    panels,
    steps_axis,
    thinned,
)
from torch_qsgd.report.figures_strip import strip_axes, strip_marks, with_strip
from torch_qsgd.report.palette import faint
from torch_qsgd.training import Evaluation, History

_POINTS = 1500  # of a curve, at most about
_SHADES = 300  # windows shaded and marked, at most
_ROOM = 0.02  # left of the first step, over the last


def curves(runs: Sequence[History]) -> Figure | None:
    """Held-out loss and accuracy of the runs over their steps.

    Returns:
        ``None`` where nothing was evaluated.
    """
    drawn = [run for run in runs if run.evaluations]
    if not drawn:
        return None
    scored = any(known(e.accuracy for e in run.evaluations) for run in drawn)
    marked = any(run.windows for run in drawn)
    heights = [0.53, 0.47] if scored else [1.0]
    domains = with_strip(heights)[1:] if marked else panels(heights)
    losses = known(e.loss for run in drawn for e in run.evaluations)
    data: list[Trace] = []
    for number, run in enumerate(drawn):
        data += _run(number, run, scored)
    last = float(max(1, *(e.step for run in drawn for e in run.evaluations)))
    limits = [-_ROOM * last, last]  # the first dip would lie on the axis
    title = "held-out loss"
    options: dict[str, Any] = {
        "xaxis": steps_axis("SGD steps", *limits, anchor="y2" if scored else "y"),
        "yaxis": {
            **(log_axis(title, losses) if losses and min(losses) > 0 else axis(title)),
            "domain": domains[0],
        },
    }
    if scored:
        options["yaxis2"] = axis("held-out accuracy (%)", domain=domains[1])
    if marked:
        options |= strip_axes(with_strip(heights)[0], limits)
    return Figure(
        "curves",
        "Loss" + " and accuracy" * scored + " over training",
        "Measured on held-out batches; the loss has the unit of the loss function, nats for cross "
        "entropy. "
        + (
            "Shaded: windows, in which the weights rest until the download, so that the line is "
            "flat; open marks are what the window's jets predict meanwhile. Triangles above mark "
            "uploads (down) and downloads (up). Look for the dip that pruning makes at each "
            "upload, and how much of it the next steps win back."
            if marked
            else "Look for where the curves part."
        ),
        data,
        layout(500 if scored else 380, shapes=_shades(drawn), **options),
    )


def _run(number: int, run: History, scored: bool) -> list[Trace]:
    """The lines of one run, its predictions, and its uploads and downloads."""
    colour, dash, symbol = look(number)
    # In a window the weights rest: the curve is flat until the download.
    rests = [replace(window.before, step=window.stop) for window in run.windows]
    measured = [e for e in run.evaluations if not e.predicted]
    points = sorted(rests + measured, key=lambda e: e.step)
    seen = [e for e in run.evaluations if e.predicted]
    found: list[Trace] = []
    for part, scale, which in (("loss", 1.0, "y"), ("accuracy", 100.0, "y2")):
        if part == "accuracy" and not scored:
            continue
        group: dict[str, Any] = {"yaxis": which, "showlegend": which == "y"}
        group["legendgroup"] = f"run {number}"
        found.append(line(*_points(points, part, scale), run.name, colour, dash, **group))
        if seen:
            group["legendgroup"] = f"run {number}, predicted"
            name = f"{run.name}, predicted in mid-window"
            given = _points(seen, part, scale)
            found.append(marks(*given, name, colour, f"{symbol}-open", **group))
    shown = [run.windows[i] for i in evenly(len(run.windows), _SHADES)]
    for edge, what, mark in (("start", "upload", "down"), ("stop", "download", "up")):
        if shown:
            at = [getattr(window, edge) for window in shown]
            name = f"{what}, {run.name}"
            found.append(strip_marks(at, name, colour, f"triangle-{mark}", what == "upload"))
    return found


def _points(points: list[Evaluation], part: str, scale: float) -> tuple[list[float], list[float]]:
    values = [scale * float(getattr(e, part)) for e in points]
    kept = thinned(values, _POINTS)
    return [float(points[i].step) for i in kept], [values[i] for i in kept]


def _shades(runs: Sequence[History]) -> list[dict[str, Any]]:
    """Windows as areas behind the curves; of neighbours beyond the most, evenly chosen."""
    shapes = []
    for number, run in enumerate(runs):
        fill = faint(look(number)[0])
        for place in evenly(len(run.windows), _SHADES // len(runs)):
            window = run.windows[place]
            shapes.append(
                {
                    "type": "rect",
                    "xref": "x",
                    "yref": "paper",
                    "x0": window.start,
                    "x1": window.stop,
                    "y0": 0,
                    "y1": 1,
                    "fillcolor": fill,
                    "opacity": 0.45,
                    "line": {"width": 0},
                    "layer": "below",
                }
            )
    return shapes


def window_errors(runs: Sequence[History]) -> Figure | None:
    """The error of each window against true SGD, over the steps.

    Returns:
        ``None`` where no window's error is known.
    """
    data: list[Trace] = []
    heights: list[float] = []
    last = 1
    for number, run in enumerate(runs):
        there = [w for w in run.windows if math.isfinite(w.error) and w.error > 0]
        if not there:
            continue
        colour, _, symbol = look(number)
        errors = [w.error for w in there]
        kept = thinned(errors, _POINTS)
        at = [float(there[i].stop) for i in kept]
        data.append(marks(at, [errors[i] for i in kept], run.name, colour, symbol))
        heights += errors
        last = max(last, max(w.stop for w in there))
    if not data:
        return None
    return Figure(
        "window-errors",
        "Error of each window",
        "‖u − u_SGD‖/‖u_SGD‖ at each download: how far the displacement that was read lies from "
        "that of true SGD from the same anchor on the same batches; 0.1 means that a tenth of the "
        "way is wrong. Look for a drift upwards as training goes on.",
        data,
        layout(
            300,
            xaxis=steps_axis("SGD steps", -_ROOM * last, 1.03 * last),
            yaxis=log_axis("relative error", heights, most=5),
        ),
    )
