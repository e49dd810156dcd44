"""``spectrum`` as its users meet it: numbers against dense Hessians, tables, files, resuming."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cli.running import (
    BLUE,
    VERMILION,
    Outcome,
    assert_one_clear_line,
    invoke,
    near,
    pixels,
)
from torch_qsgd.data import fixed_batches, load_data
from torch_qsgd.hessian.spectrum import Spectrum
from torch_qsgd.models import build_model

TOYS = """
import torch
from torch import nn

def net(classes, channels):
    first = nn.Linear(64 * channels, 4)
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), nn.Linear(4, classes))

def linear(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes, bias=False))

def doubled(outputs, labels):
    return 2 * nn.functional.cross_entropy(outputs, labels)
"""
#: All 1437 training images, in batches of which the last is smaller.
ALL = ["--data=digits", "--batch-size=400", "--batches=9"]
NET = [*ALL, "--model=toys_for_spectra:net"]
FEW = ["--data=digits", "--width=8", "--depth=8", "--batch-size=16", "--batches=1", "--steps=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a module of toys, a checkpoint of its network, and one with zero weights."""
    folder = tmp_path_factory.mktemp("toys")
    (folder / "toys_for_spectra.py").write_text(TOYS)
    generator = torch.Generator().manual_seed(0)
    model = network()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator) / math.sqrt(p.shape[-1])
    torch.save(model.state_dict(), folder / "dense.pt")
    for p in model.parameters():
        p.data[torch.rand(p.shape, generator=generator) < 0.7] = 0
    torch.save(model.state_dict(), folder / "pruned.pt")
    return folder


@pytest.fixture(autouse=True)
def _in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(folder)
    yield
    sys.modules.pop("toys_for_spectra", None)


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 10))


def images() -> tuple[Tensor, Tensor]:
    batches = list(load_data("digits", batch_size=1437).train)
    assert len(batches) == 1
    return batches[0]


def dense_hessian(weights: Path) -> tuple[Tensor, list[tuple[str, int]]]:
    """Of the mean cross entropy over all training images, in float64; names and sizes of blocks."""
    model = network().double()
    model.load_state_dict(torch.load(weights, weights_only=True))
    named = dict(model.named_parameters())
    inputs, labels = images()

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in named.values()])
        tensors = {k: part.view_as(p) for part, (k, p) in zip(parts, named.items(), strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, tensors, inputs.double()), labels)

    flat = torch.cat([p.detach().flatten() for p in named.values()])
    hessian = torch.autograd.functional.hessian(loss, flat)
    return hessian, [(name, p.numel()) for name, p in named.items()]


def measure(output: Path, *arguments: str, columns: int = 80) -> Outcome:
    outcome = invoke(output, *arguments, command="spectrum", columns=columns)
    assert outcome.code == 0, (outcome.stderr, outcome.exception)
    return outcome


def found(outcome: Outcome) -> dict[str, Any]:
    return json.loads((outcome.output / "spectrum.json").read_text())


def assert_eigenvalues(spectrum: dict[str, Any], hessian: Tensor) -> None:
    eigenvalues = torch.linalg.eigvalsh(hessian).numpy()
    size = np.abs(eigenvalues).max()
    assert spectrum["dimension"] == len(eigenvalues)
    assert spectrum["lambda_max"] == pytest.approx(eigenvalues[-1], abs=1e-4 * size)
    assert spectrum["lambda_min"] == pytest.approx(eigenvalues[0], abs=1e-4 * size)


# ---- Numbers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    options = ["--checkpoint=dense.pt", "--probes=4", "--top=2", "--lr=0.5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return measure(tmp_path_factory.mktemp("dense") / "new" / "folder", *NET, *options)


def test_the_extreme_eigenvalues_are_those_of_the_dense_hessian(dense: Outcome, folder: Path):
    hessian, _ = dense_hessian(folder / "dense.pt")
    spectrum = found(dense)["spectrum"]
    assert_eigenvalues(spectrum, hessian)
    assert spectrum["trace"] == pytest.approx(float(hessian.trace()), rel=0.2)
    assert found(dense)["samples"] == 1437
    eigenvalues = torch.linalg.eigvalsh(hessian).numpy()
    pairs = found(dense)["eigenpairs"]
    wanted = [*eigenvalues[:-3:-1], *eigenvalues[1::-1]]
    assert [pair["value"] for pair in pairs] == pytest.approx(wanted, abs=1e-4 * wanted[0])
    assert all(pair["converged"] and pair["residual"] < 1e-3 for pair in pairs)


def test_the_loss_and_accuracy_are_those_of_the_checkpoint(dense: Outcome, folder: Path):
    model = network()
    model.load_state_dict(torch.load(folder / "dense.pt", weights_only=True))
    inputs, labels = images()
    with torch.no_grad():
        outputs = model(inputs)
    assert found(dense)["mean_loss"] == pytest.approx(float(F.cross_entropy(outputs, labels)))
    right = float((outputs.argmax(1) == labels).float().mean())
    assert found(dense)["accuracy"] == pytest.approx(right)


def test_what_gradient_descent_makes_of_it_follows_from_the_spectrum(dense: Outcome):
    spectrum = Spectrum.from_json(found(dense)["spectrum"])
    descent = found(dense)["gradient_descent"]
    assert descent["stability_limit"] == 4
    assert descent["lambda_max_over_limit"] == pytest.approx(spectrum.lambda_max / 4)
    resolved = np.where(np.abs(spectrum.nodes) > spectrum.resolution, spectrum.nodes, 0)
    factors = np.abs(1 - 0.5 * resolved)
    amplified = float(spectrum.weights[factors > 1].sum())
    assert descent["amplified_mass"] == pytest.approx(amplified)
    for row in descent["error_proxy"]:
        total = float((spectrum.weights * factors ** row["steps"]).sum())
        assert row["total"] == pytest.approx(total, rel=1e-9)
    totals = {row["steps"]: row["total"] for row in descent["error_proxy"]}
    assert set(totals) == {1, 10, 100, 1000, descent["best_window"]}
    assert min(totals.values()) == totals[descent["best_window"]]


@pytest.mark.parametrize("zeros", ["held", "free"])
def test_weights_that_are_zero_in_a_checkpoint_are_no_coordinates_unless_set_free(
    tmp_path: Path, folder: Path, zeros: str
):
    hessian, blocks = dense_hessian(folder / "pruned.pt")
    state = torch.load(folder / "pruned.pt", weights_only=True)
    if zeros == "held":
        # Vectors are never pruned, so their zeros are weights like others.
        active = torch.cat([(state[k] != 0).flatten() | (state[k].dim() == 1) for k, _ in blocks])
        hessian = hessian[active][:, active]
    outcome = measure(tmp_path, *NET, "--checkpoint=pruned.pt", f"--zeros={zeros}")
    assert_eigenvalues(found(outcome)["spectrum"], hessian)
    assert found(outcome)["active"] == len(hessian)
    assert ("zero weights held" in outcome.stdout) == (zeros == "held")


def test_density_prunes_by_magnitude_before_it_measures(tmp_path: Path, folder: Path):
    state = torch.load(folder / "dense.pt", weights_only=True)
    matrices = {k: t for k, t in state.items() if t.dim() == 2}
    sizes = torch.cat([t.abs().flatten() for t in matrices.values()])
    least = sizes.sort(descending=True).values[round(0.3 * len(sizes)) - 1]
    pruned = {k: t * (t.abs() >= least) if t.dim() == 2 else t for k, t in state.items()}
    torch.save(pruned, tmp_path / "weights.pt")
    hessian, blocks = dense_hessian(tmp_path / "weights.pt")
    active = torch.cat([(pruned[k] != 0).flatten() for k, _ in blocks])
    outcome = measure(tmp_path / "out", *NET, "--checkpoint=dense.pt", "--density=0.3")
    assert_eigenvalues(found(outcome)["spectrum"], hessian[active][:, active])
    assert "pruned to density 0.3 by magnitude" in outcome.stdout


def test_each_layer_has_the_spectrum_of_its_diagonal_block(tmp_path: Path, folder: Path):
    hessian, blocks = dense_hessian(folder / "dense.pt")
    outcome = measure(tmp_path, *NET, "--checkpoint=dense.pt", "--per-layer", "--lr=0.1")
    layers = found(outcome)["layers"]
    assert list(layers) == ["1", "3"]
    split = sum(size for name, size in blocks if name.startswith("1."))
    assert_eigenvalues(layers["1"], hessian[:split, :split])
    assert_eigenvalues(layers["3"], hessian[split:, split:])
    assert set(found(outcome)["gradient_descent"]) == {"1", "3"}
    one = measure(tmp_path / "one", *NET, "--checkpoint=dense.pt", "--layers=3")
    assert_eigenvalues(found(one)["spectrum"], hessian[split:, split:])


def test_squared_error_of_a_linear_model_has_the_closed_form(tmp_path: Path):
    outcome = measure(
        tmp_path, *ALL, "--model=toys_for_spectra:linear", "--loss=mse", "--kind=ggn", "--steps=70"
    )
    x = images()[0].flatten(1).double()
    # Mean over images and ten classes: the Hessian is 2/(10 N) XᵀX, once a class.
    largest = float(torch.linalg.eigvalsh(2 / (10 * len(x)) * x.T @ x)[-1])
    spectrum = found(outcome)["spectrum"]
    assert spectrum["lambda_max"] == pytest.approx(largest, rel=1e-4)
    assert spectrum["kind"] == "ggn"
    assert "random weights" in found(outcome)["title"]


def test_a_loss_of_ones_own_is_used(dense: Outcome, tmp_path: Path):
    options = ["--checkpoint=dense.pt", "--loss=toys_for_spectra:doubled"]
    outcome = measure(tmp_path, *NET, *options)
    twice = 2 * found(dense)["spectrum"]["lambda_max"]
    assert found(outcome)["spectrum"]["lambda_max"] == pytest.approx(twice, rel=1e-4)


def test_train_mode_normalises_by_the_batch(tmp_path: Path):
    first = found(measure(tmp_path / "a", *FEW, "--eval"))["spectrum"]
    second = found(measure(tmp_path / "b", *FEW, "--train-mode"))["spectrum"]
    assert abs(first["lambda_max"] - second["lambda_max"]) > 0.01 * abs(first["lambda_max"])


# ---- What is printed and written -----------------------------------------------------------------


def test_the_table_holds_the_numbers_of_the_json_within_80_columns(dense: Outcome):
    spectrum = found(dense)["spectrum"]
    rows = dict(re.findall(r"^│ (\S.*?) +│ +(\S+) │", dense.stdout, re.MULTILINE))
    for row, key in (("λ_max", "lambda_max"), ("λ_min", "lambda_min"), ("trace", "trace")):
        assert float(rows[row]) == pytest.approx(spectrum[key], rel=1e-4)
    assert rows["coordinates n"] == f"{spectrum['dimension']:,}"
    assert rows["samples"] == "1,437"
    assert rows["2/η"] == "4"
    assert all(len(line) <= 80 for line in dense.stdout.splitlines() if line.startswith("│"))


def test_a_row_a_layer_fits_80_columns_too(tmp_path: Path):
    outcome = measure(tmp_path, *FEW, "--per-layer", "--lr=0.1")
    layers = found(outcome)["layers"]
    rows = re.findall(r"^│ (\S+) +│ +([\d,]+) │", outcome.stdout, re.MULTILINE)
    assert [(name, int(n.replace(",", ""))) for name, n in rows] == [
        (name, spectrum["dimension"]) for name, spectrum in layers.items()
    ]
    owners = build_model("resnet", 10, 1, width=8, depth=8).modules()
    assert len(rows) == sum(any(True for _ in m.parameters(recurse=False)) for m in owners)
    assert all(len(line) <= 80 for line in outcome.stdout.splitlines() if line.startswith("│"))
    colours = pixels(tmp_path / "spectrum.png")
    assert sum(count for colour, count in colours.items() if colour != (255, 255, 255)) > 5_000


def test_the_picture_shows_both_signs(dense: Outcome):
    colours = pixels(dense.output / "spectrum.png")
    assert min(near(colours, BLUE), near(colours, VERMILION)) > 100


def test_json_is_all_that_stdout_holds_when_asked_for(tmp_path: Path):
    outcome = measure(tmp_path, *FEW, "--json")
    assert json.loads(outcome.stdout) == found(outcome)
    assert found(outcome)["complete"] is True
    assert found(outcome)["settings"]["steps"] == 4
    assert "spectrum.png" in outcome.stderr


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(tmp_path: Path):
    runs = [measure(tmp_path / str(i), *FEW, f"--seed={s}") for i, s in enumerate((0, 0, 1))]
    first, again, other = (found(run)["spectrum"]["nodes"] for run in runs)
    assert first == again != other


def test_batches_to_measure_on_are_the_same_at_every_pass_and_as_many_as_asked_for():
    data = load_data("digits", batch_size=8)
    chosen = fixed_batches(data, 500, seed=3)
    first, second = ([labels.tolist() for _, labels in chosen] for _ in range(2))
    assert first == second
    assert [len(labels) for labels in first] == [500, 500, 437]
    assert [len(labels) for _, labels in fixed_batches(data, 100, most=3)] == [100] * 3


# ---- Interruptions -------------------------------------------------------------------------------

#: Nineteen layers, so that there is time to interrupt after the second.
SLOW = [*FEW, "--per-layer", "--steps=8", "--seed=5"]


def test_ctrl_c_keeps_what_was_measured_and_resume_goes_on(tmp_path: Path, folder: Path):
    interrupted = tmp_path / "interrupted"
    command = [sys.executable, "-m", "torch_qsgd", "spectrum", *SLOW, "--output", str(interrupted)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )
    try:
        deadline = time.monotonic() + 60
        while not (interrupted / "unfinished" / "spectrum-1.json").exists():
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted: the same command with --resume goes on from here" in stdout
    assert "Traceback" not in stderr
    partial = json.loads((interrupted / "spectrum.json").read_text())
    assert partial["complete"] is False
    assert 2 <= len(partial["layers"]) < 19

    other = invoke(interrupted, *SLOW, "--steps=9", "--resume", command="spectrum")
    assert other.code == 2
    assert re.search(r"had --steps 8, not 9: give the same", other.stderr)
    resumed = measure(interrupted, *SLOW, "--resume")
    straight = measure(tmp_path / "straight", *SLOW)
    for name, spectrum in found(straight)["layers"].items():
        again = found(resumed)["layers"][name]
        assert again["nodes"] == pytest.approx(spectrum["nodes"], rel=1e-5, abs=1e-6)
        assert again["products"] == spectrum["products"]
    assert not (interrupted / "unfinished").exists()


def test_nothing_to_resume_is_said(tmp_path: Path):
    outcome = invoke(tmp_path, *FEW, "--resume", command="spectrum")
    assert_one_clear_line(outcome, "nothing to resume in .*: no run was interrupted there")


# ---- Complaints ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--steps 0", "steps must be an integer of at least 1, got 0"),
        ("--probes -1", "probes must be an integer of at least 1, got -1"),
        ("--density 0", r"density must be a number above 0 and below 1, or 1 for no .*, got 0\.0"),
        ("--lr -1", r"lr must be a number above 0, got -1\.0"),
        ("--zeros keep", "zeros must be one of held, free, got 'keep'"),
        ("--kind fisher", "kind must be one of hessian, ggn, got 'fisher'"),
        ("--top 2 --per-layer", "--top is of one spectrum"),
        ("--density 0.5 --pruning big", "pruning must be one of magnitude, .*, got 'big'"),
        ("--checkpoint none.pt", r"checkpoint none\.pt is not there"),
        ("--checkpoint dense.pt", r"dense\.pt does not fit resnet: it lacks 0\.weight, "),
        ("--loss cross-entropie", "unknown loss .*; known: .*; did you mean 'cross-entropy'"),
        ("--loss torch.nn:CrossEntropyLos", "torch.nn has no .*; did you mean 'CrossEntropyLoss'"),
        ("--loss math:sqrt", r"resnet with loss math:sqrt fails on images of shape \(1, 8, 8\)"),
        ("--layers 3.conf1", "no layer '3.conf1'; did you mean '3.conv1'"),
        ("--data digit", "no data 'digit': .* did you mean 'digits'"),
        ("--model resnt", "unknown model 'resnt'; did you mean 'resnet'"),
        ("--device quantum", "device"),
    ],
)
def test_a_wrong_option_ends_with_code_2_and_one_clear_line(
    tmp_path: Path, arguments: str, message: str
):
    outcome = invoke(tmp_path / "out", *FEW, *arguments.split(), command="spectrum")
    assert_one_clear_line(outcome, message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module:net", "module 'no_such_module' cannot be imported"),
        ("toys_for_spectra:nett", "toys_for_spectra has no 'nett'; did you mean 'net'"),
        ("toys_for_spectra:TOY", "has no 'TOY'"),
        ("math:pi", "is no function: it is of type float"),
        ("os:getcwd", r"must return a torch\.nn\.Module, got str"),
        ("toys_for_spectra:doubled", "raised TypeError"),
        ("torch.nn:Identity", "torch.nn:Identity has no weights"),
    ],
)
def test_a_model_of_ones_own_that_is_none_is_refused(tmp_path: Path, reference: str, message: str):
    outcome = invoke(tmp_path / "out", *ALL, f"--model={reference}", command="spectrum")
    assert_one_clear_line(outcome, message)
