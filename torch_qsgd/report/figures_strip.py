"""A strip above a figure over the steps, in which uploads and downloads are marked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch_qsgd.report.figures import Trace, marks, panels


def with_strip(heights: list[float]) -> list[list[float]]:
    """Shares of a figure's height: for uploads and downloads, and for the panels below them."""
    return [[0.94, 1.0], *([0.92 * low, 0.92 * high] for low, high in panels(heights))]


def strip_axes(domain: list[float], steps: list[float]) -> dict[str, Any]:
    """Axes that are not drawn, on which uploads and downloads are marked."""
    unseen = {"visible": False, "fixedrange": True}
    return {
        "yaxis3": {"domain": domain, "range": [-1, 1], "anchor": "x2", **unseen},
        "xaxis2": {"range": steps, "matches": "x", "anchor": "y3", "visible": False},
    }


def strip_marks(steps: Iterable[float], name: str, colour: str, symbol: str, above: bool) -> Trace:
    """Marks in that strip; uploads above, downloads below."""
    at = list(steps)
    return marks(
        at,
        [0.5 if above else -0.5] * len(at),
        name,
        colour,
        symbol,
        xaxis="x2",
        yaxis="y3",
        hoverinfo="x+name",
        hoverlabel={"namelength": -1},
        cliponaxis=False,
    )
