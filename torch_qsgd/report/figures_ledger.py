"""Figures of the ledger: its lines as bars, and its totals over the sizes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from torch_qsgd.report.figures import (
    Figure,
    Trace,
    axis,
    evenly,
    joined,
    known,
    layout,
    log_axis,
    rounded,
    safe,
    shortened,
    tick,
)
from torch_qsgd.report.numbers import number, with_unit
from torch_qsgd.report.palette import BLUE, GREEN, INK, PAPER, VERMILION
from torch_qsgd.resources import Entry, Ledger, ScalingCurve

_LETTERS = 46  # of a line of an entry's name above its bar, so that it fits a phone
_ROW = 42  # pixels that a bar takes, with its name
#: What a scaling curve runs over, in words.
SIZES = {
    "active": "active weights n",
    "steps": "steps T",
    "density": "density",
}


def bars(ledger: Ledger) -> list[Figure]:
    """How one query becomes the whole window; each solver's queries; and the qubits.

    A chart none of whose entries has a length is left out.
    """
    by_key = {entry.key: entry for entry in ledger.entries}
    physical = known([by_key["physical_qubits"].value]) if "physical_qubits" in by_key else []
    solver = f"queries_{ledger.window.get('solver', '')}".replace("-", "_")
    factors = ("query_qroam", solver, "runs", "copies", "copy_qroam", "total_qroam", "total_qram")
    charts = {
        "From one query to the whole window": [*factors, "flops"],
        "Queries of one run, solver by solver": _keys(ledger, "queries"),
        "Qubits": [*_keys(ledger, "qubits"), *(["physical_qubits"] if physical else [])],
    }
    shown = [
        (title, [by_key[key] for key in keys if key in by_key]) for title, keys in charts.items()
    ]
    shown = [(title, found) for title, found in shown if known(map(_length, found))]
    return [
        _bars(f"ledger-{place}", title, found, ledger.dominant)
        for place, (title, found) in enumerate(shown)
    ]


def totals(ledger: Ledger) -> list[tuple[str, str]]:
    """The few numbers that say most, by name, where they are known."""
    named = (
        ("total_qroam", "T gates in all, tables in QROAM", ""),
        ("physical_qubits", "physical qubits", ""),
        ("years", "time in all, on one such computer", "years"),
        ("flops", "classical operations, same steps", "FLOP"),
        ("ratio_qroam", "T gates for one classical operation", ""),
    )
    values = {entry.key: entry.value for entry in ledger.entries}
    return [
        (words, with_unit(values[key], unit))
        for key, words, unit in named
        if not math.isnan(values.get(key, math.nan))
    ]


def _keys(ledger: Ledger, group: str) -> list[str]:
    return [entry.key for entry in ledger.entries if entry.group == group]


def _length(entry: Entry) -> float:
    """The value, or NaN where a logarithmic axis has no place for it."""
    return entry.value if 0 < entry.value < math.inf else math.nan


def _bars(key: str, title: str, entries: list[Entry], dominant: str) -> Figure:
    """Bars on a logarithmic axis, each with its name above it and its value at its end."""
    units = {entry.unit for entry in entries}
    unit = entries[0].unit if len(units) == 1 else ""
    there = known(map(_length, entries))
    low = math.floor(math.log10(min(there)) - 0.5) - 1
    high = math.log10(max(there))
    end = high + 0.3 * (high - low)  # room for the value
    decades = range(max(low, -323), min(math.floor(end), 308) + 1)
    ticks = [10.0**e for e in decades if (e - low) % math.ceil(len(decades) / 5) == 0]
    names = [_name(entry, with_unit=len(units) > 1) for entry in entries]
    rows, bottom = [], 0.0
    for name in names:
        bottom -= 1 + 0.4 * name.count("<br>")
        rows.append(bottom)
    data: list[Trace] = []
    for first in (False, True):
        drawn = [
            (entry, row)
            for entry, row in zip(entries, rows, strict=True)
            if known([_length(entry)]) and (entry.key == dominant) == first
        ]
        if drawn:
            data.append(_trace(drawn, first))
    words = {"xref": "paper", "x": 0, "xanchor": "left", "yanchor": "bottom", "showarrow": False}
    return Figure(
        key,
        title,
        "",
        data,
        layout(
            round(66 - _ROW * bottom),
            annotations=[
                {"text": name, "y": row + 0.18, "align": "left", "font": {"size": 12}, **words}
                for name, row in zip(names, rows, strict=True)
            ],
            xaxis=axis(
                f"{safe(unit) or 'count'} (log scale)",
                type="log",
                range=[low, end],
                tickvals=ticks,
                ticktext=[tick(v, low < -3 or end > 5) for v in ticks],
            ),
            yaxis={
                **axis("", range=[bottom - 0.4, -0.1]),
                "showticklabels": False,
                "ticks": "",
                "showgrid": False,
                "fixedrange": True,
            },
            margin={"l": 10, "r": 14, "t": 8, "b": 54},
        ),
    )


def _trace(drawn: list[tuple[Entry, float]], dominates: bool) -> Trace:
    colour = VERMILION if dominates else BLUE
    pattern = {"shape": "/" if dominates else "", "bgcolor": colour, "fgcolor": PAPER}
    return {
        "type": "bar",
        "orientation": "h",
        "x": rounded([entry.value for entry, _ in drawn]),
        "y": rounded([row for _, row in drawn]),
        "width": 0.36,
        "name": "dominates the T gates" if dominates else "",
        "showlegend": dominates,
        "marker": {"color": colour, "pattern": {**pattern, "size": 8, "solidity": 0.2}},
        "text": [number(entry.value) for entry, _ in drawn],
        "textposition": "outside",
        "textfont": {"color": INK},
        "cliponaxis": False,
        "hovertext": [f"{safe(entry.quantity)}: {safe(entry.tag)}" for entry, _ in drawn],
        "hoverinfo": "text",
    }


def _name(entry: Entry, with_unit: bool) -> str:
    """An entry in at most two lines that fit a phone, with what stands for a bar it has not."""
    missing = "not known" if math.isnan(entry.value) else number(entry.value)
    unit = f", {entry.unit}" if with_unit and entry.unit else ""
    text = shortened(entry.quantity, 2 * _LETTERS - 20 - len(unit)) + unit
    text += "" if known([_length(entry)]) else f": {missing}"
    return "<br>".join(safe(part) for part in textwrap.wrap(text, _LETTERS)[:2])


def scaling(curves: Sequence[ScalingCurve]) -> list[Figure]:
    """A figure a curve: operations over one size, all else held."""
    return [_scaling(curve) for curve in curves if len(curve.values) > 1]


def _scaling(curve: ScalingCurve) -> Figure:
    kept = evenly(len(curve.values), 60)
    over = SIZES.get(curve.over, curve.over)
    looks = (
        ("T gates, tables in QROAM", curve.t_gates, VERMILION, "solid", "circle"),
        ("T gates, with QRAM", curve.t_gates_qram, GREEN, "dash", "square"),
        ("floating-point operations, classical", curve.flops, BLUE, "dashdot", "diamond"),
    )
    says = [safe(f"dominated by {curve.dominant[i]}") if curve.dominant else "" for i in kept]
    data = []
    for name, values, colour, dash, symbol in looks:
        heights = [values[i] if values[i] > 0 else math.nan for i in kept]
        if not known(heights):
            continue
        places = [curve.values[i] for i in kept]
        data.append(joined(places, heights, name, colour, dash, symbol, text=says))
    everything = [*curve.t_gates, *curve.t_gates_qram, *curve.flops]
    return Figure(
        f"scaling-{curve.over}",
        f"Scaling over {over}",
        f"Operations of one window over {over}, all else held.",
        data,
        layout(
            380,
            xaxis=log_axis(over, curve.values),
            yaxis=log_axis("operations", everything, most=6),
        ),
    )
