"""The picture of what a monitor has seen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torch_qsgd.hessian.dynamics import Dynamics
from torch_qsgd.hessian.spectrum import Spectrum

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from torch_qsgd.hessian.history import MonitorHistory

#: Okabe and Ito's colours, told apart by colour-blind readers too.
_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
_BINS = 70  # on each side of zero
_FAINTEST = 1e-4  # share of eigenvalues, drawn nearly white


def plot_history(
    history: MonitorHistory, path: str | Path | None = None, *, title: str = ""
) -> Figure:
    """As :meth:`.MonitorHistory.plot`, which documents it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not any(record.spectrum is not None for record in history.records):
        raise ValueError("no spectrum was taken yet: there is nothing to draw")
    figure = Figure(figsize=(10, 9.5), layout="constrained")
    FigureCanvasAgg(figure)
    upper, middle, lower = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1.4, 1.4])
    _draw_spectra(history, figure, upper)
    _draw_proxy(history, middle)
    _draw_parts(history, lower)
    for axes in (upper, middle, lower):
        _mark_classical(history, axes, "classical steps" if axes is middle else None)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    first = min([record.step for record in history.records] + [s.start for s in history.windows])
    lower.set_xlim(first, max(first + 1, history.last_step))
    lower.set_xlabel("SGD steps")
    figure.suptitle(title)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _mark_classical(history: MonitorHistory, axes: Any, label: str | None) -> None:
    starts = [*(span.start for span in history.windows[1:]), history.last_step]
    for span, following in zip(history.windows, starts, strict=False):
        if span.stop is not None and following > span.stop:
            axes.axvspan(span.stop, following, color="0.5", alpha=0.15, linewidth=0, label=label)
            label = None


def bound_formula(dynamics: Dynamics) -> str:
    """The formula of ``largest_stable``."""
    if dynamics.momentum == 0:
        return "2/η"
    return "2(1 + μ)/(η(1 + 2μ))" if dynamics.nesterov else "2(1 + μ)/η"


def _draw_spectra(history: MonitorHistory, figure: Figure, axes: Any) -> None:
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    begins = [record.step for record in history.records]
    ends = [*begins[1:], max(history.last_step, begins[-1] + 1)]
    columns = [
        (begin, end, record)
        for begin, end, record in zip(begins, ends, history.records, strict=True)
        if end > begin
    ]
    drawn = [(begin, end, r, r.spectrum) for begin, end, r in columns if r.spectrum is not None]
    largest = max((float(np.abs(s.nodes).max()) for *_, s in drawn), default=0.0) or 1.0
    linear = largest / 1e4
    top = 1 + math.log10(largest / linear) + 0.1
    edges = np.linspace(0, top, _BINS + 1)
    values = linear * np.where(edges <= 1, edges, 10 ** (edges - 1))
    norm = LogNorm(_FAINTEST, 1)
    for place, sign, colour, dark, name in (
        (1.05, -1, _ORANGE, "#4A2000", "negative"),
        (1.2, 1, _BLUE, "#002038", "positive"),
    ):
        colours = LinearSegmentedColormap.from_list(name, ["#FFFFFF", colour, dark])
        mesh = None
        for begin, end, _, spectrum in drawn:
            shares = bin_shares(spectrum, sign, linear, edges)
            mesh = axes.pcolormesh(
                [begin, end],
                sign * values,
                np.maximum(shares, _FAINTEST / 10)[:, None],
                norm=norm,
                cmap=colours,
                rasterized=True,
            )
        if mesh is not None:
            bar = figure.colorbar(mesh, cax=axes.inset_axes((place, 0.0, 0.025, 0.55)))
            bar.set_label(f"share of eigenvalues, {name}", fontsize=9)
    named: set[str] = set()

    def once(label: str) -> str | None:
        fresh = label not in named
        named.add(label)
        return label if fresh else None

    for begin, end, record, spectrum in drawn:
        largest_stable = record.dynamics.largest_stable
        lines = [
            (spectrum.lambda_max, "black", "-", "largest eigenvalue"),
            (spectrum.lambda_min, "black", "--", "least eigenvalue"),
            (
                largest_stable,
                _PURPLE,
                ":",
                f"{bound_formula(record.dynamics)}, a step amplifies above",
            ),
        ]
        for level, colour, dash, label in lines:
            if level <= 10 * largest:
                width = 2.5 if dash == ":" else 1.5
                axes.plot(
                    [begin, end], [level] * 2, color=colour, ls=dash, lw=width, label=once(label)
                )
    for begin, end, record in columns:
        if record.spectrum is None:
            axes.axvspan(
                begin, end, color="0.7", hatch="//", fill=False, label=once("spectrum failed")
            )
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=linear, linscale=0.9)
    decades = 10.0 ** np.arange(
        math.floor(math.log10(linear)) + 2, math.floor(math.log10(largest)) + 1
    )
    axes.set_yticks([*-decades[::-1], 0.0, *decades])
    low, high = axes.get_ylim()
    axes.set_ylim(low, 2 * high)
    axes.set_ylabel("eigenvalue (loss / weight²)\nbulk: quadrature nodes, spread")


def bin_shares(spectrum: Spectrum, sign: int, linear: float, edges: Any) -> Any:
    """Share of eigenvalues of one sign by bin, each node spread a little over its neighbours.

    Converged eigenvalues take a bin, the nodes of the bulk half the way to the next ones. Half of
    what cannot be told from zero counts to either side.
    """
    from scipy.special import ndtr

    nodes, weights = sign * spectrum.nodes, spectrum.weights
    zero = np.abs(nodes) <= spectrum.resolution
    mass = np.where(zero, weights / 2, np.where(nodes > 0, weights, 0.0))
    size = np.where(zero, 0.0, np.maximum(nodes, 0.0)) / linear
    centre = np.where(size <= 1, size, 1 + np.log10(np.maximum(size, 1)))
    sharp = 0.7 * (edges[1] - edges[0])
    width = np.full(len(nodes), sharp)
    bulk = np.flatnonzero((mass > 0) & ~spectrum.exact & ~zero)
    if len(bulk) > 2:
        gaps = np.abs(np.diff(centre[bulk]))
        around = np.maximum(np.append(gaps, gaps[-1]), np.append(gaps[0], gaps))
        width[bulk] = np.clip(around / 2, sharp, 0.5)
        room = centre[bulk].max() - centre[bulk]  # no mass lies beyond the outermost
        width[bulk] = np.clip(width[bulk], sharp, np.maximum(room / 2, sharp))
    below = ndtr((edges[:, None] - centre) / width)
    inside = below[-1] - below[0]  # what would spill over zero stays on its side
    return np.diff(below, axis=0) @ (mass / inside)


def _draw_proxy(history: MonitorHistory, axes: Any) -> None:
    nexts = [*(span.start for span in history.windows[1:]), history.last_step]
    following = {id(span): start for span, start in zip(history.windows, nexts, strict=True)}
    reached, labels = [1.0], {"-": "P(t) of the latest spectrum", ":": "P(t) beyond the window"}
    for span, record, stop in history.segments():
        if record.spectrum is None:
            continue
        end = stop
        if span.stop == span.start + stop:
            end = min(2 * stop, record.window, following[id(span)] - span.start)
        for style, begin, until in (("-", record.window_step, stop), (":", stop, end)):
            if until <= begin:
                continue
            times = np.linspace(begin, until, 60)
            heights = [record.error_proxy(t) for t in times]
            axes.plot(
                span.start + times, heights, color=_BLUE, ls=style, label=labels.pop(style, None)
            )
            if style == "-":
                reached += heights
    known = np.array([height for height in reached if math.isfinite(height) and height > 0])
    low, high = _set_limits(axes, known, known.max() > 5 * known.min())
    starts = [span.start for span in history.windows]
    if starts:
        axes.plot(starts, [high] * len(starts), "v", color="black", clip_on=False, label="upload")
    finished = [span for span in history.windows if span.stop is not None]
    colours, marks = (_GREEN, _PURPLE, _SKY, _ORANGE, _BLUE), "^sDPX"
    for number, reason in enumerate(sorted({span.reason for span in finished})):
        chosen = [span for span in finished if span.reason == reason]
        axes.plot(
            [span.stop for span in chosen],
            [low] * len(chosen),
            marks[number % 5],
            color=colours[number % 5],
            clip_on=False,
            label=f"download: {reason}" + (" (trigger)" if chosen[0].triggered else ""),
        )
    axes.set_ylabel("error proxy P")
    axes.grid(True, alpha=0.3)


def _draw_parts(history: MonitorHistory, axes: Any) -> None:
    """What the modes of either sign have added to P since the upload."""
    reached = [0.0]
    labels = {_BLUE: "by positive modes", _ORANGE: "by negative modes"}
    for span, record, stop in history.segments():
        if record.spectrum is None or stop <= record.window_step:
            continue
        times = np.linspace(record.window_step, stop, 60)
        still = record.dynamics.error_proxy(record.spectrum, 0)
        parts = [record.dynamics.error_proxy(record.spectrum, t) for t in times]
        for colour, style, changes in (
            (_BLUE, "-", [part.positive - still.positive for part in parts]),
            (_ORANGE, "--", [part.negative - still.negative for part in parts]),
        ):
            axes.plot(
                span.start + times, changes, color=colour, ls=style, label=labels.pop(colour, None)
            )
            reached += changes
    known = np.array([change for change in reached if math.isfinite(change)])
    if np.abs(known).max() > 20:
        axes.set_yscale("symlog", linthresh=1)
    else:
        _set_limits(axes, known, logarithmic=False)
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set_ylabel("change of P\nsince the upload")
    axes.grid(True, alpha=0.3)


def _set_limits(axes: Any, known: Any, logarithmic: bool) -> tuple[float, float]:
    axes.set_yscale("log" if logarithmic else "linear")
    if logarithmic:
        low, high = known.min() / 1.5, known.max() * 1.5
    else:
        margin = max(0.15 * float(np.ptp(known)), 1e-3)
        low, high = known.min() - margin, known.max() + margin
    axes.set_ylim(low, high)
    return low, high
