"""Pictures of the ledger: that bars and lines hold its numbers."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from torch_qsgd.resources import (
    ScalingCurve,
    WindowSize,
    ledger,
    plot_ledger,
    plot_scaling,
    scaling,
)

WINDOW = WindowSize(10**7, 10**6, steps=50, order=2, batch_size=32, bytes=1e9)


def bars(figure: Figure) -> dict[str, float]:
    """Lengths by label."""
    axes: Any = figure.axes[0]
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    labels = {round(float(place), 6): label.get_text() for place, label in ticks}
    middles = [round(float(bar.get_y() + bar.get_height() / 2), 6) for bar in axes.patches]
    return {
        labels[middle]: bar.get_width() for middle, bar in zip(middles, axes.patches, strict=True)
    }


def bold(figure: Figure) -> set[str]:
    labels = figure.axes[0].get_yticklabels()
    return {label.get_text() for label in labels if label.get_fontweight() == "bold"}


def rendered(figure: Figure) -> None:
    """Draw it all, with every warning an error: a missing glyph, a scale without room."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()


# ---- The ledger ----------------------------------------------------------------------------------


def test_bars_are_the_ledger_s_lines() -> None:
    found = ledger(WINDOW)
    figure = plot_ledger(found)
    rendered(figure)
    drawn = bars(figure)
    expected = {
        "shortcut, ‖x‖ unknown (proven)": "queries_shortcut",
        "shortcut, ‖x‖ known (assumed)": "queries_shortcut_known_norm",
        "HHL, sine clock, e^{iMt} (numerical)": "queries_hhl_sine",
        "copies to read the displacement": "copies",
        "runs a copy": "runs",
        "queries a run": "queries_shortcut_known_norm",
        "a query, QROAM": "query_qroam",
        "in all, QROAM": "total_qroam",
        "in all, QRAM (assumed)": "total_qram",
        "operations, same T steps": "flops",
        "memory, same T steps": "bytes",
    }
    for label, key in expected.items():
        assert drawn[label] == pytest.approx(found[key])
    assert len(drawn) == 10 + 5 + 4 + 2
    assert bold(figure) == {"shortcut, ‖x‖ known (assumed)", "copies to read the displacement"}


def test_solvers_are_sorted_by_queries() -> None:
    queries = list(bars(plot_ledger(ledger(WINDOW))).values())[:10]
    assert queries == sorted(queries)


def test_no_number_leaves_the_axes() -> None:
    for window in (WINDOW, WindowSize(10, 5, 2), WindowSize(10**20, 10**20, 10**6, order=4)):
        figure = plot_ledger(ledger(window))
        rendered(figure)
        axes: Any = figure.axes[0]
        right = axes.get_window_extent().x1
        for text in axes.texts:
            assert text.get_window_extent().x1 <= right + 1


def test_infinite_lines_reach_the_edge() -> None:
    figure = plot_ledger(ledger(WindowSize(100, 10, 5, kappa=math.inf)))
    rendered(figure)
    drawn, edge = bars(figure), figure.axes[0].get_xlim()[1]
    assert drawn["in all, QROAM"] == drawn["queries a run"] == edge
    assert drawn["copies to read the displacement"] < edge
    shown = [text.get_text().strip() for text in figure.axes[0].texts]
    assert shown.count("∞") == 10 + 2 + 4
    assert shown.count("not known") == 2


def test_the_sentence_stands_above() -> None:
    found = ledger(WINDOW)
    figure = plot_ledger(found, title="A title")
    above = figure.get_suptitle().replace("\u00a0", " ").split()
    assert " ".join(above) == f"A title {found.sentence}"


# ---- Growth --------------------------------------------------------------------------------------


def lines(axes: Any) -> dict[str, Any]:
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def test_panels_hold_the_curves() -> None:
    curves = [scaling(WINDOW, over) for over in ("active", "steps", "density")]
    figure = plot_scaling(curves, title="growth")
    rendered(figure)
    assert figure.axes[0].get_ylabel() == "T gates, or FLOPs, for one window"
    assert len(figure.axes) == 3
    for axes, curve in zip(figure.axes, curves, strict=True):
        drawn = lines(axes)
        for label, values in (
            ("T gates, QROAM", curve.t_gates),
            ("T gates, QRAM (assumed hardware)", curve.t_gates_qram),
            ("classical FLOPs", curve.flops),
        ):
            assert drawn[label][:, 0] == pytest.approx(curve.values)
            assert drawn[label][:, 1] == pytest.approx(values)
        marked = sum(len(xy) for label, xy in drawn.items() if label.startswith("dominated"))
        assert marked == len(curve.values)
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_markers_tell_what_dominates() -> None:
    names = ["copies", "runs", "queries_shortcut", "query_qroam"]
    curve = ScalingCurve("steps", [1.0, 2.0, 3.0, 4.0], [1.0] * 4, [1.0] * 4, [1.0] * 4, names)
    drawn = lines(plot_scaling([curve]).axes[0])
    where = {
        label.removeprefix("dominated by "): xy[:, 0].tolist()
        for label, xy in drawn.items()
        if label.startswith("dominated")
    }
    assert where == {
        "readout": [1.0],
        "post-selection": [2.0],
        "queries": [3.0],
        "loading": [4.0],
    }


def test_infinite_values_are_hatched_and_unknown_ones_left_out() -> None:
    window = WindowSize(10**7, 10**6, 100, kappa=1e4)
    figure = plot_scaling([scaling(window, "steps", [10, 100, 10**5], regime="exponential")])
    rendered(figure)
    axes: Any = figure.axes[0]
    (span,) = axes.patches
    assert (span.get_x(), span.get_x() + span.get_width()) == (100, 10**5)
    assert "classical FLOPs" not in lines(axes)
    assert axes.get_ylabel() == "T gates for one window"


def test_curves_without_any_end() -> None:
    window = WindowSize(10**7, 10**6, 100, kappa=math.inf)
    figure = plot_scaling([scaling(window, "active", [10**4, 10**6])])
    rendered(figure)
    assert len(figure.axes[0].patches) == 1


def test_no_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no curve"):
        plot_scaling([])


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_files_are_written(ending: str, tmp_path: Path) -> None:
    plot_ledger(ledger(WINDOW), tmp_path / f"ledger.{ending}")
    plot_scaling([scaling(WINDOW, "steps")], tmp_path / f"scaling.{ending}")
    assert (tmp_path / f"ledger.{ending}").stat().st_size > 5000
    assert (tmp_path / f"scaling.{ending}").stat().st_size > 5000
