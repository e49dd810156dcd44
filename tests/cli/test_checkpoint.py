"""Weights from files, and what is said where they do not fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_qsgd.cli.checkpoint import load_weights, read_weights, zeros_held
from torch_qsgd.models import build_model

SHAPE: dict[str, Any] = {"width": 8, "depth": 8}


def network(classes: int = 10, channels: int = 1, **shape: Any) -> nn.Module:
    return build_model("resnet", classes, channels, **{**SHAPE, **shape})


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def load(path: Path, model: nn.Module, name: str = "resnet") -> None:
    load_weights(path, model, name, classes=10, channels=1)


def complaint(path: Path, model: nn.Module, name: str = "resnet") -> str:
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        load(path, model, name)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    message = str(caught.value)
    assert "\n" not in message
    return message


def wrapped(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


@pytest.mark.parametrize(
    "form",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: wrapped(state, "module."),
        lambda state: wrapped(state, "module._orig_mod."),
        lambda state: {"model_state_dict": wrapped(state, "_orig_mod.")},
        lambda state: {k: t for k, t in state.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["plain", "nested", "with optimizer", "distributed", "both", "compiled", "old"],
)
def test_every_common_form_of_a_state_dict_is_loaded(tmp_path: Path, form: Any):
    source, target = network(), network()
    load(saved(tmp_path / "weights.pt", form(source.state_dict())), target)
    for key, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[key])


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({"width": 16}, "--model resnet --width 16 --depth 8 --norm batch"),
        ({"depth": 14}, "--model resnet --width 8 --depth 14 --norm batch"),
        ({"norm": "group"}, r"--model resnet --width 8 --depth 8 --norm group \(or instance\)"),
        ({"norm": "none"}, "--model resnet --width 8 --depth 8 --norm none"),
    ],
    ids=str,
)
def test_weights_of_another_shape_are_refused_with_the_options_that_fit_them(
    tmp_path: Path, shape: dict[str, Any], options: str
):
    path = saved(tmp_path / "weights.pt", network(**shape).state_dict())
    assert re.search(f"These weights are of {options}$", complaint(path, network()))


def test_weights_for_other_data_are_refused_with_both_numbers(tmp_path: Path):
    path = saved(tmp_path / "weights.pt", network(classes=7, channels=3).state_dict())
    message = complaint(path, network())
    assert "0.weight is (8, 3, 3, 3) there and (8, 1, 3, 3) in the model" in message
    assert message.endswith(", for data with 7 classes, not 10 and 3 channels, not 1")


def test_weights_of_torchvisions_models_are_known_by_their_shapes(tmp_path: Path):
    path = saved(tmp_path / "weights.pt", build_model("squeezenet1_1", 10).state_dict())
    message = complaint(path, network())
    assert re.search(r"it lacks 0\.weight, 1\.weight, 1\.bias and \d+ more", message)
    assert re.search(r"the model has no features\.0\.weight, .* and \d+ more", message)
    assert "These weights are of --model squeezenet1_1" in message


def test_weights_of_no_known_model_are_refused_by_their_names_alone(tmp_path: Path):
    path = saved(tmp_path / "weights.pt", {"w": torch.zeros(2), "v": torch.zeros(3)})
    message = complaint(path, nn.Linear(2, 2), "toys:linear")
    assert message.endswith("toys:linear: it lacks weight, bias; the model has no w, v")


def test_weights_that_are_not_numbers_are_refused_by_name(tmp_path: Path):
    state = network().state_dict()
    state["0.weight"][0, 0, 1, 1] = float("nan")
    path = saved(tmp_path / "weights.pt", state)
    assert complaint(path, network()).endswith("0.weight holds NaN or infinite values")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state_dict"),
        ({}, "holds no state_dict"),
        ({"w": 1.0}, "holds no state_dict"),
        (nn.Linear(2, 2), "holds more than tensors"),
    ],
    ids=["list", "empty", "numbers", "module"],
)
def test_files_with_something_else_are_refused_with_how_to_write_one(
    tmp_path: Path, content: Any, message: str
):
    path = saved(tmp_path / "weights.pt", content)
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(path)
    assert "torch.save(model.state_dict(), path)" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 broken"])
def test_files_that_torch_did_not_write_are_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint .*weights\.pt (cannot be read|is no state)"):
        read_weights(path)


def test_a_missing_file_is_refused_and_a_folders_model_pt_suggested(tmp_path: Path):
    with pytest.raises(ValueError, match="is not there: give a state_dict file"):
        read_weights(tmp_path / "none.pt")
    saved(tmp_path / "model.pt", network().state_dict())
    with pytest.raises(ValueError, match=r"is a folder: .* did you mean .*model\.pt\?"):
        read_weights(tmp_path)


def test_zeros_are_held_in_matrices_that_have_some_and_nowhere_else():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 3.0]]))
        model[0].bias.zero_()
        model[1].weight.zero_()
    model[3].weight.requires_grad_(False).zero_()
    masks = zeros_held(model)
    assert list(masks) == ["0.weight"]
    assert masks["0.weight"].tolist() == [[True, False, True], [False, True, True]]
