"""Figures of what a monitor has seen: spectra along a run, and the error proxy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from torch_qsgd.hessian import MonitorHistory, Spectrum
from torch_qsgd.hessian.history import SpectrumRecord, WindowSpan
from torch_qsgd.hessian.history_plot import bin_shares, bound_formula
from torch_qsgd.hessian.masses import counted, percent_range, with_range
from torch_qsgd.report.figures import (
    Figure,
    Frame,
    Trace,
    axis,
    evenly,
    known,
    layout,
    line,
    log_axis,
    power_of_ten,
    rounded,
    steps_axis,
    symlog,
    symlog_axis,
    tick,
)
from torch_qsgd.report.figures_strip import strip_axes, strip_marks, with_strip
from torch_qsgd.report.numbers import number, whole
from torch_qsgd.report.palette import GREEN, GREY, INK, NEGATIVE, POSITIVE, PURPLE, faint

_BINS = 140  # on each side of zero
_DECADES = 4  # of the axis on each side, down from the largest eigenvalue, at most
_NEAR = 0.03  # share of eigenvalues that may lie in the linear part without more decades
_FRAMES = 100  # at most; a page holds no more
_POINTS = 4000  # of all curves of the error proxy together
_SPANS = 300  # windows drawn at most
_WIDE = 0.5  # share of eigenvalues whose sign cannot be told, above which that is what is said
_AROUND = 6  # bins on either side of zero, over which what cannot be told from it is spread
_REASONS = (("triangle-up", GREEN), ("square", PURPLE), ("diamond", INK), ("x", NEGATIVE))


def label_of(record: SpectrumRecord) -> str:
    """When a spectrum was taken, in words."""
    if record.taken == "window":
        return f"in a window, at step {whole(record.step)} (t = {whole(record.window_step)})"
    return f"{record.taken} at step {whole(record.step)}"


# ---- Spectra -----------------------------------------------------------------------------------


def spectra(history: MonitorHistory) -> Figure | None:
    """The share of eigenvalues over λ of each spectrum, with a slider over training.

    Args:
        history: of which failed spectra are left out.

    Returns:
        ``None`` where there is no spectrum.
    """
    taken = [(r, r.spectrum) for r in history.records if r.spectrum is not None]
    if not taken:
        return None
    drawn = [taken[i] for i in evenly(len(taken), _FRAMES)]
    scale = _Scale([s for _, s in drawn])
    largest = scale.largest
    lowest = 0.2 / max(s.dimension for _, s in drawn)
    shares = [[scale.shares(s, sign) for sign in (-1, 1)] for _, s in drawn]
    highest = 1.6 * max(float(part.max()) for pair in shares for part in pair)
    near_zero = any(_near_zero(s).sum() > lowest for _, s in drawn)
    frames = []
    for (record, spectrum), pair in zip(drawn, shares, strict=True):
        data = [{"y": rounded(np.maximum(part, lowest / 2), 3)} for part in pair]
        data += _levels(record, spectrum, scale, (lowest, highest))
        data += [{"y": rounded(scale.unresolved(spectrum, lowest), 3)}] if near_zero else []
        frames.append(Frame(label_of(record), _summary(record, spectrum), data))
    base = [_side(scale, sign) for sign in (-1, 1)] + _level_looks()
    base += [_middle(scale)] if near_zero else []
    least = min(s.lambda_min for _, s in drawn)
    limits = [r.dynamics.largest_stable for r, _ in drawn]
    right = max([largest, *(limit for limit in limits if limit <= 10 * largest)])
    return Figure(
        "spectra",
        "Spectrum of the Hessian" + (" along training" if len(frames) > 1 else ""),
        _spectra_caption(frames, len(taken), len(history.records), scale, near_zero),
        [{**trace, **change} for trace, change in zip(base, frames[0].data, strict=True)],
        layout(
            400,
            xaxis=symlog_axis(
                "eigenvalue λ (loss / weight²)",
                scale.linear,
                1.4 * min(least, -scale.linear),
                1.6 * right,
            ),
            yaxis=log_axis("share of eigenvalues in a bin", (lowest, highest), room=0),
        ),
        frames if len(frames) > 1 else [],
    )


class _Scale:
    """An eigenvalue axis that is linear around zero and logarithmic beyond.

    Args:
        spectra: it has as many decades, but at most four, as take it to the smaller eigenvalues.
    """

    def __init__(self, spectra: list[Spectrum]) -> None:
        self.largest = max(float(np.abs(s.nodes).max()) for s in spectra) or 1.0
        top = min(math.ceil(math.log10(self.largest)), 308)
        sizes = np.concatenate([np.abs(s.nodes) for s in spectra])
        shares = np.concatenate([s.weights for s in spectra]) / len(spectra)
        order = np.argsort(sizes)
        small = sizes[order][np.searchsorted(np.cumsum(shares[order]), _NEAR)]
        least = math.floor(math.log10(small)) if small > 0 else top - _DECADES
        self.linear = power_of_ten(min(max(least, top - _DECADES), top - 1))
        self.top = float(symlog(self.largest, self.linear)) + 0.05
        self.edges = np.linspace(0, self.top, _BINS + 1)
        self.centres = (self.edges[1:] + self.edges[:-1]) / 2
        self.values = self.linear * np.where(
            self.centres <= 1, self.centres, 10 ** (self.centres - 1)
        )

    def shares(self, spectrum: Spectrum, sign: int) -> Any:
        """Share of eigenvalues of one sign in each bin, at zero too, in ascending order of λ."""
        found = bin_shares(spectrum, sign, self.linear, self.edges)
        found = np.concatenate([found[:1], found])
        return found[::-1] if sign < 0 else found

    def unresolved(self, spectrum: Spectrum, lowest: float) -> Any:
        """The part of them that cannot be told from zero, in the bins next to it."""
        mass = _near_zero(spectrum)
        alone = replace(spectrum, nodes=np.zeros(1), weights=np.ones(1), exact=np.ones(1, bool))
        half = mass.sum() * bin_shares(alone, 1, self.linear, self.edges)[:_AROUND]
        return np.maximum([*half[::-1], half[0], *half], lowest / 2)


def _near_zero(spectrum: Spectrum) -> Any:
    """Mass of each node that cannot be told from zero, and 0 for the others."""
    return np.where(np.abs(spectrum.nodes) <= spectrum.resolution, spectrum.weights, 0.0)


def _middle(scale: _Scale) -> Trace:
    """What cannot be told from zero, over the bins next to it."""
    places = scale.centres[:_AROUND]
    name = "of these, not told from zero"
    return {
        **line([*-places[::-1], 0, *places], [], name, GREY),
        "fill": "tozeroy",
        "fillcolor": faint(GREY),
        "line": {"color": GREY, "width": 1.5},
        "hovertemplate": "not told from zero<br>share %{y:.3g}<extra></extra>",
    }


def _side(scale: _Scale, sign: int) -> Trace:
    negative = sign < 0
    places, values = np.append(0, scale.centres), np.append(0, scale.values)
    colour = NEGATIVE if negative else POSITIVE
    return {
        **line(
            -places[::-1] if negative else places,
            [],
            "negative modes, which grow" if negative else "positive modes",
            colour,
        ),
        "customdata": rounded(-values[::-1] if negative else values),
        "fill": "tozeroy",
        "fillcolor": faint(colour),
        "fillpattern": {"shape": "/" if negative else "", "fgcolor": colour, "size": 6},
        "line": {"color": colour, "width": 1.5},
        "hovertemplate": "λ ≈ %{customdata:.3g}<br>share %{y:.3g}<extra></extra>",
    }


def _level_looks() -> list[Trace]:
    """Vertical lines whose places and names the frames set."""
    return [
        {**line([], [], "", colour, dash), "hoverinfo": "name"}
        for colour, dash in ((INK, "dash"), (INK, "solid"), (PURPLE, "dot"))
    ]


def _levels(
    record: SpectrumRecord, spectrum: Spectrum, scale: _Scale, heights: tuple[float, float]
) -> list[Trace]:
    limit = record.dynamics.largest_stable
    there = limit <= 10 * scale.largest
    where = "" if there else ", beyond this picture"
    formula = bound_formula(record.dynamics)
    named = (
        (spectrum.lambda_min, f"λ_min = {number(spectrum.lambda_min)}", True),
        (spectrum.lambda_max, f"λ_max = {number(spectrum.lambda_max)}", True),
        (limit, f"{formula} = {number(limit)}{where}: a step amplifies above", there),
    )
    return [
        {
            "x": rounded(symlog([level] * 2, scale.linear)) if shown else [None],
            "y": rounded(heights) if shown else [None],
            "name": name,
        }
        for level, name, shown in named
    ]


def _summary(record: SpectrumRecord, spectrum: Spectrum) -> str:
    best = (
        "never" if math.isinf(record.best_window) else f"from step {number(record.best_window)} on"
    )
    limits = spectrum.negative_mass_range
    of = f"of {whole(spectrum.dimension)} eigenvalues"
    negative = f"{with_range(spectrum.negative_mass, limits)} {of}"
    if limits[1] - limits[0] > _WIDE:
        negative = f"anywhere from {percent_range(limits)} {of}: more cannot be told"
    return (
        f"λ from {number(spectrum.lambda_min)} to {number(spectrum.lambda_max)}; negative: "
        f"{negative}; the error proxy rises {best}."
    )


def _spectra_caption(
    frames: list[Frame], taken: int, records: int, scale: _Scale, near_zero: bool
) -> str:
    bins = round(_BINS / scale.top)
    near = tick(scale.linear, powers=scale.linear < 1e-3)
    parts = [
        f"Each point is the share of eigenvalues in one bin, {bins} bins a decade; the axis is "
        f"linear between −{near} and {near}, and logarithmic beyond. Look for modes left of zero, "
        "which every step of the window amplifies, and for modes right of the dotted line, which "
        "the learning rate is too large for. Isolated peaks on the right are single eigenvalues; "
        "the bulk is spread over its quadrature nodes, and what cannot be told from zero stands "
        "half on either side" + (", in grey." if near_zero else ".")
    ]
    if len(frames) > 1:
        parts.append("The slider goes through training; arrow keys move it by one spectrum.")
    else:
        label, says = frames[0].label, frames[0].says
        parts.insert(0, f"{label[:1].upper()}{label[1:]}: {says}")
    if len(frames) < taken:
        parts.append(f"Of {whole(taken)} spectra, {len(frames)} are drawn, evenly chosen.")
    if taken < records:
        parts.append(f"{counted(records - taken, 'spectrum', 'spectra')} failed.")
    return " ".join(parts)


# ---- Error proxy -------------------------------------------------------------------------------


def proxy(history: MonitorHistory) -> Figure | None:
    """The error proxy over the steps of a run; over t where only one spectrum was taken.

    Returns:
        ``None`` where there is no spectrum.
    """
    taken = [r for r in history.records if r.spectrum is not None]
    if not taken:
        return None
    segments = [
        (span, record, stop)
        for span, record, stop in history.segments()
        if record.spectrum is not None and stop > record.window_step
    ]
    return _proxy_of_run(history, segments) if segments else _proxy_of_one(taken[-1])


def _curve(record: SpectrumRecord, begin: float, end: float, points: int) -> tuple[Any, Any]:
    """Times, and P with its positive and negative parts, as rows."""
    assert record.spectrum is not None
    times = np.linspace(begin, end, points)
    found = [record.dynamics.error_proxy(record.spectrum, float(t)) for t in times]
    return times, np.array([[p.total, p.positive, p.negative] for p in found]).T


def _proxy_of_one(record: SpectrumRecord) -> Figure:
    best, window = record.best_window, max(record.window, 1)
    end = 2 * window if math.isinf(best) else min(max(2 * window, 2 * best), 10 * window)
    times, parts = _curve(record, 0, end, 240)
    looks = (
        ("P(t), all modes", INK, "solid"),
        ("positive modes, and zero", POSITIVE, "dash"),
        ("negative modes", NEGATIVE, "dot"),
    )
    heights = known(parts.reshape(-1).tolist(), positive=True)
    top = max(heights)
    wide = top > 20
    low = max(min(heights), 1e-6 * top) if wide else 0.0
    data = [
        line(times, part, name, colour, dash)
        for part, (name, colour, dash) in zip(parts, looks, strict=True)
    ]
    for place, name, colour, dash in (
        (float(window), f"window of {whole(window)} steps", GREY, "longdash"),
        (float(best), f"t* = {number(best)}, where P is least", GREEN, "dashdot"),
    ):
        if place <= end:
            data.append(line([place] * 2, [low, top], name, colour, dash))
    y = log_axis("error proxy P", (low, top)) if wide else axis("error proxy P", rangemode="tozero")
    return Figure(
        "proxy",
        "Error proxy",
        "P(t) is the mean over all modes of the factor by which t steps change an error along "
        "them, by this one spectrum; our definition. It falls while positive modes are damped and "
        "rises once negative ones, or those beyond the stability bound, prevail. A window should "
        "end before it rises." + (" Here it never does." if math.isinf(best) else ""),
        data,
        layout(360, xaxis=steps_axis("steps t since the upload", 0, end), yaxis=y),
    )


def _proxy_of_run(
    history: MonitorHistory, segments: list[tuple[WindowSpan, SpectrumRecord, int]]
) -> Figure:
    chosen = [segments[i] for i in evenly(len(segments), _SPANS)]
    points = min(60, max(5, _POINTS // len(chosen)))
    steps: list[float] = []
    columns: list[list[float]] = [[], [], []]
    for span, record, stop in chosen:
        times, parts = _curve(record, record.window_step, stop, points)
        still = _curve(record, 0, 0, 1)[1][1:, 0]
        steps += [*(span.start + times).tolist(), math.nan]
        for column, values in zip(
            columns, (parts[0], parts[1] - still[0], parts[2] - still[1]), strict=True
        ):
            column += [*values.tolist(), math.nan]
    strip, above, below = with_strip([0.55, 0.45])
    heights, changes = known(columns[0], positive=True), known(columns[1] + columns[2])
    wide = bool(heights) and max(heights) > 5 * min(heights)
    change = axis("change of P", domain=below, nticks=6)
    if max(map(abs, changes), default=0.0) > 20:
        change = symlog_axis("change of P", 1.0, min(changes), max(changes), domain=below, most=6)
        columns[1:] = [symlog(column, 1.0).tolist() for column in columns[1:]]
    digits = _digits(heights)
    data = [
        {**line(steps, columns[0], "P(t)", INK), "y": rounded(columns[0], digits)},
        line(steps, columns[1], "change by positive modes", POSITIVE, "solid", yaxis="y2"),
        line(steps, columns[2], "change by negative modes", NEGATIVE, "dash", yaxis="y2"),
        *_ends(history.windows),
    ]
    first, last = known(steps)[0], max(history.last_step, known(steps)[0] + 1)
    first -= 0.02 * (last - first)  # the first upload would lie on the axis
    title = "error proxy P"
    return Figure(
        "proxy",
        "Error proxy over training",
        "Above, P(t) in each window by its latest spectrum, the mean over all modes of the factor "
        "by which t steps change an error along them; our definition. It starts at 1 at each "
        "upload, and jumps where a new spectrum was taken. Below, what the positive and the "
        "negative modes have added to it since the upload: P is least where the one's fall is as "
        "steep as the other's rise. Look for windows in which P ends above its lowest point: they "
        "were too long."
        + (f" {len(chosen)} of {whole(len(segments))} stretches are drawn." * (chosen != segments)),
        data,
        layout(
            520,
            xaxis=steps_axis("SGD steps", first, last, anchor="y2"),
            yaxis={
                **(log_axis(title, heights) if wide else axis(title)),
                "domain": above,
            },
            yaxis2=change,
            **strip_axes(strip, [first, last]),
        ),
    )


def _digits(heights: list[float]) -> int:
    """Significant ones with which a curve that hardly changes is no staircase."""
    if not heights or max(heights) == min(heights):
        return 5
    relative = (max(heights) - min(heights)) / max(heights)
    return min(max(4 - math.floor(math.log10(relative)), 5), 15)


def _ends(windows: list[WindowSpan]) -> list[Trace]:
    """Uploads, and downloads by their reason."""
    shown = [windows[i] for i in evenly(len(windows), _SPANS)]
    found = [strip_marks((s.start for s in shown), "upload", INK, "triangle-down", True)]
    finished = [(s.reason, s.stop, s.triggered) for s in shown if s.stop is not None]
    for place, reason in enumerate(sorted({reason for reason, *_ in finished})):
        mine = [(stop, fired) for why, stop, fired in finished if why == reason]
        symbol, colour = _REASONS[place % len(_REASONS)]
        name = f"download: {reason or 'no reason given'}" + " (trigger)" * mine[0][1]
        found.append(strip_marks((stop for stop, _ in mine), name, colour, symbol, False))
    return found
