"""The picture of several layers: that marks are where and as large as they should be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.hessian.test_plots import spectrum
from torch_qsgd.cli.layers_plot import plot_layers

CIRCLE, TRIANGLE = math.pi / 4, 1 / 2  # of the square that holds the mark


def layers(scale: float) -> dict[str, Any]:
    nodes = np.r_[-3.0, -1e-3, 1e-4, 2e-3, 5e-3, 40.0]
    weights = np.array([0.001, 0.099, 0.5, 0.2, 0.199, 0.001])
    one = spectrum(nodes * scale, weights, np.zeros(6, bool), 1000)
    return {"first.conv": one, "second.conv": spectrum([1e-3 * scale], [1.0], [False], 10)}


def texts(figure: Figure) -> list[Any]:
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
    legend = figure.legends[0]
    labels = [label for place, label in ticks if low <= place <= high]
    return [*labels, axes.xaxis.label, legend.get_title(), *legend.get_texts()]


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_no_text_overlaps_another(tmp_path: Path, scale: float):
    figure = plot_layers(layers(scale), tmp_path / "layers.png", lr=0.1 / scale)
    shown = [text for text in texts(figure) if text.get_text()]
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    boxes = [text.get_window_extent(renderer) for text in shown]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i]), shown[i].get_text()
    assert len(boxes) > 10
    assert (tmp_path / "layers.png").stat().st_size > 5000


def test_marks_have_an_area_in_proportion_to_the_share_and_the_legend_says_so(tmp_path: Path):
    figure = plot_layers(layers(1.0), tmp_path / "layers.png")
    negative, positive, _, single = figure.axes[0].collections
    (whole,) = single.get_sizes() * CIRCLE
    np.testing.assert_allclose(negative.get_offsets(), [[-3.0, 0], [-1e-3, 0]])
    np.testing.assert_allclose(positive.get_sizes() * CIRCLE / whole, [0.5, 0.2, 0.199, 0.01])
    np.testing.assert_allclose(negative.get_sizes() * TRIANGLE / whole, [0.01, 0.099])
    legend = figure.legends[0]
    assert legend.get_title().get_text() == "area = share of eigenvalues"
    sizes = {
        text.get_text(): handle.get_markersize() ** 2 * CIRCLE / whole
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }
    shares = [sizes[name] for name in ("100 %", "10 %", "1 % or less")]
    np.testing.assert_allclose(shares, [1, 0.1, 0.01])
