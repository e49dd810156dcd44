"""Windows and SGD that overflow, kinks that cannot be held, and arguments that make no sense."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.auditing.test_truncation import HELD_OUT, measured, opened, plain_sgd, relu_network
from tests.cases import (
    Batches,
    classifier,
    image_batches,
    masked_sgd,
    regression,
    seeded,
    tanh_network,
    vector,
)
from torch_qsgd import QuantumSGD
from torch_qsgd.auditing.truncation import measure_truncation
from torch_qsgd.derivatives import checkpoint_contexts

# ---- Overflow ------------------------------------------------------------------------------------


def single(data: Batches) -> Batches:
    return [(x.float(), y.float()) for x, y in data]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_true_sgd_that_overflows_ends_the_measurement_at_the_step_before(momentum: float):
    model, data = relu_network().float(), single(regression(30))
    found, optimizer = measured(
        model, data, 30, held_out=single(HELD_OUT), lr=1e6, density=1.0, momentum=momentum
    )
    # What plain SGD does, one step at a time.
    taken, twin = 0, copy.deepcopy(model)
    for t in range(1, 31):
        before, twin = twin, copy.deepcopy(model)
        masked_sgd(twin, F.mse_loss, data[:t], [None] * 4, 1e6, momentum)
        if not bool(vector(twin.parameters()).isfinite().all()):
            break
        taken = t
    assert 1 <= taken < 30
    assert 0 < found.steps <= taken
    assert [len(o.errors) for o in found.orders] == [found.steps] * 2
    assert found.floor is None or len(found.floor) == found.steps
    assert len(found.grams) == found.steps + 1
    assert not any(math.isnan(e) for o in found.orders for e in (*o.errors, o.loss))
    if found.steps == taken:
        assert optimizer.phase == "window"
        assert optimizer.window_step == taken
        loss = sum(F.mse_loss(before(x), y).item() for x, y in single(HELD_OUT)) / 2
        assert found.loss_true == pytest.approx(loss, rel=1e-3)


def test_sgd_that_overflows_in_its_first_step_leaves_empty_lists_and_an_open_window():
    model = tanh_network(torch.float32)
    data = [(x, 1e3 * y) for x, y in single(regression(3))]
    found, optimizer = measured(
        model, data, 3, held_out=single(HELD_OUT), lr=1e38, density=1.0, cubic_iterations=2
    )
    assert (found.steps, found.floor, found.kinks, found.smooth_degree) == (0, [], [], 0)
    assert [o.errors for o in found.orders] == [[], []]
    assert found.loss_true == found.loss_anchor == found.orders[1].loss
    assert (optimizer.phase, optimizer.window_step) == ("window", 0)
    assert found.grams == [[[0.0, 0.0], [0.0, 0.0]]]
    assert found.cubic > 0


def test_jets_that_overflow_while_sgd_does_not_drop_the_window_and_keep_the_rest():
    # A well of sin²: SGD goes to and fro in it, and the series, unstable at its top, does not.
    class Well(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[1.6]]))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(self.weight * x) ** 2

    data = [(torch.ones(1), torch.zeros(1))]

    def loss_fn(y: Tensor, target: Tensor) -> Tensor:
        return y.mean()

    model = Well()
    found, optimizer = measured(model, data, 90, data, loss_fn, lr=1.0, density=1.0, window=99)
    assert 10 < found.steps < 90
    assert len(found.grams) == found.steps + 1
    assert optimizer.phase == "upload"
    assert model.weight.item() == pytest.approx(1.6)
    assert [o.loss for o in found.orders] == [math.inf] * 2
    assert found.orders[0].errors[-1] > 1e3
    assert found.loss_true < 1.0
    true = plain_sgd(copy.deepcopy(model), opened(Well(), loss_fn, lr=1.0, density=1.0),
                     data * found.steps, loss_fn)  # fmt: skip
    assert found.loss_true == pytest.approx(float(torch.sin(1.6 + true[-1]) ** 2), rel=1e-3)


def test_a_batch_that_is_no_number_ends_the_measurement_there():
    model, data = tanh_network(), regression(4)
    data[2] = (data[2][0] * math.nan, data[2][1])
    found, optimizer = measured(model, data, 4)
    good, _ = measured(tanh_network(), data[:2], 2)
    assert found.steps == optimizer.window_step == 2
    assert found == good


def test_held_sgd_that_overflows_has_an_infinite_floor_from_there():
    class Ledge(nn.Module):
        """It falls ever more steeply, and is flat from 1 on."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[0.5]]))

        def forward(self, x: Tensor) -> Tensor:
            return -(F.hardtanh(self.weight) ** 4) * x

    data = [(torch.ones(1, 1), torch.zeros(1, 1))]

    def height(y: Tensor, target: Tensor) -> Tensor:
        return y.mean()

    found, _ = measured(Ledge(), data, 25, data, height, lr=0.1, density=1.0, order=1)
    # Plain SGD, off the ledge and on the slope that goes on.
    slope, weight, finite = [], 0.5, 0
    for _ in range(25):
        weight = weight + 0.4 * weight**3 if weight < 1e12 else math.inf
        slope.append(weight)
        finite += weight < math.inf
    assert found.floor is not None
    assert len(found.floor) == found.steps == 25
    assert 3 < finite < 20
    assert all(math.isfinite(f) for f in found.floor[:finite])
    assert all(f == math.inf for f in found.floor[finite + 3 :])
    true = found.orders[0]
    assert all(math.isfinite(e) for e in true.errors)


# ---- Kinks ---------------------------------------------------------------------------------------


class Median(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.inner(x))
        return self.outer(y - y.median(1, keepdim=True).values)


class Late(Median):
    """Smooth on small batches."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.outer(torch.relu(y) if len(x) > 8 else torch.tanh(y))


class Turning(Median):
    """Rectifies once more while its first weight is near where it began."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.inner(x))
        near = abs(self.inner.weight[0, 0].item() - self.start) < 1e-9
        return self.outer(torch.relu(y) if near else y)

    start = 0.0


class Checkpointed(Median):
    def forward(self, x: Tensor) -> Tensor:
        options: dict[str, Any] = {"use_reentrant": False, "context_fn": checkpoint_contexts}
        return self.outer(checkpoint(lambda x: torch.relu(self.inner(x)), x, **options))


@pytest.mark.parametrize(
    ("kind", "kinks", "unheld"),
    [
        (Median, ["relu", "median"], "^median$"),
        (Late, ["relu"], r"^relu \(not met on the first batch\)$"),
        (Turning, ["relu"], "^relu: .*not made again"),
        (Checkpointed, ["relu"], "^relu: part of the model is checkpointed$"),
    ],
)
def test_a_floor_that_cannot_be_measured_is_none_with_a_reason_and_the_errors_stay(
    kind: Callable[[], nn.Module], kinks: list[str], unheld: str
):
    model = seeded(kind).double()
    data = [*regression(2), *regression(2, batch=12)]
    if isinstance(model, Turning):
        model.start = model.inner.weight[0, 0].item()
    found, _ = measured(model, data, 4, density=1.0)
    assert found.floor is None
    assert found.kinks == kinks
    assert len(found.unfrozen) == 1
    assert re.search(unheld, found.unfrozen[0])
    assert found.steps == len(found.orders[1].errors) == 4
    assert found.smooth_degree == 0


class Hidden(torch.autograd.Function):
    """A ReLU that no function of PyTorch's shows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope * (ctx.saved_tensors[0] > 0)


class Hiding(Median):
    def forward(self, x: Tensor) -> Tensor:
        return self.outer(Hidden.apply(self.inner(x)))


class LateHiding(Median):
    """Shows what it does on small batches only."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.outer(Hidden.apply(y) if len(x) > 8 else torch.tanh(y))


@pytest.mark.parametrize("kind", [Hiding, LateHiding])
def test_kinks_that_cannot_be_seen_are_no_floor_of_zero(kind: Callable[[], nn.Module]):
    data = [*regression(2), *regression(2, batch=12)]
    found, _ = measured(seeded(kind).double(), data, 4, density=1.0, cubic_iterations=1)
    assert found.floor is None
    assert found.unfrozen == ["Hidden (an autograd.Function: kinks in it are not seen)"]
    assert found.smooth_degree == 0


def test_the_packages_own_functions_are_seen_through():
    data = image_batches(2)
    found, _ = measured(classifier("batch"), data, 2, data, F.cross_entropy)
    assert (found.floor, found.unfrozen) == ([0.0, 0.0], [])


# ---- Arguments -----------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused_before_anything_is_done():
    model, data = tanh_network(), regression(2)

    def run(optimizer: Any, **options: Any) -> None:
        given = {"batches": data, "held_out": data, "steps": 2, **options}
        measure_truncation(model, optimizer, F.mse_loss, **given)

    good = opened(model)
    for options, message in (
        ({"steps": 0}, "steps must be an integer"),
        ({"steps": 50}, "longer than steps=50"),
        ({"batches": []}, "at least one batch"),
        ({"held_out": []}, "at least one batch"),
        ({"cubic_iterations": -1}, "cubic_iterations"),
        ({"cubic_restarts": 0}, "cubic_restarts"),
    ):
        with pytest.raises(ValueError, match=message):
            run(good, **options)
    with pytest.raises(TypeError, match="must be a torch"):
        run(good, generator=3)
    with pytest.raises(TypeError, match="must be a QuantumSGD, got SGD"):
        run(torch.optim.SGD(model.parameters(), lr=0.1))
    assert good.window_step == 0
    good.step(*data[0])
    with pytest.raises(ValueError, match="'window' after 1 steps"):
        run(good)
    with pytest.raises(ValueError, match="phase 'upload' after 0 steps"):
        run(QuantumSGD(model.parameters(), lr=0.1))
    for options in (
        {"tolerance": 0.5},
        {"trigger": lambda optimizer: None},
        {"representation": "krylov"},
    ):
        with pytest.raises(ValueError, match="representation 'jet', tolerance inf and no trigger"):
            run(opened(tanh_network(), **options))
