"""Curves of runs as pictures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.running import BLUE, GREEN, SHADE, VERMILION, near, pixels
from torch_qsgd.records import WindowRecord
from torch_qsgd.report.curves import plot_curves
from torch_qsgd.training import Evaluation, History, WindowReport


def history(name: str, windows: bool, losses: tuple[float, ...] = (2.0, 1.0, 0.5)) -> History:
    marks = [Evaluation(10 * i, loss, 0.5) for i, loss in enumerate(losses)]
    record = WindowRecord(10, (1.0, 0.1), 1.0, 100, "length", None, None, 0.0)
    reports = [WindowReport(0, 10, marks[0], marks[1], 0.01, record)] if windows else []
    seen = [Evaluation(5, 1.5, 0.4, predicted=True)] if windows else []
    return History(name, sorted(marks + seen, key=lambda e: e.step), reports)


def test_a_run_without_windows_is_drawn_without_shades(tmp_path: Path):
    plot_curves([history("with", True)], tmp_path / "with.png")
    plot_curves([history("without", False)], tmp_path / "without.png")
    shaded, plain = pixels(tmp_path / "with.png"), pixels(tmp_path / "without.png")
    assert near(shaded, SHADE) > 10_000
    assert near(plain, SHADE) < 1_000
    assert min(near(shaded, BLUE), near(plain, BLUE)) > 100


def test_each_run_is_drawn_in_a_colour_of_its_own(tmp_path: Path):
    plot_curves([history("a", False), history("b", False, (3.0, 2.0, 1.5))], tmp_path / "two.png")
    colours = pixels(tmp_path / "two.png")
    assert min(near(colours, BLUE), near(colours, VERMILION)) > 100
    assert near(colours, GREEN) == 0


@pytest.mark.parametrize("losses", [(2.0,), (2.0, math.nan, 1.0), (math.nan,)])
def test_runs_that_are_short_or_diverge_are_drawn_too(tmp_path: Path, losses: tuple[float, ...]):
    plot_curves([history("a", False, losses)], tmp_path / "curves.png", "on digits")
    with Image.open(tmp_path / "curves.png") as picture:
        assert min(picture.size) > 500


@pytest.mark.parametrize(("suffix", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_the_picture_may_be_a_pdf_or_svg_file(tmp_path: Path, suffix: str, start: bytes):
    path = tmp_path / f"curves.{suffix}"
    plot_curves([history("a", True)], str(path))
    assert path.read_bytes().startswith(start)


def test_the_titles_and_names_of_runs_are_in_the_picture(tmp_path: Path):
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        plot_curves(
            [history("QuantumSGD", True)], tmp_path / "curves.svg", "resnet on digits", "nats"
        )
    text = (tmp_path / "curves.svg").read_text()
    wanted = ("resnet on digits", "QuantumSGD, predicted in mid-window", "upload", "download")
    for words in (*wanted, "SGD steps", "validation loss (nats)", "validation accuracy (%)"):
        assert f">{words}<" in text
