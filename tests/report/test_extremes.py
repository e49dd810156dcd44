"""Numbers at the ends of what a float holds: no figure takes the page down."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from tests.report.sample import sample
from tests.report.test_figures import history, named
from torch_qsgd.hessian.history import SpectrumRecord
from torch_qsgd.report import figures_spectra, figures_window
from torch_qsgd.report.content import Report
from torch_qsgd.report.figures import log_axis, rounded, symlog, tick
from torch_qsgd.report.html import page, sections

EXTREMES = (2e307, 1.7976931348623157e308, math.inf, 1e-320, 5e-324, 0.0, -2e307, math.nan)


def replaced(value: Any, extreme: float, every: int, counter: list[int]) -> Any:
    """The same with one in so many of all floats replaced."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {
            f.name: replaced(getattr(value, f.name), extreme, every, counter)
            for f in dataclasses.fields(value)
        }
        return type(value)(**parts)
    if isinstance(value, (list, tuple)):
        return type(value)(replaced(part, extreme, every, counter) for part in value)
    if isinstance(value, dict):
        return {key: replaced(part, extreme, every, counter) for key, part in value.items()}
    if isinstance(value, float):
        counter[0] += 1
        return extreme if counter[0] % every == 0 else value
    return value


def extreme_report(extreme: float, every: int) -> Report:
    """The sample with extreme numbers in every part but the spectra, which have limits."""
    report = sample()
    for part in dataclasses.fields(Report):
        if part.name not in ("monitor", "seconds"):
            given = replaced(getattr(report, part.name), extreme, every, [0])
            setattr(report, part.name, given)
    return report


@pytest.mark.parametrize("every", [1, 2, 7])
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extreme_numbers_leave_all_figures(extreme: float, every: int) -> None:
    report = extreme_report(extreme, every)
    for section in sections(report):
        for figure in section.figures:
            json.dumps(figure.plain(), allow_nan=False)
            go.Figure(data=figure.data, layout=figure.layout)
    assert "</html>" in page(report)


@pytest.mark.parametrize("size", [1e307, 1e150, 1e-150, 1e-307, 1e-320])
def test_extreme_spectra_leave_all_figures(size: float) -> None:
    report = sample()
    assert report.monitor is not None

    def grown(record: SpectrumRecord) -> SpectrumRecord:
        found = record.spectrum
        assert found is not None
        scale = size / float(np.abs(found.nodes).max())
        spectrum = dataclasses.replace(
            found,
            nodes=found.nodes * scale,
            lambda_min=found.lambda_min * scale,
            lambda_max=found.lambda_max * scale,
        )
        return dataclasses.replace(record, spectrum=spectrum)

    report.monitor.records = [grown(record) for record in report.monitor.records]
    found = {f.key: f for s in sections(report) for f in s.figures}
    assert {"spectra", "proxy"} <= set(found)
    for key in ("spectra", "proxy"):
        json.dumps(found[key].plain(), allow_nan=False)


@pytest.mark.parametrize("values", [[1.0, 1.7e308], [5e-324, 1.7e308], [5e-324], [1.7e308]])
def test_a_logarithmic_axis_labels_what_a_float_holds(values: list[float]) -> None:
    axis = log_axis("κ", values)
    labels = axis.get("tickvals", [1.0])
    assert all(0 < value < math.inf for value in labels)
    assert all(math.isfinite(end) for end in axis["range"])
    assert "10⁻³²³" in tick(9e-324, True)


def test_rounding_does_not_make_the_largest_number_infinite() -> None:
    assert rounded([1.7976931348623157e308]) == [1.7976931348623157e308]
    assert symlog([1.7e308], 1e-4)[0] == pytest.approx(1 + 4 + math.log10(1.7e308))


def test_an_error_proxy_that_hardly_changes_is_no_staircase() -> None:
    figure = figures_spectra.proxy(history(0, nodes=(1e-7, 2e-6, 5e-6)))
    assert figure is not None
    total = [height for height in named(figure, "P(t)")["y"] if height is not None]
    assert (np.diff(total) < 0).all()
    assert 1 - 1e-4 < min(total) < max(total) == 1


def test_rows_of_zeros_have_marks_at_the_bottom() -> None:
    found = sample().rows
    assert found is not None
    nonzeros, effective = [0, 40, 0, 9], [0, 4, 0, 3]
    figure = figures_window.rows(dataclasses.replace(found, nonzeros=nonzeros, effective=effective))
    assert figure is not None
    zeros = named(figure, "rows of zeros, drawn at the bottom")
    assert zeros["x"] == [3, 4]
    assert all(0 < height < 3 for height in zeros["y"])
    assert 10 ** figure.layout["yaxis"]["range"][0] < zeros["y"][0]
    assert len(figures_window.rows(found).data) == len(figure.data) - 1  # type: ignore[union-attr]
