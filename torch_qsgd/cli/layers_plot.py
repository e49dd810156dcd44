"""Spectra of several layers in one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from torch_qsgd.hessian import Spectrum

#: Okabe and Ito's colours; markers tell the sides apart in grey.
_SIDES = (("#D55E00", "v", "negative"), ("#0072B2", "o", "positive"))


def plot_layers(
    spectra: Mapping[str, Spectrum], path: str | Path, *, lr: float | None = None, title: str = ""
) -> None:
    """Draw a row a layer: its eigenvalues as marks, whose area grows with their share.

    The axis is linear about zero, up to the median size of the layers' eigenvalues, and
    logarithmic beyond.

    Args:
        spectra: by layer, at least one; the first is drawn on top.
        path: of a PNG, PDF or SVG file; its folder must be there.
        lr: η, above 0; marks 2/η.
        title: above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.2 + 0.3 * len(spectra)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    sizes = np.concatenate([np.abs(s.nodes) for s in spectra.values()])
    sizes = sizes[sizes > max(s.resolution for s in spectra.values())]
    for row, spectrum in enumerate(spectra.values()):
        axes.axhline(row, color="0.9", linewidth=0.8, zorder=0)
        for negative, (colour, marker, name) in zip((True, False), _SIDES, strict=True):
            there = (spectrum.nodes < 0) == negative
            axes.scatter(
                spectrum.nodes[there],
                np.full(int(there.sum()), row),
                s=8 + 150 * spectrum.weights[there],
                color=colour,
                marker=marker,
                alpha=0.6,
                linewidths=0,
                label=name if row == 0 else None,
            )
    if len(sizes) and sizes.max() > 20 * np.median(sizes):
        axes.set_xscale("symlog", linthresh=float(np.median(sizes)))
    axes.axvline(0, color="0.6", linewidth=0.8, zorder=0)
    if lr is not None:
        axes.axvline(
            2 / lr, color="black", linestyle="--", linewidth=1.2, label=f"2/η = {2 / lr:.3g}"
        )
    axes.set_yticks(range(len(spectra)), list(spectra))
    axes.set_ylim(len(spectra) - 0.5, -0.5)
    axes.set_xlabel("eigenvalue λ (loss per squared weight); area of a mark: share of eigenvalues")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
