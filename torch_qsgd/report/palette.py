"""Colours of the report's page and plots, light and dark, for colour-blind readers too."""

from __future__ import annotations

#: Okabe and Ito's colours, the purple darkened so that each has at least 3 : 1 against white.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#B8578F"

#: Text, lines that are no data, grid, and what everything lies on.
INK, GREY, GRID, PAPER = "#1B1F24", "#66707C", "#E1E5EA", "#FFFFFF"

#: What stands for a series, in order; dashes and markers tell it apart without colour.
SERIES = (BLUE, VERMILION, GREEN, PURPLE, INK)
DASHES = ("solid", "dash", "dashdot", "dot", "longdash")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x")

#: Modes that are damped or zero, and modes that grow because they are negative.
POSITIVE, NEGATIVE = BLUE, VERMILION

_DARK = {
    BLUE: "#56B4E9",
    VERMILION: "#FF9147",
    GREEN: "#33C79C",
    PURPLE: "#E39CC6",
    INK: "#E8EAED",
    GREY: "#9BA5B0",
    GRID: "#333A42",
    PAPER: "#15181C",
}


def faint(colour: str) -> str:
    """The same colour, a quarter opaque, to fill areas.

    Example:
        >>> faint("#0072B2")
        'rgba(0, 114, 178, 0.25)'
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.25)"


#: The colour on a dark page that stands for each colour on a light one.
DARK = {**_DARK, **{faint(light): faint(dark) for light, dark in _DARK.items()}}

_VARIABLES = {
    "ink": INK,
    "grey": GREY,
    "grid": GRID,
    "paper": PAPER,
    "holds": BLUE,
    "breaks": VERMILION,
}


def variables(dark: bool) -> str:
    """The page's colours as CSS custom properties.

    Example:
        >>> variables(dark=False).split("; ")[0]
        '--ink: #1B1F24'
    """
    colours = {name: DARK[c] if dark else c for name, c in _VARIABLES.items()}
    return "; ".join(f"--{name}: {colour}" for name, colour in colours.items())
