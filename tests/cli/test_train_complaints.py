"""``train`` as its users meet it: how it complains."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.running import TINY, assert_one_clear_line, invoke, tree


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data /nowhere/at/all", r"no data '/nowhere/at/all': give 'digits', 'cifar10', .*or"),
        ("--data cifar-10", r"no data 'cifar-10': .*; did you mean 'cifar10'\?$"),
        ("--data digits --density 0", r"density must be in \(0, 1\], got 0\.0"),
        ("--data digits --density 1.5", r"density must be in \(0, 1\], got 1\.5"),
        ("--data digits --model resnet-7mm", r"unknown model 'resnet-7mm'; did you mean 'resnet-7"),
        ("--data digits --model resnet18", r"can be chosen only for 'resnet'"),
        ("--data digits --depth 9", r"depth must be 8, 14, 20, … \(6n \+ 2\), got 9"),
        ("--data digits --norm layer", r"norm must be one of batch, group, instance, none"),
        ("--data digits --activation x", r"activation must be one of relu, silu, gelu, tanh"),
        ("--data digits --norm bach", r"got 'bach'; did you mean 'batch'\?$"),
        ("--data digits --activation slu", r"got 'slu'; did you mean 'silu'\?$"),
        ("--data digits --pruning magntude", r"got 'magntude'; did you mean 'magnitude'\?$"),
        ("--data digits --pruning best", r"pruning must be one of magnitude, .*, got 'best'"),
        ("--data digits --order 0", r"order must be at least 1, got 0"),
        ("--data digits --window -1", r"window must be at least 0, got -1"),
        ("--data digits --classical-steps -1", r"classical_steps must be at least 0, got -1"),
        ("--data digits --order 1 --tolerance 0.5", r"tolerance must be inf at order 1"),
        ("--data digits --tolerance -1", r"tolerance must be above 0, got -1\.0"),
        ("--data digits --lr nan", r"lr must be finite and at least 0, got nan"),
        ("--data digits --batch-size 0", r"batch_size must be at least 1, got 0"),
        ("--data digits --batch-size 2000", r"batch_size 2000 is larger than the 1437 training"),
        ("--data digits --device quantum", r"unknown device 'quantum'; here: cpu[^;]*$"),
        ("--data digits --device gpu", r"unknown device 'gpu'; here: cpu.*; a GPU is 'cuda'$"),
        ("--data digits --device cpuu", r"unknown device 'cpuu'; here: cpu.*did you mean 'cpu'\?$"),
        ("--data digits --solver hhl", r"use representation='explicit' or 'krylov'"),
        ("--data digits --solver hll", r"known: circuit, exact, hhl.*; did you mean 'hhl'\?$"),
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
