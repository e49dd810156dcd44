"""Reports of training runs, from the files of real runs and from damaged ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.report.small import monitor, run
from tests.report.test_content import leaves, places
from torch_qsgd.cli.common import write_json
from torch_qsgd.hessian import DissipativityMonitor
from torch_qsgd.optim import QuantumSGD
from torch_qsgd.report.content import Report
from torch_qsgd.report.from_run import report_of_run
from torch_qsgd.training import History, endless, train


def log(*runs: History, **parts: Any) -> dict[str, Any]:
    plain = [{**one.to_json(), "seconds": 1.5} for one in runs]
    return {"title": "a model on data", "complete": True, "runs": plain, **parts}


def written(folder: Path, plain: Any) -> Path:
    folder.mkdir(exist_ok=True)
    write_json(folder / "run.json", plain)
    return folder


@pytest.fixture(scope="module")
def trained() -> tuple[History, DissipativityMonitor]:
    """A regression, so that there is no accuracy, with a monitor."""
    generator = torch.Generator().manual_seed(0)
    draw = {"dtype": torch.float64, "generator": generator}
    data = [(torch.randn(8, 4, **draw), torch.randn(8, 2, **draw)) for _ in range(3)]  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    loss = nn.functional.mse_loss
    optimizer = QuantumSGD(
        model.parameters(), lr=0.05, density=0.5, window=4, order=2, classical_steps=1,
        model=model, loss_fn=loss,
    )  # fmt: skip
    watcher = DissipativityMonitor(optimizer, model, loss, data[:1], jet_ratio=None)
    history = train(
        "QuantumSGD", model, loss, optimizer, endless(data), data, steps=9, every=2, windows=2
    )
    watcher.detach()
    return history, watcher


# ---- Whole runs ----------------------------------------------------------------------------------


def test_a_run_comes_back_from_its_files(
    tmp_path: Path, trained: tuple[History, DissipativityMonitor]
):
    history, watcher = trained
    assert len(history.windows) == 2
    assert math.isnan(history.final.accuracy)
    written(tmp_path, log(history, run("dense SGD")))
    watcher.history.save(tmp_path / "monitor.json")
    report = report_of_run(tmp_path)
    assert (report.kind, report.title) == ("training run", "a model on data")
    assert report.complete
    assert list(leaves(report.runs)) == list(leaves([history, run("dense SGD")]))
    assert report.monitor is not None
    assert list(leaves(report.monitor)) == list(leaves(watcher.history))
    assert report.seconds == 3.0
    assert report.facts == {"seconds of QuantumSGD": 1.5, "seconds of dense SGD": 1.5}
    assert report.truncation is None
    assert report.verdicts == {}
    assert any(f"{len(watcher.history.records)} spectr" in note for note in report.notes)


def test_it_can_be_written_and_read_as_any_report(
    tmp_path: Path, trained: tuple[History, DissipativityMonitor]
):
    report = report_of_run(str(written(tmp_path, log(trained[0]))))
    report.save(tmp_path / "report.json")
    assert list(leaves(Report.load(tmp_path / "report.json"))) == list(leaves(report))
    assert "Windows of QuantumSGD" in report.to_markdown()
    assert "<html" in report.to_html()


def test_facts_and_settings_of_the_log_are_kept(tmp_path: Path):
    parts = {"facts": {"classes": 10}, "settings": {"lr": 0.1, "loss": "mse", "width": None}}
    report = report_of_run(written(tmp_path, log(run(), **parts)))
    assert report.settings == parts["settings"]
    assert report.facts["classes"] == 10


# ---- Runs that did not end -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("complete", "note"),
    [(False, "was interrupted"), (None, "does not say"), ("yes", "was interrupted")],
)
def test_a_run_that_was_interrupted_or_may_have_been_is_incomplete(
    tmp_path: Path, complete: Any, note: str
):
    report = report_of_run(written(tmp_path, log(run(), complete=complete)))
    assert not report.complete
    assert sum(note in line for line in report.notes) == 1
    assert "**Incomplete**" in report.to_markdown()


def test_a_run_without_windows_says_so(tmp_path: Path):
    history = run()
    history.windows.clear()
    report = report_of_run(written(tmp_path, log(history)))
    assert any("No window was finished" in note for note in report.notes)
    whole = report_of_run(written(tmp_path / "whole", log(run())))
    assert not any("No window" in note for note in whole.notes)


def test_a_run_that_measured_nothing_is_still_a_report(tmp_path: Path):
    report = report_of_run(written(tmp_path, log(History("QuantumSGD"), complete=False)))
    assert report.runs[0].evaluations == []
    assert "QuantumSGD" in report.to_markdown()


def test_numbers_that_overflowed_are_unknown_and_no_error(tmp_path: Path):
    history = run()
    plain = log(history)
    plain["runs"][0]["evaluations"][2]["loss"] = math.inf
    plain["runs"][0]["windows"][0]["error"] = math.nan
    plain["runs"][0]["windows"][0]["record"]["jet_norms"] = [math.inf, 1.0]
    plain["runs"][0]["seconds"] = math.nan
    report = report_of_run(written(tmp_path, plain))
    assert math.isnan(report.runs[0].final.loss)
    assert math.isnan(report.runs[0].windows[0].error)
    assert math.isnan(report.runs[0].windows[0].record.jet_norms[0])
    assert report.runs[0].windows[0].record.predicted_loss is None
    assert report.seconds == 0.0
    json.dumps(report.to_json(), allow_nan=False)
    report.to_markdown()


# ---- Files that are missing or damaged -----------------------------------------------------------


@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_folder_without_a_log_is_refused_with_what_to_give(tmp_path: Path, folder: str):
    with pytest.raises(ValueError, match=r"holds no run\.json: give the folder that `torch-qsgd"):
        report_of_run(tmp_path / folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"runs": {}}',
        '{"runs": []}',
        '{"runs": [3]}',
        '{"runs": [{}]}',
        "\xff",
    ],
    ids=str,
)
def test_a_damaged_log_is_named(tmp_path: Path, text: str):
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"run\.json is no log of a training run, or damaged: "):
        report_of_run(tmp_path)


@pytest.mark.parametrize("wrong", ["x", [1], {"a": 1}, True, 1e400, None, -1, 0.5], ids=str)
def test_damage_at_any_place_is_refused_or_can_be_shown(tmp_path: Path, wrong: Any):
    original = json.loads(json.dumps(log(run(), facts={"a": 1}, settings={})))
    refused = 0
    for place in places(original):
        plain = json.loads(json.dumps(original))
        inner = plain
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = wrong
        (tmp_path / "run.json").write_text(json.dumps(plain))
        try:
            report = report_of_run(tmp_path)
        except ValueError as error:
            message = str(error)
            refused += "is no log of a training run, or damaged: " in message
            continue
        assert report.to_markdown().startswith("# ")
    assert refused > 5


@pytest.mark.parametrize("name", ["name", "evaluations", "windows", "active", "total"])
def test_a_part_that_is_missing_is_named(tmp_path: Path, name: str):
    plain = log(run())
    del plain["runs"][0][name]
    with pytest.raises(ValueError, match=rf"run\.json .* damaged: .*{name}"):
        report_of_run(written(tmp_path, plain))


@pytest.mark.parametrize(
    "text", ["", "{}", '{"format": "torch_qsgd.MonitorHistory", "version": 1}']
)
def test_a_damaged_monitor_is_named(tmp_path: Path, text: str):
    written(tmp_path, log(run()))
    (tmp_path / "monitor.json").write_text(text)
    with pytest.raises(ValueError, match=r"monitor\.json: "):
        report_of_run(tmp_path)


def test_spectra_that_failed_are_kept(tmp_path: Path):
    monitor().save(written(tmp_path, log(run())) / "monitor.json")
    report = report_of_run(tmp_path)
    assert report.monitor is not None
    assert [record.error for record in report.monitor.records] == ["", "it | diverged"]


def test_text_is_no_number(tmp_path: Path):
    plain = log(run())
    plain["runs"][0]["evaluations"][0]["loss"] = "0.5"
    with pytest.raises(
        ValueError, match=r"runs\[0\]\.evaluations\[0\]\.loss must be a number, got '0\.5'"
    ):
        report_of_run(written(tmp_path, plain))
