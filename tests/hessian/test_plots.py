"""Pictures of spectra: that the artists hold the right numbers, at any scale."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from torch_qsgd.hessian.plots import plot_spectrum
from torch_qsgd.hessian.spectrum import Spectrum

BLUE, VERMILION = "#0072B2", "#D55E00"


def spectrum(nodes: Any, weights: Any, exact: Any, dimension: int, scale: float = 1.0) -> Spectrum:
    nodes = scale * np.array(nodes)
    weights = np.array(weights)
    return Spectrum(
        nodes=nodes,
        weights=weights / weights.sum(),
        exact=np.array(exact, dtype=bool),
        dimension=dimension,
        lambda_min=nodes[0],
        lambda_min_bound=0.0,
        lambda_max=nodes[-1],
        lambda_max_bound=0.0,
        trace=0.0,
        trace_error=0.0,
        resolution=1e-7 * float(np.abs(nodes).max()),
        products=1,
        steps=1,
        probes=1,
        seconds=0.0,
        kind="hessian",
    )


def deep(scale: float = 1.0) -> Spectrum:
    """A bulk in [−0.5, 1], one exact eigenvalue below it, and outliers to 60."""
    bulk = np.linspace(-0.5, 1, 60)
    mass = np.exp(-np.abs(bulk) * 10)
    nodes = np.concatenate([[-1.5], bulk, [8.0, 20.0, 60.0]])
    exact = np.r_[True, np.zeros(60), np.ones(3)]
    weights = np.r_[1e-3, mass / mass.sum() * (1 - 4e-3), [1e-3] * 3]
    return spectrum(nodes, weights, exact, 1000, scale)


def single(node: float, exact: bool) -> Spectrum:
    return spectrum([node], [1.0], [exact], 1)


SPECTRA = {
    "deep": deep(),
    "tiny": deep(1e-8),
    "large": deep(1e8),
    "thousands": deep(1e4),
    "positive": spectrum(np.linspace(1, 5, 40), np.ones(40), np.arange(40) > 37, 40),
    "negative": spectrum(np.linspace(-5, -0.1, 40), np.ones(40), np.arange(40) < 2, 40),
    "zero": single(0.0, exact=False),
    "exact zero": single(0.0, exact=True),
    "one": single(3.0, exact=True),
    "minus one": single(-3.0, exact=False),
}


def panels(figure: Figure) -> tuple[Any, Any]:
    density, shares = figure.axes
    return density, shares


def stems(figure: Figure) -> dict[str, np.ndarray]:
    """Markers of the exact eigenvalues by colour, as (eigenvalue, share)."""
    return {str(line.get_color()): line.get_xydata() for line in panels(figure)[1].lines}


def curves(figure: Figure) -> dict[str, np.ndarray]:
    lines = [line for line in panels(figure)[0].lines if line.get_linestyle() == "-"]
    return {str(line.get_color()): line.get_xydata() for line in lines}


def marked(figure: Figure) -> list[float]:
    lines = [line for line in panels(figure)[0].lines if line.get_linestyle() == "--"]
    return [float(x) for line in lines for x in np.unique(line.get_xdata())]


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("name", "suffix"), [("deep", "png"), ("zero", "pdf"), ("positive", "svg")]
)
def test_files_of_every_kind_are_written(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{suffix}"
    SPECTRA[name].plot(path, lr=0.1, title="A title")
    head = path.read_bytes()[:100]
    assert head.startswith({"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[suffix])
    assert path.stat().st_size > 5000


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8])
def test_stems_stand_at_exact_nodes_with_their_mass(scale: float) -> None:
    found = deep(scale)
    drawn = stems(plot_spectrum(found))
    nodes = np.array([-1.5, 8.0, 20.0, 60.0]) * scale
    np.testing.assert_allclose(drawn[VERMILION], [[nodes[0], 1e-3]], rtol=1e-12)
    np.testing.assert_allclose(drawn[BLUE], [[x, 1e-3] for x in nodes[1:]], rtol=1e-12)
    lines = [c.get_segments() for c in panels(plot_spectrum(found))[1].collections]
    assert sorted(segment[0][0] for side in lines for segment in side) == pytest.approx(nodes)


@pytest.mark.parametrize("name", ["deep", "tiny", "large"])
def test_curves_hold_the_mass_that_is_not_exact_on_its_side(name: str) -> None:
    found = SPECTRA[name]
    drawn = curves(plot_spectrum(found))
    assert set(drawn) == {BLUE, VERMILION}
    for colour, side in ((VERMILION, found.nodes < 0), (BLUE, found.nodes >= 0)):
        x, density = drawn[colour].T
        expected = found.weights[side & ~found.exact].sum()
        assert (x <= 0).all() if colour == VERMILION else (x >= 0).all()
        assert np.trapezoid(density, x) == pytest.approx(expected, rel=1e-3)


def test_a_bulk_of_one_scale_is_drawn_with_one_width() -> None:
    found = SPECTRA["positive"]
    figure = plot_spectrum(found)
    assert panels(figure)[0].get_xscale() == "linear"
    x, density = curves(figure)[BLUE].T
    nodes, weights = found.nodes[~found.exact], found.weights[~found.exact]
    mass = weights.sum()
    # Broadening adds σ² to the variance.
    center = np.trapezoid(density * x, x) / mass
    variance = np.trapezoid(density * (x - center) ** 2, x) / mass
    width = math.sqrt(variance - np.average((nodes - center) ** 2, weights=weights))
    assert 0 < width < 0.5
    expected = np.exp(-0.5 * ((x[:, None] - nodes) / width) ** 2) @ weights
    expected /= width * math.sqrt(2 * math.pi)
    np.testing.assert_allclose(density, expected, atol=1e-4 * expected.max())


@pytest.mark.parametrize("name", SPECTRA)
def test_both_axes_are_logarithmic_and_hold_all_nodes(name: str) -> None:
    found = SPECTRA[name]
    density, shares = panels(plot_spectrum(found))
    assert density.get_yscale() == shares.get_yscale() == "log"
    low, high = density.get_xlim()
    assert low < found.nodes[0]
    assert found.nodes[-1] < high
    assert low < 0 < high
    bottom, top = shares.get_ylim()
    assert bottom < 1 / found.dimension < top


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8])
def test_far_outliers_leave_room_for_the_bulk(scale: float) -> None:
    axes, _ = panels(plot_spectrum(deep(scale)))
    assert axes.get_xscale() == "symlog"
    places = axes.transAxes.inverted().transform(
        axes.transData.transform([[x * scale, 1.0] for x in (-0.5, 0.0, 1.0, 60.0)])
    )[:, 0]
    widths = np.diff(places)
    assert (widths > 0.1).all(), "each part has a tenth of the width, at least"


@pytest.mark.parametrize("lr", [0.1, 0.03, 1.0])
def test_the_limit_of_the_learning_rate_is_marked(lr: float) -> None:
    figure = plot_spectrum(deep(), lr=lr)
    assert marked(figure) == pytest.approx([2 / lr])
    low, high = panels(figure)[0].get_xlim()
    assert low < 2 / lr < high
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert f"2/η = {2 / lr:.3g}" in labels
    assert marked(plot_spectrum(deep())) == []


@pytest.mark.parametrize("lr", [1e-6, 1e-310])
def test_a_limit_far_away_does_not_squeeze_the_picture(lr: float) -> None:
    figure = plot_spectrum(deep(), lr=lr)
    figure.draw_without_rendering()
    assert panels(figure)[0].get_xlim() == panels(plot_spectrum(deep()))[0].get_xlim()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert any(label.endswith("beyond this picture") for label in labels)


def test_sides_differ_in_colour_hatching_and_marker() -> None:
    figure = plot_spectrum(deep())
    density, shares = panels(figure)
    faces = {c.get_label()[:3]: (c.get_hatch(), c.get_facecolor()) for c in density.collections}
    assert faces["λ <"][0]
    assert not faces["λ ≥"][0]
    np.testing.assert_allclose(faces["λ <"][1][0][:3], to_rgba(VERMILION)[:3])
    np.testing.assert_allclose(faces["λ ≥"][1][0][:3], to_rgba(BLUE)[:3])
    assert len({line.get_marker() for line in shares.lines}) == 2


def test_a_positive_spectrum_shows_nothing_negative() -> None:
    figure = plot_spectrum(SPECTRA["positive"])
    assert set(curves(figure)) == set(stems(figure)) == {BLUE}
    assert not any("<" in text.get_text() for text in figure.legends[0].get_texts())


def test_the_legend_gives_the_shares() -> None:
    found = deep()
    texts = [text.get_text() for text in plot_spectrum(found).legends[0].get_texts()]
    low, high = (100 * limit for limit in found.negative_mass_range)
    assert f"λ < 0: {low:.2g} to {high:.2g} % of eigenvalues" in texts
    assert f"λ ≥ 0: {100 - high:.2g} to {100 - low:.2g} % of eigenvalues" in texts
    (only,) = plot_spectrum(SPECTRA["zero"]).legends[0].get_texts()
    assert only.get_text() == "λ ≥ 0: 0 to 100 % of eigenvalues"


@pytest.mark.parametrize("name", ["deep", "tiny", "thousands", "positive", "zero", "one"])
def test_no_text_overlaps_another_or_leaves_the_picture(name: str) -> None:
    figure = plot_spectrum(SPECTRA[name], lr=0.05, title="A title of some length")
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    texts = list(figure.legends[0].get_texts())
    for axes in figure.axes:
        low, high = sorted(axes.transAxes.transform([[0, 0], [1, 1]])[:, 0])
        texts += [axes.xaxis.label] if axes.xaxis.get_visible() else []
        texts += [axes.yaxis.label] if axes.yaxis.get_visible() else []
        for label in axes.get_xticklabels():
            if low <= label.get_window_extent(renderer).x0 <= high and axes is figure.axes[0]:
                texts.append(label)
    boxes = [t.get_window_extent(renderer) for t in texts if t.get_text() and t.get_visible()]
    for i, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:i])


@pytest.mark.parametrize("lr", [0.0, -1.0, math.nan, "fast"])
def test_a_bad_learning_rate_is_refused(lr: Any) -> None:
    with pytest.raises(ValueError, match="lr must be a number above 0"):
        plot_spectrum(deep(), lr=lr)


def test_a_file_type_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="txt"):
        plot_spectrum(deep(), tmp_path / "picture.txt")
