"""SGD beside a window: PyTorch's own, learning rates below the weights' resolution, rounding."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.auditing.test_truncation import measured, opened
from tests.cases import classifier, image_batches, regression, seeded, tanh_network, vector
from torch_qsgd import QuantumSGD
from torch_qsgd.auditing.twin import Twin
from torch_qsgd.training import TrueSGD

OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.03, "maximize": True},
    {"momentum": 0.8, "dampening": 0.3},
    {"momentum": 0.7, "weight_decay": 0.02, "nesterov": True},
]


def moved(twin: Twin) -> Tensor:
    return torch.cat([u.flatten() for u in twin.displacement()])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("warm", [False, True])
def test_it_is_pytorchs_sgd_of_groups_masks_and_schedules(options: dict[str, Any], warm: bool):
    model, data = tanh_network(), regression(8)
    first, last = list(model[0].parameters()), list(model[2].parameters())  # type: ignore[index]
    last[1].requires_grad_(False)
    optimizer = QuantumSGD(
        [{"params": first}, {"params": last, "lr": 0.05}],
        **{"lr": 0.1, "density": 0.6, "window": 2 if warm else 50, **options},
        model=model,
        loss_fn=F.mse_loss,
    )
    optimizer.upload()
    if warm:  # a first window, which leaves momentum to the second
        for batch in data[:2]:
            optimizer.step(*batch)
        optimizer.upload()
    assert optimizer.phase == "window"
    twin, plain = Twin(model, optimizer, F.mse_loss), TrueSGD(model, optimizer, F.mse_loss)
    anchor = vector(p for p in model.parameters() if p.requires_grad)
    for t, batch in enumerate(data):
        optimizer.param_groups[1]["lr"] = 0.05 / (1 + t)
        twin.step(*batch)
        plain.step(*batch)
    wanted = vector(p for p in plain._model.parameters() if p.requires_grad)
    torch.testing.assert_close(moved(twin), wanted - anchor, rtol=1e-11, atol=1e-15)
    torch.testing.assert_close(vector(twin.model.parameters()), vector(plain._model.parameters()))
    assert twin.steps == 8


def test_the_last_step_is_taken_back_with_its_running_statistics():
    model, data = classifier("batch"), image_batches(3)
    twin = Twin(model, opened(model, F.cross_entropy), F.cross_entropy)
    twin.step(*data[0])
    before, u = copy.deepcopy(twin.model.state_dict()), moved(twin)
    twin.step(*data[1])
    assert not torch.equal(moved(twin), u)
    twin.step_back()
    assert torch.equal(moved(twin), u)
    assert twin.steps == 1
    for name, tensor in twin.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_weights_that_the_loss_does_not_depend_on_rest_as_in_pytorch():
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(2, 1), nn.Parameter(torch.ones(1, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = seeded(Spare).double()
    twin = Twin(model, opened(model, density=1.0, weight_decay=0.1), F.mse_loss)
    twin.step(*regression(1)[0])
    places = [name for name, _ in model.named_parameters()]
    still = {n: not bool(u.any()) for n, u in zip(places, twin.displacement(), strict=True)}
    assert still == {"used.weight": False, "used.bias": False, "spare": True}
    assert math.isfinite(twin.rounding(*regression(1)[0]))


# ---- Precision -----------------------------------------------------------------------------------

KINDS: dict[str, Callable[[], nn.Module]] = {
    "smooth": lambda: classifier("group"),
    "kinked": lambda: classifier("batch", nn.ReLU),
}


@pytest.mark.parametrize("lr", [1e-9, 1e-6, 1e-3])
@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_no_window_error_at_any_learning_rate(kind: str, lr: float):
    found = {}
    for dtype in (torch.float32, torch.float64):
        data = [(x.to(dtype), y) for x, y in image_batches(4)]
        model = KINDS[kind]().to(dtype)
        found[dtype], _ = measured(model, data, 20, data, F.cross_entropy, lr=lr)
    rough, exact = found.values()
    assert exact.floor is not None
    assert rough.floor is not None
    for a, b in zip(rough.orders, exact.orders, strict=True):
        assert a.errors == pytest.approx(b.errors, rel=1e-2, abs=2e-6)
    assert rough.floor == pytest.approx(exact.floor, rel=0.05, abs=2e-6)
    # The estimate covers what float32 adds, and stays of its size.
    gaps = [
        abs(a.errors[-1] - b.errors[-1]) for a, b in zip(rough.orders, exact.orders, strict=True)
    ]
    assert max(gaps) < 2 * rough.rounding
    assert 1e-7 < rough.rounding < 2e-5
    assert 1e-16 < exact.rounding < 1e-13


@pytest.mark.parametrize("lr", [1e-6, 1e-2])
def test_half_precision_is_said_to_be_coarse(lr: float):
    """The quadratic loss is exact at order 1: all error is that of the precision."""
    model = seeded(lambda: nn.Linear(6, 2)).bfloat16()
    data = [(x.bfloat16(), torch.zeros(8, 2).bfloat16()) for x, _ in regression(4, inputs=6)]
    found, _ = measured(model, data, 20, data, lr=lr, density=1.0)
    assert 1e-6 < found.orders[0].errors[-1] < 2 * found.rounding
    assert 1e-3 < found.rounding < 0.5


def test_without_a_step_or_a_way_there_is_no_estimate():
    model, batch = tanh_network(), regression(1)[0]
    twin = Twin(model, opened(model, density=1.0), F.mse_loss)
    assert math.isnan(twin.rounding(*batch))
    model = tanh_network()
    rested = Twin(model, opened(model, lambda y, t: 0.0 * y.sum()), lambda y, t: 0.0 * y.sum())
    rested.step(*batch)
    assert rested.rounding(*batch) == math.inf


def test_the_estimate_leaves_the_twin_as_it_is():
    model, data = classifier("batch"), image_batches(2)
    twin = Twin(model, opened(model, F.cross_entropy), F.cross_entropy)
    twin.step(*data[0])
    before, u = copy.deepcopy(twin.model.state_dict()), moved(twin)
    state = torch.get_rng_state()
    first = twin.rounding(*data[1])
    assert twin.rounding(*data[1]) == first > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(moved(twin), u)
    for name, tensor in twin.model.state_dict().items():
        assert torch.equal(tensor, before[name])
