"""Pictures of the ledger: its lines on one logarithmic axis, and how its totals grow."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch_qsgd.resources.ledger import Entry, Ledger, ScalingCurve
from torch_qsgd.resources.sentence import factor_name, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, told apart by colour-blind readers too; hatching tells them apart in
#: grey, where neighbours differ.
_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
_GROUPS = (
    ("queries of a run, by solver", _SKY, ""),
    ("factors of the T gates", _GREEN, "..."),
    ("T gates", _BLUE, ""),
    ("classical computer", _ORANGE, "///"),
)
_TAGS = {"proven": "proven", "numerical": "numerical", "assumes known norm": "assumed"}
_AXES = {
    "active": "active weights n",
    "steps": "steps T of the window",
    "density": "density (active / all weights)",
}
_MARKERS = {"readout": "o", "post-selection": "D", "queries": "s", "loading": "^"}


def plot_ledger(ledger: Ledger, path: str | Path | None = None, *, title: str = "") -> Figure:
    """Draw the ledger's main lines as bars on a logarithmic axis.

    From the top: the queries of every solver; the factors whose product the T gates are; the
    totals, with QROAM and with QRAM; the same steps on a classical computer. The solver that the
    totals use, and the factor that dominates, are set in bold. An infinite line reaches the edge,
    and one that is not known has no bar.

    Args:
        ledger: what to draw.
        path: of a PNG, PDF or SVG file, whose folder must be there; ``None`` writes none.
        title: above the picture; the ledger's sentence stands below it.

    Returns:
        The figure; in a notebook it shows itself.

    Raises:
        ValueError: for a file type that matplotlib cannot write.

    Example:
        >>> from torch_qsgd.resources import WindowSize
        >>> from torch_qsgd.resources import ledger as ledger_of
        >>> figure = plot_ledger(ledger_of(WindowSize(10**6, 10**5, steps=10)))
        >>> figure.axes[0].get_xlabel()
        'count (logarithmic)'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = _rows(ledger)
    figure = Figure(figsize=(10, 2.5 + 0.3 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    finite = [e.value for _, e in rows if e.value > 0 and math.isfinite(e.value)]
    low = min([*finite, 0.5])
    # Room for the longest bar's number, a fifth of the axis.
    largest = max([*finite, 10.0])
    edge = 10 ** min(1.22 * math.log10(largest) - 0.22 * math.log10(low), 300.0)
    place, places, bold = 0.0, [], set[int]()
    previous = rows[0][0]
    for index, (group, entry) in enumerate(rows):
        place += 1.6 if group != previous else 1.0
        previous = group
        places.append(place)
        _draw_bar(axes, place, entry, group, edge)
        if entry.key == (ledger.dominant if group else _solver_key(ledger)):
            bold.add(index)
    axes.set_xscale("log")
    axes.set_xlim(low, edge)
    axes.set_yticks(places, [_label(entry, group) for group, entry in rows])
    for index, label in enumerate(axes.get_yticklabels()):
        label.set_fontweight("bold" if index in bold else "normal")
    axes.set_ylim(place + 0.8, places[0] - 0.8)
    axes.set_xlabel("count (logarithmic)")
    axes.grid(True, axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(
        handles=[
            Patch(fc=colour, hatch=hatch, ec="white", label=name, lw=0)
            for name, colour, hatch in _GROUPS
        ],
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    _headline(figure, title, ledger.sentence)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _solver_key(ledger: Ledger) -> str:
    return f"queries_{str(ledger.window.get('solver', '')).replace('-', '_')}"


def _rows(ledger: Ledger) -> list[tuple[int, Entry]]:
    """Lines to draw, from the top, each with the index of its group."""
    by_key = {entry.key: entry for entry in ledger.entries}
    solvers = [entry for entry in ledger.entries if entry.group == "queries"]
    chosen = (
        (1, ("copies", "runs", _solver_key(ledger), "query_qroam", "query_qram")),
        (2, ("copy_qroam", "total_qroam", "copy_qram", "total_qram")),
        (3, ("flops", "bytes")),
    )
    rows = [(0, entry) for entry in sorted(solvers, key=lambda entry: entry.value)]
    for group, keys in chosen:
        rows += [(group, by_key[key]) for key in keys if key in by_key]
    return rows


def _draw_bar(axes: Any, place: float, entry: Entry, group: int, edge: float) -> None:
    _, colour, hatch = _GROUPS[group]
    if math.isnan(entry.value):
        axes.text(1.2, place, "not known", va="center", fontsize=9, style="italic", color="0.35")
        return
    infinite = math.isinf(entry.value)
    axes.barh(
        place,
        edge if infinite else entry.value,
        color=colour,
        alpha=0.35 if infinite else 1.0,
        hatch="" if infinite else hatch,
        edgecolor="white",
        linewidth=0,
        height=0.8,
    )
    if infinite:
        axes.text(edge, place, "∞  ", va="center", ha="right", fontsize=13)
    else:
        unit = "" if entry.unit == "queries" else f" {entry.unit}"
        axes.text(entry.value, place, f" {short(entry.value)}{unit}", va="center", fontsize=9)


def _label(entry: Entry, group: int) -> str:
    if entry.group == "queries":
        if group > 0:
            return "queries a run"
        return f"{entry.quantity} ({_TAGS.get(entry.tag, entry.tag)})"
    words = {
        "copies": "copies to read the displacement",
        "runs": "runs a copy",
        "query_qroam": "a query, QROAM",
        "query_qram": "a query, QRAM (assumed)",
        "copy_qroam": "a copy, QROAM",
        "copy_qram": "a copy, QRAM (assumed)",
        "total_qroam": "in all, QROAM",
        "total_qram": "in all, QRAM (assumed)",
        "flops": "operations, same T steps",
        "bytes": "memory, same T steps",
    }
    return words.get(entry.key, entry.quantity)


def _headline(figure: Figure, title: str, sentence: str) -> None:
    # A line break within "T gates" would be hard to read.
    lines = textwrap.wrap(sentence.replace("T gates", "T\u00a0gates"), 110)
    figure.suptitle("\n".join([*([title] if title else []), *lines]), fontsize=10.5)


# ---- Growth ------------------------------------------------------------------------------------


def plot_scaling(
    curves: Sequence[ScalingCurve], path: str | Path | None = None, *, title: str = ""
) -> Figure:
    """Draw T gates and classical FLOPs over each curve's size, side by side.

    Markers say which factor dominates the T gates with QROAM. Both axes are logarithmic.
    Where T gates are infinite, the panel is hatched; FLOPs that are not known are left out.

    Args:
        curves: one or more, made by :func:`.scaling`.
        path: of a PNG, PDF or SVG file, whose folder must be there; ``None`` writes none.
        title: above the picture.

    Returns:
        The figure; in a notebook it shows itself.

    Raises:
        ValueError: for no curve, or a file type that matplotlib cannot write.

    Example:
        >>> from torch_qsgd.resources import WindowSize, scaling
        >>> figure = plot_scaling([scaling(WindowSize(10**6, 10**5, steps=10), "steps")])
        >>> figure.axes[0].get_xlabel()
        'steps T of the window'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not curves:
        raise ValueError("there is no curve to draw")
    figure = Figure(figsize=(1.5 + 3.6 * len(curves), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, curve in zip(panels, curves, strict=True):
        _draw_curve(axes, curve)
    known = any(math.isfinite(value) for curve in curves for value in curve.flops)
    panels[0].set_ylabel(f"T gates{', or FLOPs,' * known} for one window")
    found = dict[str, Any]()
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    columns = min(len(curves), 3)
    figure.legend(
        found.values(), found.keys(), loc="outside lower center", ncols=columns, frameon=False
    )
    figure.suptitle(title)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _draw_curve(axes: Any, curve: ScalingCurve) -> None:
    lines = (
        (curve.t_gates, _BLUE, "-", "T gates, QROAM"),
        (curve.t_gates_qram, _SKY, "--", "T gates, QRAM (assumed hardware)"),
        (curve.flops, _ORANGE, ":", "classical FLOPs"),
    )
    for values, colour, dash, label in lines:
        shown = [value if math.isfinite(value) else math.nan for value in values]
        if not all(map(math.isnan, shown)):
            axes.plot(curve.values, shown, color=colour, linestyle=dash, linewidth=2, label=label)
    for name, marker in _MARKERS.items():
        points = [
            (value, gates)
            for value, gates, key in zip(curve.values, curve.t_gates, curve.dominant, strict=True)
            if factor_name(key) == name and math.isfinite(gates)
        ]
        if points:
            style = {"color": _BLUE, "linestyle": "none", "markersize": 6}
            axes.plot(
                *zip(*points, strict=True), marker=marker, label=f"dominated by {name}", **style
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    finite = [v for v, gates in zip(curve.values, curve.t_gates, strict=True) if gates < math.inf]
    if len(finite) < len(curve.values):
        start = finite[-1] if finite else curve.values[0]
        span = {"facecolor": "none", "edgecolor": "0.6", "hatch": "///", "linewidth": 0}
        axes.axvspan(start, curve.values[-1], label="T gates without end", **span)
    axes.set_xlabel(_AXES[curve.over])
    axes.grid(True, alpha=0.3)
