"""``train`` as its users meet it: what it prints and what it writes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.cli.running import (
    BLUE,
    GREEN,
    SHADE,
    TINY,
    VERMILION,
    Outcome,
    finals,
    near,
    pixels,
    train,
    tree,
)
from torch_qsgd.data import load_data
from torch_qsgd.hessian.history import MonitorHistory
from torch_qsgd.models import build_model

WINDOW_LINE = re.compile(
    r"^ *(\d+)–(\d+) +(\d+) +([\d.]+) → ([\d.]+) +([\d.]+)% +(\S+) +([\d,]+) *$", re.MULTILINE
)
TABLE_LINE = re.compile(
    r"^│ *(\S[^│]*?) *│ *([\d,]+) *│ *([\d.]+)% *│ *([\d.]+) *│ *([\d.]+)% *│ *(\d+) *│$",
    re.MULTILINE,
)


# ---- A comparison on the digits ------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    output = tmp_path_factory.mktemp("digits") / "new" / "folder"
    return train(output, "--data", "digits", *TINY, "--compare")


def test_a_comparison_has_three_runs_of_equal_length_from_one_start(digits: Outcome):
    runs = digits.runs
    assert [run["name"] for run in runs] == ["QuantumSGD", "masked SGD", "dense SGD"]
    assert {finals(run)["step"] for run in runs} == {10}
    assert len({json.dumps(run["evaluations"][0]) for run in runs}) == 1
    assert [(w["start"], w["stop"]) for w in runs[0]["windows"]] == [(0, 4), (6, 10)]
    assert not runs[1]["windows"]
    assert not runs[2]["windows"]
    assert digits.log["title"] == "resnet on digits"


def test_pruned_runs_keep_a_tenth_of_the_prunable_weights(digits: Outcome):
    weights = torch.load(digits.output / "model.pt", weights_only=True)
    model = build_model("resnet", 10, 1, width=8, depth=8)
    matrices = {n: p.numel() for n, p in model.named_parameters() if p.dim() > 1}
    vectors = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    kept = round(0.1 * sum(matrices.values()))
    assert sum(int(weights[n].count_nonzero()) for n in matrices) == kept
    assert [run["active"] for run in digits.runs] == [
        kept + vectors,
        kept + vectors,
        sum(p.numel() for p in model.parameters()),
    ]
    assert all(w["record"]["active"] == kept + vectors for w in digits.runs[0]["windows"])


def test_what_is_printed_of_each_window_is_what_the_log_holds(digits: Outcome):
    windows = digits.runs[0]["windows"]
    lines = WINDOW_LINE.findall(digits.stdout)
    assert len(lines) == len(windows) == 2
    for line, window in zip(lines, windows, strict=True):
        norms = window["record"]["jet_norms"]
        assert len(norms) == 2
        assert line == (
            str(window["start"]),
            str(window["stop"]),
            str(window["record"]["steps"]),
            f"{window['before']['loss']:.4f}",
            f"{window['after']['loss']:.4f}",
            f"{100 * window['error']:.2f}",
            f"{norms[1] / norms[0]:.2e}",
            f"{window['record']['active']:,}",
        )
        assert 0 < window["error"] < 1
        assert window["record"]["reason"] == "length"


def test_what_is_printed_at_the_end_is_what_the_log_holds(digits: Outcome):
    rows = TABLE_LINE.findall(digits.stdout)
    assert len(rows) == 3
    for row, run in zip(rows, digits.runs, strict=True):
        assert row == (
            run["name"],
            f"{run['active']:,}",
            f"{100 * run['active'] / run['total']:.1f}",
            f"{finals(run)['loss']:.4f}",
            f"{100 * finals(run)['accuracy']:.1f}",
            f"{run['seconds']:.0f}",
        )
    assert f"{digits.runs[0]['total']:,} parameters, 10 classes, seed 0" in digits.stdout
    for name in ("curves.png", "run.json", "model.pt"):
        assert str(digits.output / name) in digits.stdout


def test_the_saved_weights_give_the_final_loss_and_accuracy_of_the_log(digits: Outcome):
    model = build_model("resnet", 10, 1, width=8, depth=8)
    model.load_state_dict(torch.load(digits.output / "model.pt", weights_only=True))
    model.eval()
    loss, right = 0.0, 0
    with torch.no_grad():
        for images, labels in load_data("digits", batch_size=1).validation:
            outputs = model(images)
            loss += F.cross_entropy(outputs, labels, reduction="sum").item()
            right += int((outputs.argmax(1) == labels).sum())
    final = finals(digits.runs[0])
    assert final["loss"] == pytest.approx(loss / 360, rel=1e-5)
    assert final["accuracy"] == right / 360


def test_the_dense_run_is_plain_sgd_after_the_same_dense_start(digits: Outcome):
    torch.manual_seed(0)
    data = load_data("digits", batch_size=64)
    model = build_model("resnet", 10, 1, width=8, depth=8)
    for steps in (5, 10):  # the dense start, then the run, each on a new round of batches
        for _, (images, labels) in zip(range(steps), data.train, strict=False):
            model.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.01 * p.grad
    model.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(model(x), y, reduction="sum") for x, y in data.validation]
    final = finals(digits.runs[2])
    assert final["loss"] == pytest.approx(float(sum(losses)) / 360, rel=1e-5)


def test_the_curves_are_a_picture_with_every_run_and_window_in_it(digits: Outcome):
    with Image.open(digits.output / "curves.png") as picture:
        picture.verify()
    with Image.open(digits.output / "curves.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 500
    colours = pixels(digits.output / "curves.png")
    assert all(near(colours, c) > 100 for c in (BLUE, VERMILION, GREEN))
    assert near(colours, SHADE) > 10_000


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(
    digits: Outcome, tmp_path: Path
):
    again = train(tmp_path / "a", "--data", "digits", *TINY)
    other = train(tmp_path / "b", "--data", "digits", *TINY, "--seed", "1")
    assert again.runs[0]["windows"] == digits.runs[0]["windows"]
    assert other.runs[0]["windows"] != digits.runs[0]["windows"]


# ---- Other runs ----------------------------------------------------------------------------------


def test_an_image_tree_is_trained_on_at_order_1(tmp_path: Path):
    root = tree(tmp_path / "images")
    options = ["--batch-size", "4", "--order", "1", "--momentum", "0.9", "--norm", "group"]
    outcome = train(tmp_path / "out", "--data", str(root), *TINY, *options)
    (run,) = outcome.runs
    assert [w["record"]["steps"] for w in run["windows"]] == [4, 4]
    assert all(len(w["record"]["jet_norms"]) == 1 for w in run["windows"])
    assert all(math.isfinite(w["error"]) and w["error"] > 0 for w in run["windows"])
    assert "2 classes" in outcome.stdout
    model = build_model("resnet", 2, 3, width=8, depth=8, norm="group")
    model.load_state_dict(torch.load(outcome.output / "model.pt", weights_only=True))


def test_a_tolerance_ends_windows_early_and_infinity_never(tmp_path: Path):
    tight = train(tmp_path / "a", "--data", "digits", *TINY, "--tolerance", "1e-12")
    loose = train(tmp_path / "b", "--data", "digits", *TINY, "--tolerance", "inf")
    reasons = [[w["record"]["reason"] for w in o.runs[0]["windows"]] for o in (tight, loose)]
    assert reasons == [["tolerance"] * 2, ["length"] * 2]
    # The first step of a window has no second jet yet, so the second ends it.
    assert [w["record"]["steps"] for w in tight.runs[0]["windows"]] == [2, 2]


@pytest.mark.parametrize("pruning", ["snip", "synflow", "random", "erk"])
def test_every_way_to_choose_masks_can_be_asked_for(tmp_path: Path, pruning: str):
    options = ["--pruning", pruning, "--density", "0.3", "--eval-batches", "1"]
    outcome = train(tmp_path, "--data", "digits", *TINY, "--windows", "1", *options)
    model = build_model("resnet", 10, 1, width=8, depth=8)
    matrices = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    vectors = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert outcome.runs[0]["active"] == round(0.3 * matrices) + vectors


def test_solver_representation_and_readout_can_be_asked_for(tmp_path: Path):
    options = ["--order=1", "--representation=krylov", "--solver=qsvt", "--copies=1000"]
    outcome = train(tmp_path, "--data", "digits", *TINY, *options, "--eval-batches=1")
    for window in outcome.runs[0]["windows"]:
        record = window["record"]
        assert record["queries"] > 0
        assert 0 < record["success_probability"] < 1
        assert record["copies"] == 2000
        assert 0 < record["readout_error"] < 0.2
        assert 0 < record["solver_error"] <= 1e-3


def test_validation_can_be_cut_to_some_batches(tmp_path: Path):
    outcome = train(tmp_path, "--data", "digits", *TINY, "--eval-batches", "1")
    accuracies = {e["accuracy"] for e in outcome.runs[0]["evaluations"]}
    assert all(float(256 * a).is_integer() for a in accuracies)


SAME_RUN_THRICE = ["--window=0", "--density=1", "--windows=1", "--classical-steps=6", "--compare"]


@pytest.mark.parametrize(
    "augment",
    [
        "--no-augment",
        "--augment",
    ],
)
def test_all_arms_see_the_same_images(tmp_path: Path, augment: str):
    # Without windows and masks, all three arms are plain SGD: equal numbers, equal images.
    root = tree(tmp_path / "images")
    options = [*TINY, *SAME_RUN_THRICE, "--batch-size", "4", "--lr", "0.1", augment]
    runs = train(tmp_path / "out", "--data", str(root), *options).runs
    assert len(runs) == 3
    assert len(runs[0]["evaluations"]) == 7
    assert runs[0]["evaluations"] == runs[1]["evaluations"] == runs[2]["evaluations"]


# ---- The monitor ---------------------------------------------------------------------------------


def test_a_monitor_ends_windows_at_their_best_length_and_is_written_beside(tmp_path: Path):
    options = [*TINY, "--window=30", "--lr=0.2", "--tolerance=inf", "--eval-batches=1"]
    outcome = train(tmp_path, "--data", "digits", *options, "--monitor")
    history = MonitorHistory.load(tmp_path / "monitor.json")
    assert [record.taken for record in history.records] == ["upload", "upload"]
    windows = outcome.runs[0]["windows"]
    for record, window in zip(history.records, windows, strict=True):
        assert record.step == window["start"]
        assert record.spectrum is not None
        assert record.spectrum.dimension == window["record"]["active"]
        assert record.best_window == record.spectrum.best_window(0.2)
        assert window["record"]["steps"] == min(30, max(1, record.best_window))
    reasons = {window["record"]["reason"] for window in windows}
    assert "best window" in reasons
    (line,) = re.findall(r"(\d+) spectra, ([\d,]+) products, .* (\d+)% of the run", outcome.stdout)
    assert line[:2] == ("2", f"{history.products:,}")
    assert 0 < int(line[2]) < 100
    assert history.seconds < outcome.runs[0]["seconds"]
    colours = pixels(tmp_path / "monitor.png")
    assert sum(count for colour, count in colours.items() if colour != (255, 255, 255)) > 10_000


def test_a_monitor_that_ends_no_window_leaves_the_run_as_it_is(tmp_path: Path):
    # A window of one step has no earlier end.
    options = ["--data", "digits", *TINY, "--window=1", "--eval-batches=1"]
    plain = train(tmp_path / "plain", *options)
    watched = train(tmp_path / "watched", *options, "--monitor")
    assert {w["record"]["reason"] for w in watched.runs[0]["windows"]} == {"length"}
    assert watched.runs[0]["evaluations"] == plain.runs[0]["evaluations"]
    assert not (tmp_path / "plain" / "monitor.json").exists()
