"""What the constructor and ``add_param_group`` refuse, and in which words."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_qsgd import QuantumSGD
from torch_qsgd.pruning import METHODS

NAN, INF = math.nan, math.inf


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))]


def network() -> nn.Module:
    return nn.Linear(2, 3)


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"lr": -0.1}, ValueError, r"lr must be finite and at least 0, got -0\.1"),
    ({"lr": NAN}, ValueError, r"lr must be finite and at least 0, got nan"),
    ({"lr": INF}, ValueError, r"lr must be finite and at least 0, got inf"),
    ({"lr": torch.tensor(-1.0)}, ValueError, r"lr must be finite and at least 0"),
    ({"lr": torch.ones(2)}, ValueError, r"lr must be a number or a one-element tensor"),
    ({"momentum": -0.5}, ValueError, r"momentum must be finite and at least 0, got -0\.5"),
    ({"momentum": INF}, ValueError, r"momentum must be finite and at least 0, got inf"),
    ({"weight_decay": -1e-4}, ValueError, r"weight_decay must be finite and at least 0"),
    ({"weight_decay": NAN}, ValueError, r"weight_decay must be finite and at least 0, got nan"),
    ({"nesterov": True}, ValueError, r"nesterov must be used with momentum > 0 and dampening = 0"),
    (
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        ValueError,
        r"nesterov must be used with momentum > 0 and dampening = 0",
    ),
    ({"density": 0.0}, ValueError, r"density must be in \(0, 1\], got 0\.0"),
    ({"density": -0.2}, ValueError, r"density must be in \(0, 1\], got -0\.2"),
    ({"density": 1.01}, ValueError, r"density must be in \(0, 1\], got 1\.01"),
    ({"density": NAN}, ValueError, r"density must be in \(0, 1\], got nan"),
    ({"pruning": "largest"}, ValueError, rf"pruning must be one of {', '.join(METHODS)}, got 'lar"),
    ({"window": -1}, ValueError, r"window must be at least 0, got -1"),
    ({"window": 2.0}, TypeError, r"window must be an integer, got float"),
    ({"window": True}, TypeError, r"window must be an integer, got bool"),
    ({"order": 0}, ValueError, r"order must be at least 1, got 0"),
    ({"order": "2"}, TypeError, r"order must be an integer, got str"),
    ({"classical_steps": -3}, ValueError, r"classical_steps must be at least 0, got -3"),
    ({"classical_steps": None}, TypeError, r"classical_steps must be an integer, got NoneType"),
    ({"tolerance": 0.0}, ValueError, r"tolerance must be above 0, got 0\.0"),
    ({"tolerance": NAN}, ValueError, r"tolerance must be above 0, got nan"),
    ({"order": 1, "tolerance": 0.5}, ValueError, r"tolerance must be inf at order 1.*got 0\.5"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED, ids=lambda v: str(v)[:50])
def test_an_option_outside_its_range_is_refused_by_name_with_what_is_allowed(
    options: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        QuantumSGD(weights(), **options)


@pytest.mark.parametrize(("options", "error", "message"), REFUSED, ids=lambda v: str(v)[:50])
def test_the_same_option_is_refused_in_a_group_of_its_own_and_the_group_is_not_kept(
    options: dict[str, Any], error: type[Exception], message: str
):
    optimizer = QuantumSGD(weights())
    with pytest.raises(error, match=message):
        optimizer.add_param_group({"params": weights(), **options})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": weights()})
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.0},
        {"lr": torch.tensor(0.1)},
        {"lr": torch.tensor([0.1])},
        {"momentum": 1.0},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.5, "maximize": True},
        {"density": 1},
        {"density": 1e-12},
        {"window": 0},
        {"window": 0, "density": 1.0},
        {"classical_steps": 0},
        {"order": 1},
        {"order": 7, "tolerance": 1e-9},
        *({"pruning": name} for name in METHODS if name not in ("snip", "synflow")),
    ],
    ids=str,
)
def test_the_edges_of_what_is_allowed_are_taken_and_stand_in_the_group(options: dict[str, Any]):
    group = QuantumSGD(weights(), **options).param_groups[0]
    for name, value in options.items():
        assert group[name] is value or group[name] == value


@pytest.mark.parametrize(
    ("name", "value"), [("window", 7), ("order", 3), ("classical_steps", 1), ("tolerance", 0.25)]
)
def test_groups_that_ask_for_another_cycle_are_refused_with_both_values(name: str, value: Any):
    first = QuantumSGD(weights()).param_groups[0][name]
    message = rf"{name} is shared by all parameter groups.*{value!r} beside {first!r}"
    with pytest.raises(ValueError, match=message):
        QuantumSGD([{"params": weights()}, {"params": weights(), name: value}])


def test_groups_may_differ_in_everything_that_is_not_the_cycle():
    own = {"lr": 0.5, "momentum": 0.9, "density": 0.3, "pruning": "erk", "prune_vectors": True}
    optimizer = QuantumSGD([{"params": weights()}, {"params": weights(), **own}], density=0.5)
    assert {name: optimizer.param_groups[1][name] for name in own} == own
    assert optimizer.param_groups[0]["density"] == 0.5


@pytest.mark.parametrize("pruning", ["snip", "synflow"])
def test_a_method_that_runs_the_model_is_refused_without_one(pruning: str):
    with pytest.raises(ValueError, match=rf"pruning '{pruning}' needs model= and loss_fn="):
        QuantumSGD(weights(), pruning=pruning)
    model = network()
    optimizer = QuantumSGD(
        model.parameters(), pruning=pruning, model=model, loss_fn=nn.functional.mse_loss
    )
    assert optimizer.param_groups[0]["pruning"] == pruning


@pytest.mark.parametrize(
    "half", [{"model": network()}, {"loss_fn": nn.functional.mse_loss}], ids=["model", "loss_fn"]
)
def test_a_model_without_a_loss_or_the_reverse_is_refused(half: dict[str, Any]):
    with pytest.raises(ValueError, match="model and loss_fn go together: give both, or neither"):
        QuantumSGD(weights(), **half)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2, 3, dtype=torch.complex64),
        torch.ones(2, 3, dtype=torch.int64),
        torch.ones(2, 3, dtype=torch.bool),
    ],
    ids=lambda t: str(t.dtype),
)
def test_a_parameter_that_is_not_real_floating_point_is_refused_with_dtype_and_shape(
    tensor: Tensor,
):
    wanted = rf"got one of dtype {tensor.dtype} and shape \(2, 3\): leave it out"
    with pytest.raises(TypeError, match=wanted):
        QuantumSGD([*weights(), tensor])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_real_floating_point_dtype_is_taken(dtype: torch.dtype):
    optimizer = QuantumSGD([nn.Parameter(torch.ones(2, 3, dtype=dtype))])
    assert optimizer.param_groups[0]["params"][0].dtype == dtype


def test_an_empty_group_is_refused():
    with pytest.raises(ValueError, match="parameter group is empty"):
        QuantumSGD([{"params": weights()}, {"params": []}])
    with pytest.raises(ValueError, match="empty parameter list"):
        QuantumSGD([])
