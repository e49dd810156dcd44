"""What ``spectrum`` says: how sure its numbers are, what it refuses, what its help explains."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.cli.running import Outcome, assert_one_clear_line, invoke
from torch_qsgd.cli import app, tables
from torch_qsgd.cli.unfinished import Unfinished
from torch_qsgd.hessian.spectrum import Spectrum

FEW = ["--data=digits", "--width=8", "--depth=8", "--batch-size=16", "--batches=1"]


def measure(output: Path, *arguments: str) -> Outcome:
    outcome = invoke(output, *FEW, *arguments, command="spectrum", columns=80)
    assert outcome.code == 0, (outcome.stderr, outcome.exception)
    return outcome


def row(outcome: Outcome, name: str) -> list[str]:
    (line,) = re.findall(rf"^│ {re.escape(name)} +│(.*)│$", outcome.stdout, re.MULTILINE)
    return [cell.strip() for cell in line.split("│")]


# ---- How sure ------------------------------------------------------------------------------------


def test_the_negative_mass_comes_with_its_range_in_table_and_json(tmp_path: Path):
    outcome = measure(tmp_path, "--steps=20", "--lr=0.1")
    found = json.loads((tmp_path / "spectrum.json").read_text())
    low, high = Spectrum.from_json(found["spectrum"]).negative_mass_range
    mass = found["negative_mass"]
    assert (mass["low"], mass["high"]) == (low, high)
    assert low <= mass["estimate"] <= high
    assert high - low > 0.01
    value, _, note = row(outcome, "negative mass")
    assert float(value.removesuffix(" %")) == pytest.approx(100 * mass["estimate"], rel=0.06)
    printed = re.match(r"(\S+) to (\S+) %; share of λ < ", note)
    assert printed
    assert [float(x) for x in printed.groups()] == pytest.approx([100 * low, 100 * high], rel=0.06)
    assert row(outcome, "best window t*")[1].endswith("from few coarse nodes")


def test_a_row_a_layer_holds_the_range_too(tmp_path: Path):
    outcome = measure(tmp_path, "--steps=8", "--per-layer", "--lr=0.1")
    masses = json.loads((tmp_path / "spectrum.json").read_text())["negative_mass"]
    low, high = (masses["8"][name] for name in ("low", "high"))
    shown = [float(x) for x in row(outcome, "8")[5].split("–")]
    assert shown == pytest.approx([100 * low, 100 * high], rel=0.06)
    assert "t*: best window, from few coarse nodes" in outcome.stdout


def test_a_single_step_is_one_step_of_one_batch_and_says_what_to_raise(tmp_path: Path):
    outcome = measure(tmp_path, "--steps=1", "--probes=1")
    assert "16 training images in 1 batch: loss" in outcome.stdout
    assert row(outcome, "products") == ["1", "", "1 probe × 1 step"]
    assert row(outcome, "λ_max")[2] == "residual bound; wide: raise --steps"
    assert row(outcome, "λ_min")[2] == "residual bound; wide: raise --steps"
    assert row(outcome, "converged")[::2] == ["0", "found one by one; few: raise --steps"]
    assert row(outcome, "negative mass")[2].startswith("0 to 100 %")


def test_eigenvalues_that_are_all_known_have_an_exact_trace(tmp_path: Path):
    # Biases before a softmax: one eigenvalue is zero, and known no better than rounding allows.
    outcome = measure(tmp_path, "--layers=8.bias", "--steps=16", "--lr=0.1")
    assert row(outcome, "trace")[1:] == ["exact", "but for rounding"]
    assert row(outcome, "converged")[::2] == ["10", "all eigenvalues, found one by one"]
    assert abs(float(row(outcome, "λ_min")[0])) < 1e-6
    assert row(outcome, "λ_min")[2] == "residual bound"
    assert row(outcome, "best window t*")[1] == "P(t) never rises"


def test_narrow_bounds_need_no_more_steps(tmp_path: Path):
    outcome = measure(tmp_path, "--steps=40")
    assert row(outcome, "λ_max")[2] == "residual bound"
    assert row(outcome, "converged")[2] == "eigenvalues found one by one"
    assert row(outcome, "trace")[2] == "standard error"


def test_shares_have_two_digits():
    found = Spectrum(
        nodes=[-1.0, 1.0, 30.0], weights=[0.12345, 0.87643, 0.00012], exact=[False] * 3,
        dimension=10_000, lambda_min=-1.0, lambda_min_bound=0.1, lambda_max=30.0,
        lambda_max_bound=0.1, trace=7.0, trace_error=0.5, resolution=1e-7, products=3, steps=3,
        probes=1, seconds=0.0, kind="hessian",
    )  # fmt: skip
    table, _ = tables.descent_tables(tables.descent(found, 0.1), coarse=True)
    cells = [list(column.cells) for column in table.columns]
    assert cells[1][2] == "12 %"
    assert cells[2][2] == "12 % negative, 0.012 % beyond 2/η"


# ---- What is refused -----------------------------------------------------------------------------


def test_unfinished_work_is_not_removed_by_a_run_that_does_not_resume_it(tmp_path: Path):
    folder = tmp_path / "unfinished"
    Unfinished(folder, {}, resume=False).open()
    (folder / "lanczos-0.pt").write_bytes(b"work")
    outcome = invoke(tmp_path, *FEW, "--steps=2", command="spectrum")
    assert_one_clear_line(outcome, "unfinished holds the work of a run .*: give --resume to go on")
    assert (folder / "lanczos-0.pt").read_bytes() == b"work"
    (folder / "lanczos-0.pt").unlink()
    measure(tmp_path, "--steps=2")  # a run that has done nothing yet has nothing to lose
    assert not folder.exists()


def test_a_pattern_of_no_layer_is_refused_with_the_layers_there_are(tmp_path: Path):
    outcome = invoke(tmp_path, *FEW, "--layers=foo*", command="spectrum")
    assert_one_clear_line(outcome, r"no layer 'foo\*'\. Layers: 0, 1, 3\.conv1, 3\.norm1, ")
    assert outcome.stdout == ""


@pytest.mark.parametrize("command", ["spectrum", "train"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_in_plain_words(tmp_path: Path, command: str):
    outcome = invoke(tmp_path / "out", *FEW[:3], "--device=cuda", command=command)
    assert_one_clear_line(outcome, "device 'cuda' cannot be used: .* finds no GPU.*; here: cpu")


# ---- Help ----------------------------------------------------------------------------------------


def shown_help(*arguments: str) -> str:
    text = CliRunner().invoke(app, [*arguments, "--help"], env={"COLUMNS": "200"}).stdout
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def test_the_help_explains_its_terms():
    text = shown_help("spectrum")
    for term in ("Dissipativity:", "Error proxy P(t):", "Best window t*:", "as training does"):
        assert term in text


def test_the_programs_help_has_an_example_of_each_command():
    text = shown_help()
    for command in ("train", "spectrum"):
        (example,) = re.findall(rf"python -m torch_qsgd {command} (--\S+ \S+)", text)
        assert example == "--data digits"
    assert "python -m torch_qsgd report runs/demo" in text
