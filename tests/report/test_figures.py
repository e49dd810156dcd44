"""Figures as plain data: their numbers against closed forms, no browser needed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.report.sample import nasty, sample
from torch_qsgd.hessian import MonitorHistory, Spectrum
from torch_qsgd.hessian.dynamics import Dynamics
from torch_qsgd.hessian.history import SpectrumRecord, WindowSpan
from torch_qsgd.report import figures_ledger, figures_spectra, figures_training, figures_window
from torch_qsgd.report.figures import Figure, log_ticks, symlog, thinned
from torch_qsgd.report.html import sections
from torch_qsgd.report.palette import DARK
from torch_qsgd.resources import Entry, Ledger
from torch_qsgd.training import Evaluation, History


def everything() -> list[Figure]:
    return [figure for section in sections(sample()) for figure in section.figures]


def named(figure: Figure, name: str) -> dict[str, Any]:
    return next(trace for trace in figure.data if trace["name"] == name)


def spectrum(nodes: list[float], weights: list[float]) -> Spectrum:
    return Spectrum(
        nodes=np.array(nodes), weights=np.array(weights), exact=np.full(len(nodes), True),
        dimension=1000, lambda_min=min(nodes), lambda_min_bound=1e-9, lambda_max=max(nodes),
        lambda_max_bound=1e-9, trace=1.0, trace_error=1.0, resolution=1e-9, products=1, steps=1,
        probes=1, seconds=0.0, kind="hessian",
    )  # fmt: skip


def history(*steps: int, nodes: tuple[float, ...] = (-1.0, 2.0, 5.0), lr: float = 0.1) -> Any:
    """Windows of ten steps whose spectra have a quarter, a half and a quarter of the mass."""
    seen, dynamics = spectrum(list(nodes), [0.25, 0.5, 0.25]), Dynamics(lr)
    records = [
        SpectrumRecord(step, 0, "upload", seen, dynamics, 10, dynamics.best_window(seen))
        for step in steps
    ]
    return MonitorHistory(records, [WindowSpan(step, step + 10, "length") for step in steps])


# ---- All figures -------------------------------------------------------------------------------


def colours(value: Any) -> Iterator[str]:
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, (dict, list)):
            yield from colours(part)
        elif isinstance(part, str) and re.match(r"#[0-9A-Fa-f]{6}$|rgba?\(", part):
            yield part


@pytest.mark.parametrize("figure", everything(), ids=lambda figure: figure.key)
def test_a_figure_is_valid_has_units_and_can_be_dark(figure: Figure) -> None:
    go.Figure(data=figure.data, layout=figure.layout)  # Plotly's own check of every property
    json.dumps(figure.plain(), allow_nan=False)
    for name, axis in figure.layout.items():
        bare = axis.get("showticklabels") is False if isinstance(axis, dict) else True
        if name[1:5] == "axis" and axis.get("visible", True) and not bare:
            layers = "ticktext" in axis and figure.key == "pruning" and name == "yaxis"
            assert layers or axis["title"]["text"], name
    assert set(colours(figure.plain())) <= set(DARK)
    for frame in figure.frames:
        assert len(frame.data) == len(figure.data)
        merged = [{**a, **b} for a, b in zip(figure.data, frame.data, strict=True)]
        go.Figure(data=merged)


def test_every_figure_says_what_to_look_for() -> None:
    for figure in everything():
        assert figure.title
        assert figure.caption.endswith(".") or figure.key.startswith("ledger")


def test_names_are_escaped_for_plotly() -> None:
    drawn = {f.key: json.dumps(f.plain()) for s in sections(nasty()) for f in s.figures}
    for key in ("curves", "pruning", "ledger-2"):
        assert "&lt;/script&gt;" in drawn[key] or "&lt;/scr" in drawn[key]
        assert "<script" not in drawn[key]


# ---- Scales ------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=2), st.integers(-4, 2))
def test_the_symmetric_scale_keeps_order_and_sign(values: list[float], power: int) -> None:
    linear = 10.0**power
    places = symlog(sorted(values), linear)
    assert (np.diff(places) >= 0).all()
    assert (np.sign(places) == np.sign(sorted(values))).all()
    assert symlog(100 * linear, linear) == pytest.approx(3)


@given(st.floats(-30, 30), st.floats(0.05, 30))
def test_labels_of_a_logarithmic_axis_lie_on_it_and_are_few(low: float, span: float) -> None:
    ticks = log_ticks(low, low + span, 7)
    exponents = np.log10(ticks)
    assert len(ticks) <= 14
    assert ((exponents > low - 1e-9) & (exponents < low + span + 1e-9)).all()
    if span > 1:
        assert len(ticks) >= 2


@settings(max_examples=50)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=400), st.integers(8, 60))
def test_thinning_keeps_ends_and_extremes(values: list[float], most: int) -> None:
    kept = thinned(values, most)
    assert kept == sorted(set(kept))
    assert {0, len(values) - 1} <= set(kept)
    assert len(kept) <= max(most, len(values) if len(values) <= most else 0)
    chosen = [values[i] for i in kept]
    assert (min(chosen), max(chosen)) == (min(values), max(values))


# ---- Spectra and proxy -------------------------------------------------------------------------


def test_a_spectrum_has_its_mass_where_its_eigenvalues_lie() -> None:
    figure = figures_spectra.spectra(history(0, 10))
    assert figure is not None
    negative, positive = figure.data[:2]
    for trace, mass in ((negative, [(-1.0, 0.25)]), (positive, [(2.0, 0.5), (5.0, 0.25)])):
        places, shares = np.array(trace["x"]), np.array(trace["y"])
        assert (np.diff(places) > 0).all()
        for eigenvalue, share in mass:
            size = 1 + math.log10(abs(eigenvalue))  # linear up to 1, and a unit a decade on
            near = abs(places - math.copysign(size, eigenvalue)) < 0.1
            assert shares[near].sum() == pytest.approx(share, abs=0.02)
            peak = trace["customdata"][int(np.argmax(np.where(near, shares, 0)))]
            assert peak == pytest.approx(eigenvalue, rel=0.05)
    lines = {trace["name"]: trace["x"][0] for trace in figure.data[2:]}
    assert lines["λ_min = −1"] == -1
    assert lines["λ_max = 5"] == pytest.approx(1 + math.log10(5), rel=1e-4)
    bound = next(name for name in lines if name.startswith("2/η = 20"))
    assert lines[bound] == pytest.approx(1 + math.log10(20), rel=1e-4)
    assert figure.layout["xaxis"]["range"][1] > lines[bound]


def test_a_frame_a_spectrum_and_none_for_a_single_one() -> None:
    seen = history(0, 110, 220)
    failed = replace(seen.records[1], spectrum=None, error="NaN")
    seen.records[1] = failed
    figure = figures_spectra.spectra(seen)
    assert figure is not None
    assert [frame.label for frame in figure.frames] == ["upload at step 0", "upload at step 220"]
    assert "1 spectrum failed" in figure.caption
    assert "negative: 25 % of 1\u202f000 eigenvalues" in figure.frames[0].says
    alone = figures_spectra.spectra(history(0))
    assert alone is not None
    assert alone.frames == []
    assert alone.caption.startswith("Upload at step 0: λ from −1 to 5")
    assert figures_spectra.spectra(MonitorHistory([failed])) is None
    assert figures_spectra.proxy(MonitorHistory([failed])) is None


def test_a_bound_far_beyond_the_spectrum_is_named_only() -> None:
    figure = figures_spectra.spectra(history(0, lr=1e-4))
    assert figure is not None
    bound = figure.data[4]
    assert bound["x"] == [None]
    assert "beyond this picture" in bound["name"]
    assert figure.layout["xaxis"]["range"][1] < 5


def test_the_error_proxy_of_a_run_in_closed_form() -> None:
    figure = figures_spectra.proxy(history(0, 15))
    assert figure is not None
    steps, total = (named(figure, "P(t)")[k] for k in ("x", "y"))
    assert steps.count(None) == 2  # a gap after each window
    for step, height in zip(steps, total, strict=True):
        if step is not None:
            t = step if step <= 10 else step - 15
            expected = 0.25 * 1.1**t + 0.5 * 0.8**t + 0.25 * 0.5**t
            assert height == pytest.approx(expected, rel=1e-3)
    changes = [named(figure, f"change by {sign} modes")["y"] for sign in ("positive", "negative")]
    for height, *parts in zip(total, *changes, strict=True):
        assert height is None or 1 + sum(parts) == pytest.approx(height, rel=1e-4)
    assert named(figure, "upload")["x"] == [0, 15]
    assert named(figure, "download: length")["x"] == [10, 25]


def test_a_wide_range_is_said_and_what_is_near_zero_is_grey() -> None:
    seen = history(0, nodes=(-1.0, 0.0, 5.0))
    figure = figures_spectra.spectra(seen)
    assert figure is not None
    middle = named(figure, "of these, not told from zero")
    assert sum(middle["y"]) == pytest.approx(0.5, abs=0.3)
    assert max(map(abs, middle["x"])) < 0.2
    assert "in grey" in figure.caption
    wide = replace(seen.records[0].spectrum, weights=np.array([0.1, 0.8, 0.1]))
    seen.records[0] = replace(seen.records[0], spectrum=wide)
    figure = figures_spectra.spectra(seen)
    assert figure is not None
    assert "anywhere from 10 to 90 % of 1\u202f000 eigenvalues" in figure.caption
    plain = figures_spectra.spectra(history(0))
    assert plain is not None
    assert "in grey" not in plain.caption


def test_an_error_proxy_that_explodes_stays_readable() -> None:
    figure = figures_spectra.proxy(history(0, nodes=(-9e4, 2.0, 5.0)))
    assert figure is not None
    assert figure.layout["yaxis"]["type"] == "log"
    assert max(v for v in named(figure, "change by negative modes")["y"] if v is not None) < 60
    json.dumps(figure.plain(), allow_nan=False)


def test_the_error_proxy_of_one_spectrum_marks_its_best_window() -> None:
    seen = history(0)
    seen.windows = []
    figure = figures_spectra.proxy(seen)
    assert figure is not None
    best = seen.records[0].best_window
    assert named(figure, f"t* = {best}, where P is least")["x"] == [best, best]
    assert named(figure, "window of 10 steps")["x"] == [10, 10]
    total = named(figure, "P(t), all modes")
    lowest = total["x"][int(np.argmin(total["y"]))]
    assert abs(lowest - best) <= 1


# ---- Training ----------------------------------------------------------------------------------


def test_in_a_window_the_curve_is_flat_and_predictions_are_marks() -> None:
    report = sample()
    figure = figures_training.curves(report.runs)
    assert figure is not None
    run = report.runs[0]
    curve = named(figure, "QuantumSGD")
    for window in run.windows:
        heights = {
            y for x, y in zip(curve["x"], curve["y"], strict=True) if window.start < x < window.stop
        }
        assert heights == set()
        at_end = [y for x, y in zip(curve["x"], curve["y"], strict=True) if x == window.stop]
        assert at_end[0] == pytest.approx(window.before.loss, rel=1e-4)
        assert at_end[1] == pytest.approx(window.after.loss, rel=1e-4)
    seen = named(figure, "QuantumSGD, predicted in mid-window")
    assert seen["x"] == [e.step for e in run.evaluations if e.predicted]
    assert named(figure, "upload, QuantumSGD")["x"] == [w.start for w in run.windows]
    shades = [(shape["x0"], shape["x1"]) for shape in figure.layout["shapes"]]
    assert shades == [(w.start, w.stop) for w in run.windows]
    looks = {name: named(figure, name)["line"] for name in ("QuantumSGD", "SGD")}
    assert looks["SGD"]["dash"] != looks["QuantumSGD"]["dash"]


def test_a_dip_of_one_step_in_a_long_run_is_still_there() -> None:
    evaluations = [Evaluation(i, 1.0 + i % 7 * 1e-3, 0.9) for i in range(50_000)]
    evaluations[31_415] = Evaluation(31_415, 4.5, 0.12)
    figure = figures_training.curves([History("long", evaluations)])
    assert figure is not None
    loss, accuracy = figure.data
    assert len(loss["x"]) < 2_000
    assert max(loss["y"]) == 4.5
    assert min(accuracy["y"]) == 12
    assert "shapes" in figure.layout
    assert "Shaded" not in figure.caption


def test_without_classes_there_is_no_accuracy() -> None:
    run = History("regression", [Evaluation(i, -1.0 + i, math.nan) for i in range(3)])
    figure = figures_training.curves([run])
    assert figure is not None
    assert "accuracy" not in figure.title
    assert "yaxis2" not in figure.layout
    assert figure.layout["yaxis"].get("type") is None  # a loss below zero has no logarithm
    assert figures_training.curves([History("empty")]) is None


# ---- One window --------------------------------------------------------------------------------


def test_the_kink_floor_is_drawn_and_named() -> None:
    found = sample().truncation
    assert found is not None
    figure = figures_window.truncation(found)
    floor = named(figure, "kink floor: no order removes it")
    assert found.floor is not None
    assert floor["y"][-1] == pytest.approx(found.floor[-1], rel=1e-4)
    assert "relu, max_pool2d" in figure.caption
    smooth = figures_window.truncation(replace(found, floor=[0.0] * 100, kinks=[]))
    assert len(smooth.data) == 3
    assert "floor is zero" in smooth.caption
    unknown = figures_window.truncation(replace(found, floor=None, unfrozen=["sort"]))
    assert "could not be measured, for these cannot be held" in unknown.caption
    assert "pieces: sort." in unknown.caption
    assert "About 3×10⁻⁶ at the end" in figure.caption
    assert "precision" not in figures_window.truncation(replace(found, rounding=math.nan)).caption


def test_the_fitted_line_has_the_fitted_exponent() -> None:
    found = sample().conditioning
    assert found is not None
    figure = figures_window.conditioning(found)
    fit = named(figure, "fit: κ ∝ T^0.97 ± 0.012")
    slope = np.diff(np.log(fit["y"])) / np.diff(np.log(fit["x"]))
    assert slope[0] == pytest.approx(0.97, abs=1e-3)
    assert fit["x"] == [found.steps[4], found.steps[-1]]
    middle = np.mean(np.log(found.kappa[4:]))  # least squares go through the mean
    there = np.interp(np.mean(np.log(found.steps[4:])), np.log(fit["x"]), np.log(fit["y"]))
    assert there == pytest.approx(middle, abs=1e-3)
    hopeless = replace(found, kappa=[math.inf] * 8, exponent=math.nan)
    json.dumps(figures_window.conditioning(hopeless).plain(), allow_nan=False)


def test_pruning_shows_the_tensors_that_matter_most() -> None:
    found = sample().pruning
    assert found is not None
    layers = [replace(layer, name=f"{layer.name}.{i}") for i in range(5) for layer in found.layers]
    layers[33] = replace(layers[33], accuracy=0.01, name="the.worst")
    figure = figures_window.pruning(replace(found, layers=layers))
    assert figure is not None
    assert "the.worst" in figure.layout["yaxis"]["ticktext"]
    assert len(figure.data[0]["y"]) == 40
    assert "40 of 70 tensors" in figure.caption
    regression = replace(found, accuracy_dense=math.nan)
    figure = figures_window.pruning(regression)
    assert figure is not None
    rises = figure.data[2]["x"]
    assert rises == pytest.approx([layer.loss - found.loss_dense for layer in found.layers], 1e-4)


# ---- The ledger --------------------------------------------------------------------------------


def test_bars_have_their_names_units_and_values() -> None:
    ledger = sample().ledger
    assert ledger is not None
    drawn_keys: list[str] = []
    for figure in figures_ledger.bars(ledger):
        names = [note["text"].replace("<br>", " ") for note in figure.layout["annotations"]]
        entries = [
            next(e for e in ledger.entries if name in (e.quantity, f"{e.quantity}, {e.unit}"))
            for name in names
        ]
        alike = len({entry.unit for entry in entries}) == 1
        assert (entries[0].unit in figure.layout["xaxis"]["title"]["text"]) == alike
        drawn = [(y, x) for t in figure.data for x, y in zip(t["x"], t["y"], strict=True)]
        values = [x for _, x in sorted(drawn, reverse=True)]
        assert values == pytest.approx([entry.value for entry in entries], rel=1e-4)
        low, high = figure.layout["xaxis"]["range"]
        assert all(low < math.log10(x) < high for x in values)
        drawn_keys += [entry.key for entry in entries]
    solvers = {entry.key for entry in ledger.entries if entry.group == "queries"}
    assert {"copies", "runs", "query_qroam", "total_qroam", "flops"} | solvers <= {*drawn_keys}


def test_what_dominates_is_marked_without_colour_too() -> None:
    ledger = sample().ledger
    assert ledger is not None
    (marked,) = (
        trace
        for figure in figures_ledger.bars(ledger)
        for trace in figure.data
        if trace["name"] == "dominates the T gates"
    )
    assert marked["x"] == pytest.approx([ledger[ledger.dominant]], rel=1e-4)
    assert marked["marker"]["pattern"]["shape"] == "/"


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_an_entry_without_a_length_is_named(value: float) -> None:
    entry = Entry("a", "qubits", "a word or two " * 9, value, "", "", "", "")
    other = replace(entry, key="b", quantity="b", value=3.0)
    (figure,) = figures_ledger.bars(Ledger({}, [entry, other]))
    words, second = (note["text"] for note in figure.layout["annotations"])
    assert words.endswith({0.0: ": 0", math.inf: ": ∞"}.get(value, ": not known"))
    assert max(map(len, words.split("<br>"))) <= 46
    assert second == "b"
    assert figure.data[0]["x"] == [3.0]
    go.Figure(data=figure.data, layout=figure.layout)
    assert figures_ledger.bars(Ledger({}, [entry])) == []


def test_scaling_leaves_out_what_is_not_known() -> None:
    curve = sample().scaling[0]
    (figure,) = figures_ledger.scaling([curve])
    assert len(figure.data) == 3
    assert figure.data[0]["y"] == pytest.approx(curve.t_gates, rel=1e-4)
    assert figure.data[0]["x"] == pytest.approx(curve.values, rel=1e-4)
    (figure,) = figures_ledger.scaling([replace(curve, flops=[math.nan] * len(curve.values))])
    assert len(figure.data) == 2
