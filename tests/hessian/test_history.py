"""A monitor's history: what it holds, files, pictures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from torch_qsgd.hessian.dynamics import Dynamics
from torch_qsgd.hessian.history import MonitorHistory, SpectrumRecord, WindowSpan
from torch_qsgd.hessian.spectrum import Spectrum


def spectrum(*nodes: float) -> Spectrum:
    n = len(nodes)
    return Spectrum(
        nodes=np.array(sorted(nodes)),
        weights=np.full(n, 1 / n),
        exact=np.full(n, True),
        dimension=n,
        lambda_min=min(nodes),
        lambda_min_bound=1e-9,
        lambda_max=max(nodes),
        lambda_max_bound=1e-9,
        trace=sum(nodes),
        trace_error=math.inf,
        resolution=1e-9,
        products=n,
        steps=n,
        probes=1,
        seconds=0.1,
        kind="hessian",
    )


def record(step: int, window_step: int, *nodes: float, **facts: Any) -> SpectrumRecord:
    dynamics = Dynamics(0.1, 0.5)
    seen = spectrum(*nodes) if nodes else None
    known: dict[str, Any] = {"taken": "window" if window_step else "upload", "window": 20, **facts}
    if seen is not None:
        known["best_window"] = dynamics.best_window(seen)
        known["negative_mass"] = seen.negative_mass
        known["proxy"] = dynamics.error_proxy(seen, known["window"]).total
    return SpectrumRecord(
        step=step, window_step=window_step, spectrum=seen, dynamics=dynamics, **known
    )


def example() -> MonitorHistory:
    """Four windows: a convex one, a saddle with a spectrum inside, a failure, one still open."""
    return MonitorHistory(
        records=[
            record(0, 0, 4.0, 1.0, 0.3, products=3, seconds=0.5),
            record(20, 0, taken="download", error="DivergenceError: NaN"),
            record(24, 0, 5.0, 1.0, -0.2, products=3),
            record(29, 5, 7.0, 1.0, -0.9, jet_ratio=0.25),
            record(40, 0, error="DivergenceError: NaN", taken="upload"),
            record(64, 0, 6.0, 0.0, -0.1),
        ],
        windows=[
            WindowSpan(0, 20, "length"),
            WindowSpan(24, 32, "best window", triggered=True),
            WindowSpan(40, 60, "length"),
            WindowSpan(64),
        ],
        seconds=2.0,
        elapsed=8.0,
    )


# ---- History --------------------------------------------------------------------------------


def test_its_sums() -> None:
    history = example()
    assert history.products == 6
    assert history.share == 0.25
    assert MonitorHistory().share == 0


def test_windows_are_split_where_the_spectrum_that_judges_them_changes() -> None:
    found = [(s.start, r.step, t) for s, r, t in example().segments()]
    assert found == [(0, 0, 20), (24, 24, 5), (24, 29, 8), (40, 40, 20), (64, 64, 0)]


def test_a_window_whose_first_spectrum_was_interrupted_is_passed_over(tmp_path: Path) -> None:
    history = example()
    known = [(s.start, r.step, t) for s, r, t in history.segments()]
    for start in (70, 80):  # as two runs leave it, that were interrupted and went on
        history.windows.append(WindowSpan(start))
    found = [(s.start, r.step, t) for s, r, t in history.segments()]
    assert found == [*known[:-1], (64, 64, 6)]  # the window before lasted until the next
    figure = history.plot(tmp_path / "history.png")
    assert (tmp_path / "history.png").stat().st_size > 20_000
    (uploads,) = [line for line in figure.axes[1].lines if line.get_label() == "upload"]
    assert list(uploads.get_xdata()) == [0, 24, 40, 64, 70, 80]


def test_a_history_makes_the_round_trip_through_a_file(tmp_path: Path) -> None:
    history = example()
    history.records.append(record(80, 0, 1e5, 1.0, window=10**6))
    assert math.isinf(history.records[0].best_window)
    assert math.isinf(history.records[-1].proxy)
    path = tmp_path / "history.json"
    history.save(path)
    json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN or Infinity
    again = MonitorHistory.load(path)
    assert again.windows == history.windows
    assert (again.seconds, again.elapsed) == (history.seconds, history.elapsed)
    for a, b in zip(history.records, again.records, strict=True):
        assert a.to_json() == b.to_json()
        assert a.dynamics == b.dynamics
        np.testing.assert_equal([a.proxy, a.negative_mass], [b.proxy, b.negative_mass])
        if a.spectrum is not None and b.spectrum is not None:
            assert np.array_equal(a.spectrum.nodes, b.spectrum.nodes)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "no monitor's history"),
        ('{"format": "torch_qsgd.MonitorHistory", "version": 9}', "version 9"),
        ("not JSON", "history.json"),
        ('{"format": "torch_qsgd.MonitorHistory", "version": 1}', "lacks 'records'"),
    ],
)
def test_files_that_hold_no_history(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "history.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as raised:
        MonitorHistory.load(path)
    assert str(path) in str(raised.value)


def test_the_picture_shows_spectra_windows_and_reasons(tmp_path: Path) -> None:
    path = tmp_path / "history.png"
    figure = example().plot(path, title="title")
    assert path.stat().st_size > 20_000
    upper, lower, parts = figure.axes[:3]
    assert upper.get_yscale() == "symlog"
    assert "loss / weight²" in upper.get_ylabel()
    assert parts.get_xlabel() == "SGD steps"
    labels = [text.get_text() for text in lower.get_legend().get_texts()]
    assert labels.count("upload") == 1
    assert "download: best window (trigger)" in labels
    assert "download: length" in labels
    assert labels.count("classical steps") == 1
    assert "2(1 + μ)/η, a step amplifies above" in [
        t.get_text() for t in upper.get_legend().get_texts()
    ]
    assert "spectrum failed" in [t.get_text() for t in upper.get_legend().get_texts()]
    # The curve of the first window is P(t) in closed form.
    curve = next(line for line in lower.lines if line.get_label() == "P(t) of the latest spectrum")
    times, heights = curve.get_data()
    factors = Dynamics(0.1, 0.5).multipliers([4.0, 1.0, 0.3])
    np.testing.assert_allclose(heights, [np.mean(factors**t) for t in times], rtol=1e-12)
    # All of it lies in the frame, and so does the split by sign, which adds up to P − 1.
    solid = [line for line in lower.lines if line.get_linestyle() == "-"]
    pairs = [line for line in parts.lines if len(line.get_xdata()) > 2]
    assert len(pairs) == 2 * len(solid) == 6  # the failed spectrum, and that without a step, not
    for curve, positive, negative in zip(solid, pairs[::2], pairs[1::2], strict=True):
        changes = positive.get_ydata() + negative.get_ydata()
        np.testing.assert_allclose(curve.get_ydata(), 1 + changes, atol=1e-12)
        assert (negative.get_ydata() >= 0).all()
    for axes, lines in ((lower, solid), (parts, pairs)):
        low, high = axes.get_ylim()
        assert all(low <= y <= high for line in lines for y in line.get_ydata())
    assert np.ptp(pairs[3].get_ydata()) > 0


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_picture_names_only_what_it_shows(momentum: float) -> None:
    history = MonitorHistory([record(0, 0, 4.0, 1.0)], [WindowSpan(0, 9, "length")])
    small = Dynamics(1e-9, momentum)  # 2/η lies far beyond all eigenvalues
    history.records = [replace(history.records[0], dynamics=small)]
    upper, lower = history.plot().axes[:2]
    named = [t.get_text() for t in upper.get_legend().get_texts()]
    assert named == ["largest eigenvalue", "least eigenvalue"]
    named = [t.get_text() for t in lower.get_legend().get_texts()]
    assert "P(t) beyond the window" not in named
    assert "classical steps" not in named


def test_a_cut_keeps_what_was_before() -> None:
    history = example()
    history.cut(24)
    assert [(r.step, r.taken) for r in history.records] == [(0, "upload"), (20, "download")]
    assert history.windows == [WindowSpan(0, 20, "length")]
    assert (history.seconds, history.elapsed, history.last_step) == (2.0, 8.0, 20)
    history = example()
    history.cut(30)
    assert [r.step for r in history.records] == [0, 20, 24, 29]
    assert history.windows[-1] == WindowSpan(24)  # it goes on, in another run
    history.cut(20)
    assert [r.step for r in history.records] == [0, 20]
    history.cut(0)
    assert history.records == history.windows == []
    assert history.last_step == 0


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(ValueError, match="no spectrum"):
        MonitorHistory([record(0, 0, error="failed")]).plot()
