"""Loss and accuracy over the steps of one or several runs, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch_qsgd.training import History

#: Okabe and Ito's colours, told apart by colour-blind readers too; dashes tell them apart in grey.
_STYLES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"))
_PANELS = (("loss", "validation loss"), ("accuracy", "validation accuracy (%)"))


def _mark_windows(axes: Any, run: History, colour: str, labelled: bool) -> None:
    low, high = axes.get_ylim()
    for report in run.windows:
        axes.axvspan(report.start, report.stop, color=colour, alpha=0.08, linewidth=0)
    for marker, edge, what in (("v", "start", "upload"), ("^", "stop", "download")):
        axes.plot(
            [getattr(report, edge) for report in run.windows],
            [low if marker == "^" else high] * len(run.windows),
            marker=marker,
            color=colour,
            linestyle="none",
            markersize=7,
            clip_on=False,
            label=what if labelled else None,
        )
    axes.set_ylim(low, high)


def plot_curves(runs: Sequence[History], path: str | Path, title: str = "", unit: str = "") -> None:
    """Draw validation loss (log scale) and accuracy of the runs into an image file.

    Windows of ``QuantumSGD`` are shaded; triangles mark uploads (down) and downloads (up); open
    circles are predictions at θ* + Σ c_k in mid-window, while the weights themselves rest.

    Args:
        runs: at most four.
        path: of a PNG, PDF or SVG file; its folder must be there.
        title: above the panels.
        unit: of the loss, nats for cross entropy.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 1, sharex=True)
    for axes, (quantity, label) in zip(panels, _PANELS, strict=True):
        scale = 100.0 if quantity == "accuracy" else 1.0
        for run, (colour, dash) in zip(runs, _STYLES, strict=False):
            # In a window the weights rest: the curve is flat until the download.
            rests = [replace(report.before, step=report.stop) for report in run.windows]
            measured = [e for e in run.evaluations if not e.predicted]
            points = sorted(rests + measured, key=lambda e: e.step)
            axes.plot(
                [e.step for e in points],
                [scale * getattr(e, quantity) for e in points],
                color=colour,
                linestyle=dash,
                label=run.name,
            )
            seen = [e for e in run.evaluations if e.predicted]
            if seen:
                axes.plot(
                    [e.step for e in seen],
                    [scale * getattr(e, quantity) for e in seen],
                    color=colour,
                    marker="o",
                    markerfacecolor="none",
                    linestyle="none",
                    label=f"{run.name}, predicted in mid-window",
                )
        if quantity == "loss":
            axes.set_yscale("log")
        axes.set_ylabel(f"{label} ({unit})" if quantity == "loss" and unit else label)
        axes.grid(True, alpha=0.3)
        for run, (colour, _) in zip(runs, _STYLES, strict=False):
            if run.windows:
                _mark_windows(axes, run, colour, labelled=True)
    panels[-1].set_xlabel("SGD steps")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
