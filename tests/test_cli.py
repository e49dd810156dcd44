"""The command line as its users meet it: what it prints, what it writes, and how it complains."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from typer.testing import CliRunner

from torch_qsgd.cli import app
from torch_qsgd.data import load_data
from torch_qsgd.models import build_model
from torch_qsgd.records import WindowRecord
from torch_qsgd.report.curves import plot_curves
from torch_qsgd.training import Evaluation, History, WindowReport

TINY = ["--width=8", "--depth=8", "--window=4", "--windows=2", "--warmup=5", "--classical-steps=2"]
WINDOW_LINE = re.compile(
    r"^ *(\d+)–(\d+) +(\d+) +([\d.]+) → ([\d.]+) +([\d.]+)% +(\S+) +([\d,]+) *$", re.MULTILINE
)
TABLE_LINE = re.compile(
    r"^│ *(\S[^│]*?) *│ *([\d,]+) *│ *([\d.]+)% *│ *([\d.]+) *│ *([\d.]+)% *│ *(\d+) *│$",
    re.MULTILINE,
)

#: Blue, vermilion and green of the three runs, and blue at 8 % over white, of the windows.
BLUE, VERMILION, GREEN, SHADE = (0, 114, 178), (213, 94, 0), (0, 158, 115), (235, 243, 248)


@pytest.fixture(autouse=True)
def _random_state_is_put_back() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@dataclass
class Outcome:
    code: int
    stdout: str
    stderr: str
    exception: BaseException | None
    output: Path

    @property
    def log(self) -> dict[str, Any]:
        return json.loads((self.output / "run.json").read_text())

    @property
    def runs(self) -> list[dict[str, Any]]:
        return self.log["runs"]


def invoke(output: Path, *arguments: str) -> Outcome:
    with torch.random.fork_rng():
        result = CliRunner().invoke(
            app, ["train", *arguments, "--output", str(output)], env={"COLUMNS": "200"}
        )
    return Outcome(result.exit_code, result.stdout, result.stderr, result.exception, output)


def train(output: Path, *arguments: str) -> Outcome:
    outcome = invoke(output, *arguments)
    assert outcome.code == 0, (outcome.stderr, outcome.exception)
    return outcome


def finals(run: dict[str, Any]) -> dict[str, Any]:
    return [e for e in run["evaluations"] if not e["predicted"]][-1]


def tree(root: Path) -> Path:
    """Red and blue images of unequal sizes, eight and four a class."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for name, channel in (("red", 0), ("blue", 2)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (12 + i % 3, 12 + i % 2, 3))
                pixels[..., channel] += 120
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(root / part / name / f"{i}.png")
    return root


def pixels(path: Path) -> Counter[tuple[int, ...]]:
    with Image.open(path) as picture:
        return Counter(picture.convert("RGB").get_flattened_data())


def near(colours: Counter[tuple[int, ...]], wanted: tuple[int, ...]) -> int:
    """Pixels of a colour, give or take the rounding of its blending."""
    return sum(
        count
        for colour, count in colours.items()
        if all(abs(a - b) <= 1 for a, b in zip(colour, wanted, strict=True))
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


# ---- Complaints ----------------------------------------------------------------------------------


def assert_one_clear_line(outcome: Outcome, message: str) -> None:
    assert isinstance(outcome.exception, SystemExit), outcome.exception
    assert outcome.code == 2
    (line,) = outcome.stderr.strip().splitlines()
    assert line.startswith("error ")
    assert re.search(message, line)
    assert "Traceback" not in outcome.stdout + outcome.stderr
    assert not (outcome.output / "run.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data /nowhere/at/all", r"no data '/nowhere/at/all': give 'digits', 'cifar100', or the"),
        ("--data digits --density 0", r"density must be in \(0, 1\], got 0\.0"),
        ("--data digits --density 1.5", r"density must be in \(0, 1\], got 1\.5"),
        ("--data digits --model resnet-7mm", r"unknown model 'resnet-7mm'; did you mean 'resnet-7"),
        ("--data digits --model resnet18", r"can be chosen only for 'resnet'"),
        ("--data digits --depth 9", r"depth must be 8, 14, 20, … \(6n \+ 2\), got 9"),
        ("--data digits --norm layer", r"norm must be one of batch, group, instance, none"),
        ("--data digits --activation x", r"activation must be one of relu, silu, gelu, tanh"),
        ("--data digits --pruning best", r"pruning must be one of magnitude, .*, got 'best'"),
        ("--data digits --order 0", r"order must be at least 1, got 0"),
        ("--data digits --window -1", r"window must be at least 0, got -1"),
        ("--data digits --classical-steps -1", r"classical_steps must be at least 0, got -1"),
        ("--data digits --order 1 --tolerance 0.5", r"tolerance must be inf at order 1"),
        ("--data digits --tolerance -1", r"tolerance must be above 0, got -1\.0"),
        ("--data digits --lr nan", r"lr must be finite and at least 0, got nan"),
        ("--data digits --batch-size 0", r"batch_size must be at least 1, got 0"),
        ("--data digits --batch-size 2000", r"batch_size 2000 is larger than the 1437 training"),
        ("--data digits --device quantum", r"device"),
        ("--data digits --solver hhl", r"use representation='explicit' or 'krylov'"),
        ("--data digits --solver hll", r"unknown solver 'hll'; known: circuit, exact, hhl"),
        ("--data digits --representation jets", r"known: explicit, jet, krylov"),
        ("--data digits --copies 0", r"copies must lie in 1"),
    ],
)
def test_a_wrong_option_ends_with_code_2_and_one_clear_line(
    tmp_path: Path, arguments: str, message: str
):
    outcome = invoke(tmp_path / "out", *TINY, *arguments.split())
    assert_one_clear_line(outcome, message)
    assert outcome.stdout == ""
    assert not outcome.output.exists()


def test_a_tree_without_validation_images_ends_with_code_2_and_one_clear_line(tmp_path: Path):
    root = tree(tmp_path / "images")
    (root / "val").rename(root / "validation")
    outcome = invoke(tmp_path / "out", "--data", str(root), *TINY)
    assert_one_clear_line(outcome, r"has no val/ folder: an image tree holds train/CLASS/\*\.jpg")


def test_an_output_folder_that_cannot_be_made_ends_with_code_2_and_one_clear_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert_one_clear_line(invoke(tmp_path / "file" / "out", "--data", "digits", *TINY), "file")


def test_a_diverging_run_ends_with_code_2_and_leaves_what_it_measured(tmp_path: Path):
    options = ["--lr", "1e30", "--warmup", "0", "--window", "9", "--tolerance", "inf"]
    outcome = invoke(tmp_path, "--data", "digits", *TINY, *options, "--norm", "none")
    assert outcome.code == 2
    assert isinstance(outcome.exception, SystemExit)
    (line,) = outcome.stderr.strip().splitlines()
    assert line.startswith("error ")
    assert outcome.runs[0]["evaluations"][0]["step"] == 0
    for name in ("curves.png", "model.pt"):
        assert (outcome.output / name).exists()


def test_no_evaluation_batches_are_refused(tmp_path: Path):
    outcome = invoke(tmp_path / "out", "--data", "digits", *TINY, "--eval-batches", "0")
    assert outcome.code == 2
    assert "--eval-batches" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_tolerance_of_zero_is_refused(tmp_path: Path):
    outcome = invoke(tmp_path / "out", "--data", "digits", *TINY, "--tolerance", "0")
    assert_one_clear_line(outcome, "tolerance must be above 0")


@pytest.mark.parametrize("name", ["[/nowhere]", "images[red]"])
def test_brackets_in_a_path_are_shown_as_they_are(tmp_path: Path, name: str):
    outcome = invoke(tmp_path / "out", "--data", name, *TINY)
    assert_one_clear_line(outcome, re.escape(f"no data {name!r}"))


def test_an_image_that_cannot_be_read_ends_with_code_2_and_one_clear_line(tmp_path: Path):
    root = tree(tmp_path / "images")
    (root / "train" / "red" / "3.png").write_text("not an image")
    outcome = invoke(tmp_path / "out", "--data", str(root), *TINY, "--batch-size", "4")
    assert_one_clear_line(outcome, r"3\.png")


def test_an_image_of_negative_size_is_refused(tmp_path: Path):
    root = tree(tmp_path / "images")
    options = ["--batch-size", "4", "--image-size", "-4"]
    outcome = invoke(tmp_path / "out", "--data", str(root), *TINY, *options)
    assert outcome.code == 2
    assert "--image-size" in outcome.stderr
    assert "Traceback" not in outcome.stderr


# ---- The program itself --------------------------------------------------------------------------


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "torch_qsgd", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_module_runs_as_a_program_and_shows_its_help():
    done = program("--help")
    assert done.returncode == 0
    assert "torch-qsgd" in done.stdout
    assert "train" in done.stdout
    assert done.stderr == ""


def test_the_program_ends_with_code_2_and_one_line_on_stderr(tmp_path: Path):
    done = program("train", "--data", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error no data '{tmp_path / 'nowhere'}'")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["-h"], 0), (["train", "-h"], 0), ([], 2), (["train"], 2), (["x"], 2)]
)
def test_help_is_shown_where_asked_for_or_where_something_is_missing(
    arguments: list[str], code: int
):
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == code
    assert "Usage" in result.stdout + result.stderr


# ---- Curves --------------------------------------------------------------------------------------


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
        plot_curves([history("QuantumSGD", True)], tmp_path / "curves.svg", "resnet on digits")
    text = (tmp_path / "curves.svg").read_text()
    wanted = ("resnet on digits", "QuantumSGD, predicted in mid-window", "upload", "download")
    for words in (*wanted, "SGD steps", "validation loss (nats)", "validation accuracy (%)"):
        assert f">{words}<" in text
