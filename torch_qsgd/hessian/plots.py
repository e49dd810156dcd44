"""Pictures of spectra."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from torch_qsgd.checks import require_number
from torch_qsgd.hessian.masses import percent_range
from torch_qsgd.hessian.spectrum import Spectrum, broadened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

#: Okabe and Ito's colours, told apart by colour-blind readers too; hatching and markers tell the
#: sides apart in grey.
_NEGATIVE = {"color": "#D55E00", "hatch": "////", "marker": "v", "name": "λ < 0"}
_POSITIVE = {"color": "#0072B2", "hatch": None, "marker": "o", "name": "λ ≥ 0"}
#: times a power of ten has a logarithm of at least the power; matplotlib would else label the
#: decade below it, on top of zero.
ROUNDED_UP = 1 + 1e-9
_POINTS = 1500  # of a curve
_MOST_LINEAR = 20.0  # an axis that reaches so many times as far as the bulk is linear
_MOST_DECADES = 4.0  # of a logarithmic axis, on each side
_OF_SPACING = 0.8  # σ of a node, in distances between nodes, within limits
_WIDEST = 2.5  # times the least σ: what is one node stays recognisable
_HEAVY = 0.05  # share of eigenvalues
_FARTHEST = 100.0  # times the largest |λ|: where 2/η lies beyond, only the legend holds it


def plot_spectrum(
    spectrum: Spectrum,
    path: str | Path | None = None,
    *,
    lr: float | None = None,
    title: str = "",
) -> Figure:
    r"""Draw a spectrum's density on a logarithmic axis, with its outliers as stems.

    The curve holds the nodes that have not converged, broadened to Gaussians; converged ones, the
    ``exact`` of :class:`.Spectrum`, stand as stems at their place, of height 1/n, read on the
    right. Right and left axis are the same but for the width σ: a share of one eigenvalue is a
    density of 1/(nσ) over a width of σ. Where outliers lie far from the bulk, the eigenvalue axis
    is linear about zero and logarithmic beyond, and σ grows there with \|λ\|. Modes that are
    negative beyond the resolution have a colour and hatching of their own. What a Gaussian has
    beyond zero is drawn mirrored, on its own side, so that areas are shares of eigenvalues. The
    legend gives the range of the shares, see ``Spectrum.negative_mass_range``.

    Args:
        spectrum: what to draw.
        path: of a PNG, PDF or SVG file, whose folder must be there; ``None`` writes none.
        lr: η, above 0; marks 2/η, beyond which gradient descent diverges.
        title: above the picture.

    Returns:
        The figure; in a notebook it shows itself.

    Raises:
        ValueError: for η outside what is allowed, or a file type that matplotlib cannot write.

    Example:
        >>> spectrum = Spectrum(
        ...     nodes=[-1.0, 0.0, 8.0], weights=[0.25, 0.5, 0.25], exact=[True, False, True],
        ...     dimension=4, lambda_min=-1.0, lambda_min_bound=1e-6, lambda_max=8.0,
        ...     lambda_max_bound=1e-5, trace=7.0, trace_error=0.5, resolution=1e-7,
        ...     products=12, steps=4, probes=3, seconds=0.25, kind="hessian",
        ... )
        >>> density, shares = plot_spectrum(spectrum, lr=0.1).axes
        >>> density.get_xlabel()
        'eigenvalue λ (loss per squared weight)'
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    limit = None if lr is None else 2 / require_number("lr", lr, 0)
    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = axes.twinx()
    scale = _Scale.of(spectrum, limit)
    scale.apply(axes)

    highest = 1 / (spectrum.dimension * scale.width)
    negative = spectrum.nodes < -spectrum.resolution
    low, high = spectrum.negative_mass_range
    sides = (negative, _NEGATIVE, (low, high)), (~negative, _POSITIVE, (1 - high, 1 - low))
    for side, look, limits in sides:
        name = f"{look['name']}: {percent_range(limits)} of eigenvalues"
        highest = max(highest, _draw_density(axes, spectrum, side, scale, look, name))
        _draw_stems(shares, spectrum, side, look)
    if limit is not None:
        where = "" if limit <= scale.limits[1] else ", beyond this picture"
        axes.axvline(limit, color="black", linestyle="--", label=f"2/η = {limit:.3g}{where}")

    lowest = 0.1 / (spectrum.dimension * scale.width)
    for panel, factor in ((axes, 1.0), (shares, scale.width)):
        panel.set_yscale("log")
        decades = np.log10([lowest * factor, 2 * highest * factor])
        panel.set_ylim(*(10.0**decades))
    axes.set_xlabel("eigenvalue λ (loss per squared weight)")
    axes.set_ylabel("density (share of eigenvalues per unit of λ)")
    shares.set_ylabel("share of eigenvalues (stems)")
    axes.yaxis.set_visible(not spectrum.exact.all())
    axes.grid(True, alpha=0.3)
    found = dict[str, Any]()
    for panel in (shares, axes):
        handles, labels = panel.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    names = sorted(found, key=lambda name: (name[:3] == "2/η", name[:3] == "λ ≥"))
    figure.legend(
        [found[name] for name in names], names, loc="outside lower center", ncols=3, frameon=False
    )
    figure.suptitle(title)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


# ---- The axis ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """How the eigenvalue axis runs, and how wide a node is drawn on it.

    Attributes:
        linear_to: the axis is logarithmic beyond; ``None`` where it is linear throughout.
        width: σ at zero.
        limits: of the axis.
    """

    linear_to: float | None
    width: float
    limits: tuple[float, float]

    @classmethod
    def of(cls, spectrum: Spectrum, limit: float | None) -> _Scale:
        least, largest = float(spectrum.nodes[0]), float(spectrum.nodes[-1])
        extent = max(-least, largest)
        if limit is not None and (limit <= _FARTHEST * extent or extent == 0):
            largest = max(largest, limit)
        low, high = min(least, 0.0), max(largest, 0.0)
        reach = max(-low, high) or 1.0
        bulk = _bulk(spectrum) or reach
        if reach <= _MOST_LINEAR * bulk:
            span = high - low or 2.0
            width = max(span / 150, (spectrum.nodes[-1] - spectrum.nodes[0]) / 60)
            return cls(None, float(width), (low - 0.06 * span, high + 0.06 * span))
        decade = max(round(math.log10(bulk)), math.ceil(math.log10(reach) - _MOST_DECADES))
        linear = 10.0**decade
        return cls(linear, linear / 15, (min(1.6 * low, -linear), max(1.6 * high, linear)))

    def apply(self, axes: Any) -> None:
        if self.linear_to is not None:
            axes.set_xscale("symlog", linthresh=ROUNDED_UP * self.linear_to, subs=range(2, 10))
        axes.set_xlim(*self.limits)

    def widths(self, nodes: Array, weights: Array) -> Array:
        """σ of each node, ascending: about as wide on the axis everywhere.

        It is wider, up to a limit, where nodes are far apart: quadrature has few in a sparse part
        of the spectrum, and gaps between them are no gaps between eigenvalues. A heavy node is
        a cluster, such as the zeros, and stays narrow.
        """
        least = np.full(nodes.shape, self.width)
        if self.linear_to is not None:
            least *= np.hypot(1.0, nodes / self.linear_to)
        if nodes.size == 1:
            return least
        wider = np.clip(_OF_SPACING * np.gradient(nodes), least, _WIDEST * least)
        return np.where(weights < _HEAVY, wider, least)

    def grid(self) -> Array:
        """Points that lie evenly on the axis."""
        unit = self.limits[1] - self.limits[0] if self.linear_to is None else self.linear_to
        low, high = (limit / unit for limit in self.limits)
        if self.linear_to is None:
            return unit * np.linspace(low, high, _POINTS)
        return unit * np.sinh(np.linspace(np.arcsinh(low), np.arcsinh(high), _POINTS))


def _bulk(spectrum: Spectrum) -> float:
    """The size that nine tenths of the mass outside of exact eigenvalues do not exceed."""
    sizes, weights = np.abs(spectrum.nodes[~spectrum.exact]), spectrum.weights[~spectrum.exact]
    if sizes.size == 0:
        return 0.0
    order = np.argsort(sizes)
    mass = np.cumsum(weights[order])
    return float(sizes[order][np.searchsorted(mass, 0.9 * mass[-1])])


# ---- What is on it -------------------------------------------------------------------------------


def _draw_density(
    axes: Any, spectrum: Spectrum, side: Flags, scale: _Scale, look: dict[str, Any], name: str
) -> float:
    """Draw the nodes of one side that are not exact as a curve; return its highest density."""
    drawn = side & ~spectrum.exact
    if not drawn.any():
        return 0.0
    nodes, weights = spectrum.nodes[drawn], spectrum.weights[drawn]
    widths, grid = scale.widths(nodes, weights), scale.grid()
    own = grid < 0 if look is _NEGATIVE else grid > 0
    grid = np.sort(np.append(grid[own], 0.0))
    density = broadened(grid, nodes, weights, widths) + broadened(-grid, nodes, weights, widths)
    colour = look["color"]
    axes.fill_between(
        grid,
        density,
        facecolor=(colour, 0.25),
        edgecolor=colour,
        hatch=look["hatch"],
        linewidth=0,
        label=name,
    )
    axes.plot(grid, density, color=colour, linewidth=1.2)
    return float(density.max())


def _draw_stems(axes: Any, spectrum: Spectrum, side: Flags, look: dict[str, Any]) -> None:
    """Draw the exact eigenvalues of one side as stems of their mass."""
    drawn = side & spectrum.exact
    if not drawn.any():
        return
    nodes, masses = spectrum.nodes[drawn], spectrum.weights[drawn]
    axes.vlines(nodes, 0, masses, color=look["color"], linewidth=1.2)
    axes.plot(
        nodes,
        masses,
        color=look["color"],
        marker=look["marker"],
        linestyle="none",
        label=f"{look['name']}, converged",
    )
