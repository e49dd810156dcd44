"""``train`` with other losses, as JSON, and interrupted; what it leaves for ``report``."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress

from tests.cli.running import TINY, Outcome, assert_one_clear_line, finals, invoke, train
from tests.report.small import run as small_run
from torch_qsgd.cli.train_report import TrainReport, WindowLines
from torch_qsgd.data import load_data
from torch_qsgd.hessian import MonitorHistory
from torch_qsgd.models import build_model
from torch_qsgd.report.from_run import report_of_run

FEW = ["--data", "digits", *TINY, "--eval-batches", "1"]

MODULE = """
import torch
import torch.nn.functional as F

calls = 0

def tripled(outputs, labels):
    return 3 * F.cross_entropy(outputs, labels)

def interrupted(outputs, labels):
    global calls
    calls += torch.is_grad_enabled()
    if calls > {calls}:
        raise KeyboardInterrupt
    return F.cross_entropy(outputs, labels)

def interrupted_in_second_spectrum(outputs, labels):
    global calls
    calls += torch.is_grad_enabled()
    if calls > 11:
        raise KeyboardInterrupt
    return F.cross_entropy(outputs, labels)

def each(outputs, labels):
    return F.cross_entropy(outputs, labels, reduction="none")

def constant(outputs, labels):
    return torch.tensor(1.0)

def number(outputs, labels):
    return 1.0

def fails(outputs, labels):
    raise ArithmeticError("no such image")
"""


@pytest.fixture
def losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of losses in the current folder."""
    name = f"losses_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(calls=20))
    monkeypatch.chdir(tmp_path)
    yield name  # type: ignore[misc]
    sys.modules.pop(name, None)


# ---- Losses --------------------------------------------------------------------------------------


def test_squared_error_is_to_one_hot_labels_and_descended_by_every_arm(tmp_path: Path):
    outcome = train(tmp_path, "--data", "digits", *TINY, "--loss", "mse", "--compare")
    assert outcome.log["settings"]["loss"] == "mse"

    def squares(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        wanted = torch.zeros_like(outputs)
        wanted[torch.arange(len(labels)), labels] = 1
        return (outputs - wanted).square().sum() / outputs.numel()

    # The dense run is plain SGD on it, after the same dense start.
    torch.manual_seed(0)
    data = load_data("digits", batch_size=64)
    model = build_model("resnet", 10, 1, width=8, depth=8)
    for steps in (5, 10):
        for _, (images, labels) in zip(range(steps), data.train, strict=False):
            model.zero_grad()
            squares(model(images), labels).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.01 * p.grad
    model.eval()
    with torch.no_grad():
        found = [float(squares(model(x), y)) * len(y) for x, y in data.validation]
    dense = next(run for run in outcome.runs if run["name"] == "dense SGD")
    assert finals(dense)["loss"] == pytest.approx(sum(found) / 360, rel=1e-5)

    # And the windows follow masked SGD on it.
    assert all(0 < window["error"] < 0.05 for window in outcome.runs[0]["windows"])
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    model.load_state_dict(weights)
    with torch.no_grad():
        found = [float(squares(model(x), y)) * len(y) for x, y in data.validation]
    assert finals(outcome.runs[0])["loss"] == pytest.approx(sum(found) / 360, rel=1e-5)


def test_a_loss_class_by_its_module_is_the_loss_by_its_name(tmp_path: Path):
    named = train(tmp_path / "a", *FEW)
    given = train(tmp_path / "b", *FEW, "--loss", "torch.nn:CrossEntropyLoss")
    assert given.runs[0]["windows"] == named.runs[0]["windows"]
    assert given.runs[0]["evaluations"] == named.runs[0]["evaluations"]


def test_the_monitor_is_of_the_loss_that_is_trained(tmp_path: Path, losses: str):
    spectra = []
    for loss in ("cross-entropy", f"{losses}:tripled"):
        folder = tmp_path / loss.replace(":", "-")
        train(folder, *FEW, "--monitor", "--loss", loss, "--warmup", "0", "--windows", "1")
        (record,) = MonitorHistory.load(folder / "monitor.json").records
        assert record.spectrum is not None
        spectra.append(record.spectrum)
    assert spectra[1].lambda_max == pytest.approx(3 * spectra[0].lambda_max, rel=1e-3)
    assert spectra[1].lambda_min == pytest.approx(3 * spectra[0].lambda_min, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("each", r"must return the mean loss .* it returns a tensor of shape \(2,\)$"),
        ("constant", r"must return the mean loss .* it returns a constant$"),
        ("number", r"must return the mean loss .* it returns float$"),
        ("fails", r"fails on images of shape \(1, 8, 8\): ArithmeticError: no such image$"),
        ("tripeld", r"has no 'tripeld'; did you mean 'tripled'\?$"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_refused_before_training(
    tmp_path: Path, losses: str, name: str, message: str
):
    outcome = invoke(tmp_path / "out", *FEW, "--loss", f"{losses}:{name}")
    assert_one_clear_line(outcome, message)
    assert not outcome.output.exists()


def test_an_unknown_loss_is_refused_with_the_nearest_one(tmp_path: Path):
    outcome = invoke(tmp_path / "out", *FEW, "--loss", "cross_entropy")
    assert_one_clear_line(outcome, r"known: cross-entropy, mse, .*; did you mean 'cross-entropy'\?")


def test_trying_the_loss_changes_no_number_of_the_run(tmp_path: Path):
    # The images and the running statistics are those of a loop that tries nothing.
    outcome = train(tmp_path, *FEW, "--warmup", "0", "--windows", "1", "--norm", "batch")
    torch.manual_seed(0)
    data = load_data("digits", batch_size=64)
    model = build_model("resnet", 10, 1, width=8, depth=8, norm="batch").eval()
    images, labels = next(iter(data.validation))
    with torch.no_grad():
        loss = float(F.cross_entropy(model(images), labels))
    assert outcome.runs[0]["evaluations"][0]["loss"] == pytest.approx(loss, rel=1e-6)


# ---- JSON ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def as_json(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return train(tmp_path_factory.mktemp("json"), *FEW, "--json", "--tolerance=inf", "--lr=0.02")


def test_json_is_alone_on_stdout_and_tables_are_on_stderr(as_json: Outcome):
    printed: dict[str, Any] = json.loads(as_json.stdout)
    files = printed.pop("files")
    assert printed == as_json.log
    assert {name: Path(path).name for name, path in files.items()} == {
        "curves": "curves.png",
        "log": "run.json",
        "weights": "model.pt",
    }
    assert all(Path(path).is_file() for path in files.values())
    for words in ("error vs SGD", "At the end, on the validation images", "QuantumSGD"):
        assert words in as_json.stderr


def test_the_log_tells_what_its_numbers_depend_on(as_json: Outcome):
    settings = as_json.log["settings"]
    assert settings["lr"] == 0.02
    assert (settings["window"], settings["windows"], settings["seed"]) == (4, 2, 0)
    assert settings["tolerance"] == "inf"
    assert not {"output", "json", "workers"} & set(settings)
    assert list(settings)[:2] == ["data", "model"]
    assert as_json.log["facts"]["classes"] == 10
    assert as_json.log["complete"] is True


def test_the_report_command_is_shown_and_reads_the_folder(as_json: Outcome):
    assert f"report: torch-qsgd report {as_json.output}" in as_json.stderr
    report = report_of_run(as_json.output)
    assert report.complete
    assert report.settings["data"] == "digits"
    assert [w.stop for w in report.runs[0].windows] == [4, 10]
    assert report.runs[0].windows[1].error == as_json.runs[0]["windows"][1]["error"]


def test_an_accuracy_that_is_not_known_is_a_dash_and_no_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    history = small_run(accuracy=math.nan)
    with Progress(console=Console(width=120)) as progress:
        WindowLines(progress).window(replace(history.windows[0], error=math.nan))
    report = TrainReport(
        Console(width=120), tmp_path, False, "t", {}, {}, [history], {"QuantumSGD": 1}
    )
    report.write(torch.nn.Linear(1, 1), None)
    printed = capsys.readouterr().out
    assert re.search(r"0\.6667 → 0\.1176 +– ", printed)
    assert re.search(r"│ QuantumSGD │ +1,234 │ +10\.0% │ 0\.1176 │ +– │ +1 │", printed)
    assert "nan" not in printed
    assert (
        json.loads((tmp_path / "run.json").read_text())["runs"][0]["evaluations"][0]["accuracy"]
        is None
    )
    assert math.isnan(report_of_run(tmp_path).runs[0].final.accuracy)
    assert (tmp_path / "curves.png").is_file()


# ---- Interrupted ---------------------------------------------------------------------------------


def test_ctrl_c_leaves_what_was_measured_and_a_report_that_says_so(tmp_path: Path, losses: str):
    # The loss is what is interrupted, after the first window's steps and some of the second's.
    options = [*FEW, "--warmup", "2", "--windows", "9", "--loss", f"{losses}:interrupted"]
    outcome = invoke(tmp_path / "out", *options, "--json")
    assert outcome.code == 130
    assert "interrupted: what was measured so far is kept" in outcome.stderr
    printed = json.loads(outcome.stdout)
    assert printed["complete"] is False
    assert 1 <= len(printed["runs"][0]["windows"]) < 9
    for name in ("curves.png", "model.pt"):
        assert (outcome.output / name).is_file()
    report = report_of_run(outcome.output)
    assert not report.complete
    assert any("interrupted" in note for note in report.notes)
    assert re.search(r"Windows of QuantumSGD", report.to_markdown())


def test_ctrl_c_within_the_spectrum_of_an_upload_leaves_all_that_was_measured(
    tmp_path: Path, losses: str
):
    options = [*FEW, "--warmup=2", "--windows=3", "--monitor"]
    loss = f"{losses}:interrupted_in_second_spectrum"
    outcome = invoke(tmp_path / "out", *options, "--loss", loss, "--json")
    assert outcome.code == 130, outcome.exception
    history = MonitorHistory.load(outcome.output / "monitor.json")
    assert (len(history.records), len(history.windows)) == (1, 2)  # as is meant
    assert json.loads(outcome.stdout)["complete"] is False
    for name in ("curves.png", "monitor.png", "model.pt", "run.json"):
        assert (outcome.output / name).stat().st_size > 0
    assert invoke(outcome.output, str(outcome.output), command="report").code == 0
    assert "</html>" in (outcome.output / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("picture", ["curves.png", "monitor.png"])
def test_a_picture_that_fails_loses_nothing_else(tmp_path: Path, picture: str):
    (tmp_path / picture).mkdir()
    options = ["--warmup=2", "--windows=1", "--monitor", "--json"]
    outcome = invoke(tmp_path, *FEW, *options)
    assert isinstance(outcome.exception, IsADirectoryError), outcome.exception
    files = {"curves.png", "monitor.png", "monitor.json", "model.pt", "run.json"}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == files - {picture}
    assert len(json.loads(outcome.stdout)["files"]) == len(files) - 1
    assert report_of_run(tmp_path).complete
