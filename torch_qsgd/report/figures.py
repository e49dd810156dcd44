"""Figures of a report as plain Plotly dictionaries, and what they have in common."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from torch_qsgd.report.numbers import MINUS, THIN, whole
from torch_qsgd.report.palette import DASHES, GREY, GRID, INK, MARKERS, PAPER, SERIES

Trace = dict[str, Any]

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Frame:
    """One of several states of a figure, between which a slider chooses.

    Attributes:
        label: which one it is.
        says: its numbers, in one line.
        data: what replaces entries of the figure's traces, a dictionary a trace.
    """

    label: str
    says: str
    data: list[Trace]


@dataclass(frozen=True)
class Figure:
    """A picture, and the words around it.

    Attributes:
        key: short, unique on its page.
        title: above it.
        caption: what it shows and what to look for, in plain sentences.
        data, layout: as Plotly knows them.
        frames: none, or at least two; ``data`` is the first one's.
    """

    key: str
    title: str
    caption: str
    data: list[Trace]
    layout: dict[str, Any]
    frames: list[Frame] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Numbers, lists and strings for the page's script, without NaN or infinity."""
        return {
            "data": self.data,
            "layout": self.layout,
            "frames": [{"label": f.label, "says": f.says, "data": f.data} for f in self.frames],
        }


# ---- Text and numbers --------------------------------------------------------------------------


def safe(text: object) -> str:
    """Text as it is for Plotly, which reads HTML entities and a few tags.

    Example:
        >>> safe("a<b> & c")
        'a&lt;b&gt; &amp; c'
    """
    return html.escape(str(text), quote=False)


def shortened(text: str, most: int) -> str:
    """Text of at most so many letters, its middle left out where it is longer.

    Example:
        >>> shortened("features.12.block.3.weight", 16)
        'features….weight'
    """
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def rounded(values: ArrayLike, digits: int = 5) -> list[float | None]:
    """Numbers to so many significant digits; ``None``, a gap, for NaN and infinity.

    Example:
        >>> rounded([1 / 3, float("inf"), 2e9 / 3])
        [0.33333, None, 666670000.0]
    """
    flat = np.asarray(values, dtype=np.float64).reshape(-1).tolist()
    near = [float(f"{v:.{digits}g}") for v in flat]
    # The largest numbers of all would become infinite.
    return [
        (short if math.isfinite(short) else v) if math.isfinite(v) else None
        for short, v in zip(near, flat, strict=True)
    ]


def power_of_ten(exponent: float) -> float:
    """10 to a power, but neither 0 nor infinity: beyond what a number holds, the next it does.

    Example:
        >>> power_of_ten(-2), power_of_ten(309), power_of_ten(-324.5)
        (0.01, 1e+308, 1e-323)
    """
    return float(10.0 ** min(max(exponent, -323), 308))


def known(values: Iterable[float | None], positive: bool = False) -> list[float]:
    """Those that are finite numbers, and above zero where asked."""
    return [v for v in values if v is not None and math.isfinite(v) and (v > 0 or not positive)]


def thinned(values: Sequence[float], most: int) -> list[int]:
    """Places of at most about so many values: of each run of neighbours the ends and extremes.

    Dips and peaks stay, however narrow.

    Example:
        >>> thinned([0, 0, 0, 9, 0, 0, 0, 0], 4)
        [0, 3, 7]
    """
    count = len(values)
    if count <= most:
        return list(range(count))
    heights = np.asarray(values, dtype=np.float64)
    kept = {0, count - 1}
    for part in np.array_split(np.arange(count), max(1, most // 4)):
        there = part[np.isfinite(heights[part])]
        kept |= {int(part[0])} if len(there) == 0 else set()
        for place in (np.argmin, np.argmax):
            kept |= {int(there[place(heights[there])])} if len(there) else set()
    return sorted(kept)


def evenly(count: int, most: int) -> list[int]:
    """Places of at most so many of a list, evenly, with the first and the last.

    Example:
        >>> evenly(10, 4), evenly(3, 4)
        ([0, 3, 6, 9], [0, 1, 2])
    """
    if count <= most:
        return list(range(count))
    return sorted({int(i) for i in np.linspace(0, count - 1, most).round()})


def tick(value: float, powers: bool) -> str:
    """A power of ten, or a number, in short.

    Example:
        >>> tick(2e-5, True), tick(-100.0, True), tick(1.0, True), tick(0.05, False)
        ('2×10⁻⁵', '−10²', '1', '0.05')
    """
    sign = MINUS if value < 0 else ""
    size = abs(value)
    if not powers or size == 0:
        return f"{sign}{whole(int(size)) if size == int(size) else f'{size:.12g}'}"
    exponent = max(math.floor(math.log10(size) + 1e-9), -323)  # the least that a float holds
    first = round(size / power_of_ten(exponent))
    if exponent in (0, 1):
        return f"{sign}{first * 10**exponent}"
    power = "10" + str(exponent).translate(_SUPERSCRIPTS)
    return f"{sign}{power}" if first == 1 else f"{sign}{first}×{power}"


# ---- Layout ------------------------------------------------------------------------------------


def axis(title: str, **options: Any) -> dict[str, Any]:
    """A linear axis."""
    return {
        "title": {"text": title, "standoff": 10},
        "gridcolor": GRID,
        "linecolor": GREY,
        "tickcolor": GREY,
        "ticks": "outside",
        "zeroline": False,
        "automargin": True,
        "exponentformat": "power",
        **options,
    }


def log_axis(
    title: str, values: Iterable[float | None], *, most: int = 7, room: float = 0.06, **options: Any
) -> dict[str, Any]:
    """A logarithmic axis around the values above zero, with at most about so many labels.

    Ticks stand at powers of ten, or at 1, 2 and 5 times these where there are few.
    """
    there = known(values, positive=True)
    if not there:
        return axis(title, **options)
    low, high = math.log10(min(there)), math.log10(max(there))
    if high - low < 1e-3:
        low, high = low - 0.15, high + 0.15
    pad = max(room * (high - low), 0.02)
    low, high = low - pad, high + pad
    ticks = log_ticks(low, high, most)
    if len(ticks) >= 2:
        powers = min(ticks) < 1e-3 or max(ticks) > 1e4
        options = {
            "tickvals": ticks,
            "ticktext": [tick(value, powers) for value in ticks],
            **options,
        }
    return axis(title, **{"type": "log", "range": [low, high], **options})


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Numbers to label between two powers of ten, given by their exponents."""
    decades = range(max(math.ceil(low), -323), min(math.floor(high), 308) + 1)
    if len(decades) >= 3:
        step = math.ceil(len(decades) / most)
        return [10.0**e for e in decades if e % step == 0]
    for digits in ((1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9)):
        found = [
            digit * 10.0**e
            for e in range(max(math.floor(low), -323), min(math.floor(high), 308) + 1)
            for digit in digits
            if low <= math.log10(digit) + e <= min(high, 308.25)
        ]
        if len(found) >= 3:
            break
    return [float(f"{value:.12g}") for value in found][: 2 * most]


def symlog(values: ArrayLike, linear: float) -> Any:
    """Places on an axis that is linear up to a size, and logarithmic beyond, a unit a decade.

    Example:
        >>> symlog([-100.0, 0.0, 0.5, 1.0, 10.0], 1.0)
        array([-3. ,  0. ,  0.5,  1. ,  2. ])
    """
    given = np.asarray(values, dtype=np.float64)
    sizes = np.abs(given)
    # A quotient of the largest number and a small one would be infinite.
    decades = np.log10(np.maximum(sizes, linear)) - math.log10(linear)
    return np.sign(given) * np.where(
        sizes <= linear, np.minimum(sizes, linear) / linear, 1 + decades
    )


def symlog_axis(
    title: str, linear: float, low: float, high: float, *, most: int = 7, **options: Any
) -> dict[str, Any]:
    """The axis of :func:`symlog` from one number to another, ticks at powers of ten.

    Args:
        title: of the axis.
        linear: a power of ten, up to which the axis is linear.
        low, high: its ends.
        most: labels, about; the largest power of ten has one.
        options: of Plotly.
    """
    ends = [float(end) for end in symlog([low, high], linear)]
    first = round(math.log10(linear))
    step = max(1, math.ceil((max(ends[1], 0) + max(-ends[0], 0)) / most))
    longest = math.floor(max(abs(ends[0]), abs(ends[1]), 1) + 1e-9)
    sizes = [10.0 ** (first + k) for k in range(longest) if first + k <= 308]
    named = set(sizes[::-1][::step])
    ticks = [*(-v for v in sizes[::-1]), 0.0, *sizes]
    powers = min(named) < 1e-2 or max(named) > 1e3
    return axis(
        title,
        range=[ends[0] - 0.02 * (ends[1] - ends[0]), ends[1] + 0.02 * (ends[1] - ends[0])],
        tickangle=0,
        tickvals=[float(symlog(v, linear)) for v in ticks],
        ticktext=[tick(v, powers) if v == 0 or abs(v) in named else "" for v in ticks],
        **options,
    )


def steps_axis(title: str, first: float, last: float, **options: Any) -> dict[str, Any]:
    """An axis of SGD steps, whose labels are whole numbers in full."""
    whole_numbers = {"exponentformat": "none", "separatethousands": True}
    return axis(title, range=[first, last], **whole_numbers, **options)


def layout(height: int, **parts: Any) -> dict[str, Any]:
    """What all figures share; legends are drawn by the page, below."""
    return {
        "height": height,
        "autosize": True,
        "showlegend": False,
        "hovermode": "closest",
        "separators": f".{THIN}",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "margin": {"l": 48, "r": 14, "t": 14, "b": 48},
        "hoverlabel": {"align": "left"},
        **parts,
    }


def panels(heights: Sequence[float], gap: float = 0.1) -> list[list[float]]:
    """Shares of a figure's height for panels, from the top, with a gap between them.

    Example:
        >>> panels([1, 1], gap=0.2)
        [[0.6, 1.0], [0.0, 0.4]]
    """
    unit = (1 - gap * (len(heights) - 1)) / sum(heights)
    found, top = [], 1.0
    for height in heights:
        bottom = top - unit * height
        found.append([round(max(bottom, 0.0), 6), round(top, 6)])
        top = bottom - gap
    return found


# ---- Traces ------------------------------------------------------------------------------------


def line(
    x: ArrayLike, y: ArrayLike, name: str, colour: str, dash: str = "solid", **options: Any
) -> Trace:
    """A line; neither markers nor a name in the legend unless ``options`` say otherwise."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": rounded(x),
        "y": rounded(y),
        "name": safe(name),
        "line": {"color": colour, "dash": dash, "width": 2},
        **options,
    }


def joined(
    x: ArrayLike, y: ArrayLike, name: str, colour: str, dash: str, symbol: str, **options: Any
) -> Trace:
    """Markers joined by a line."""
    marker = {"symbol": symbol, "size": 7, "color": colour}
    return line(x, y, name, colour, dash, mode="lines+markers", marker=marker, **options)


def marks(x: ArrayLike, y: ArrayLike, name: str, colour: str, symbol: str, **options: Any) -> Trace:
    """Markers without a line."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": rounded(x),
        "y": rounded(y),
        "name": safe(name),
        "marker": {"color": colour, "symbol": symbol, "size": 8},
        **options,
    }


def look(number: int) -> tuple[str, str, str]:
    """Colour, dash and marker of a series by its number."""
    return (
        SERIES[number % len(SERIES)],
        DASHES[number % len(DASHES)],
        MARKERS[number % len(MARKERS)],
    )
