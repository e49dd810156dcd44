"""Spectra of several layers in one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torch_qsgd.hessian import Spectrum
from torch_qsgd.hessian.plots import ROUNDED_UP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's colours; markers tell the sides apart in grey.
_SIDES = (("#D55E00", "v", "λ < 0"), ("#0072B2", "o", "λ ≥ 0"))
_FILLED = {"v": 1 / 2, "o": np.pi / 4}  # of the square that holds the marker
_AREA = 240.0  # of a mark that holds all eigenvalues, in square points
_LEAST = _AREA / 100  # a mark of less area would not be seen
_LINEAR_DECADES = 1.5  # as wide as so many decades is each side of the linear part


def plot_layers(
    spectra: Mapping[str, Spectrum], path: str | Path, *, lr: float | None = None, title: str = ""
) -> Figure:
    """Draw a row a layer: its eigenvalues as marks, whose area is their share.

    The axis is linear about zero, up to the decade of the median size of the layers' eigenvalues,
    and logarithmic beyond.

    Args:
        spectra: by layer, at least one; the first is drawn on top.
        path: of a PNG, PDF or SVG file; its folder must be there.
        lr: η, above 0; marks 2/η.
        title: above the picture.

    Returns:
        The figure, which is in the file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(9, 2.2 + 0.3 * len(spectra)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    sizes = np.concatenate([np.abs(s.nodes) for s in spectra.values()])
    sizes = sizes[sizes > max(s.resolution for s in spectra.values())]
    for row, spectrum in enumerate(spectra.values()):
        axes.axhline(row, color="0.9", linewidth=0.8, zorder=0)
        for negative, (colour, marker, _) in zip((True, False), _SIDES, strict=True):
            there = (spectrum.nodes < -spectrum.resolution) == negative
            axes.scatter(
                spectrum.nodes[there],
                np.full(int(there.sum()), row),
                s=np.maximum(_AREA * spectrum.weights[there], _LEAST) / _FILLED[marker],
                color=colour,
                marker=marker,
                alpha=0.6,
                linewidths=0,
            )
    if len(sizes) and sizes.max() > 20 * np.median(sizes):
        linear = 10.0 ** round(np.log10(np.median(sizes)))
        # Room for the labels of 0 and of the decades on either side of it.
        linear *= ROUNDED_UP
        axes.set_xscale("symlog", linthresh=linear, linscale=_LINEAR_DECADES)
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    if lr is not None:
        axes.axvline(
            2 / lr, color="black", linestyle="--", linewidth=1.2, label=f"2/η = {2 / lr:.3g}"
        )
    axes.set_yticks(range(len(spectra)), list(spectra))
    axes.set_ylim(len(spectra) - 0.5, -0.5)
    axes.set_xlabel("eigenvalue λ (loss per squared weight)")
    lines, _ = axes.get_legend_handles_labels()
    marks = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=10, label=name)
        for colour, marker, name in _SIDES
    ]
    for share in (1.0, 0.1, 0.01):
        marks.append(
            Line2D(
                [],
                [],
                color="0.4",
                marker="o",
                linestyle="none",
                markeredgewidth=0,
                markersize=float(np.sqrt(_AREA * share / _FILLED["o"])),
                label=f"{100 * share:g} %" + " or less" * (share == 0.01),
            )
        )
    figure.legend(
        handles=[*marks, *lines],
        title="area = share of eigenvalues",
        loc="outside lower center",
        ncols=6,
        frameon=False,
    )
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    return figure
