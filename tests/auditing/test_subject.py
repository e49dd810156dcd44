"""What is differentiated: samples, coordinates and inputs; and what is left as it was."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.auditing.differentiated import (
    ROWS,
    Detached,
    Layer,
    found,
    network,
    supported,
)
from tests.cases import classifier, image_batches, randn, regression, seeded, tanh_network
from torch_qsgd.errors import DivergenceError

# ---- Inputs, coordinates, state ----------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs", [(randn(6, 2), randn(6, 2)), {"x": randn(6, 2), "y": randn(6, 2)}]
)
def test_inputs_of_several_tensors(inputs: Any) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(2, 3), nn.Tanh()).double()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.inner(x) - self.inner(y)

    modes = found(seeded(Two), (inputs, torch.arange(6) % 3), order=1)
    assert supported(modes) == set(modes)


@pytest.mark.parametrize("inplace", [False, True])
def test_each_evaluation_starts_from_the_same_buffers(inplace: bool) -> None:
    class Drifting(nn.Module):
        """Scales by a number that grows with each call."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(1, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            if inplace:
                self.scale.mul_(1.5)  # type: ignore[operator]
                return x * self.scale.clone()
            self.scale = self.scale * 1.5
            return x * self.scale

    modes = found(network(nn.Tanh(), Drifting()))
    assert supported(modes) == set(modes)


@pytest.mark.parametrize("by_name", [False, True])
def test_only_active_coordinates_are_looked_at(by_name: bool) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.right, self.wrong = (nn.Linear(4, 3).double() for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.right(x).tanh() + Detached.apply(self.wrong(x))

    model = seeded(Sum)
    masks: dict[Any, Tensor] = {
        name if by_name else p: torch.zeros_like(p, dtype=torch.bool)
        for name, p in model.named_parameters()
        if name.startswith("wrong")
    }
    assert "jets of order 1" not in supported(found(model))
    assert {"jets of order 1", "jets of order 2"} <= supported(found(model, masks=masks))
    model.wrong.requires_grad_(False)
    assert {"jets of order 1", "jets of order 2"} <= supported(found(model))


def test_few_samples_are_enough() -> None:
    seen: set[int] = set()
    model = network(nn.Tanh(), Layer(lambda x: seen.add(len(x)) or x))  # type: ignore[func-returns-value]
    found(model, order=1)
    assert seen == {4}
    seen.clear()
    found(model, order=1, most=None)
    assert seen == {8}
    seen.clear()
    grouped = ROWS[0].view(4, 2, 4), ROWS[1]  # not as many inputs as targets: left whole
    found(nn.Sequential(nn.Flatten(0, 1), model), grouped, order=1, most=2)
    assert seen == {8}


def test_the_model_is_left_as_it_was() -> None:
    model = seeded(
        lambda: nn.Sequential(
            classifier("batch"), nn.Dropout(0.5), nn.BatchNorm1d(3, dtype=torch.float64)
        )
    )
    model[0].eval()  # type: ignore[index]
    x, y = image_batches(1)[0]
    F.cross_entropy(model(x), y).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    flags = [m.training for m in model.modules()]
    state, inputs = torch.get_rng_state(), x.clone()
    found(model, (x, y))
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())
    assert [p._version for p in model.parameters()] == versions
    assert [m.training for m in model.modules()] == flags
    for p, g in zip(model.parameters(), gradients, strict=True):
        assert (p.grad is None and g is None) or torch.equal(p.grad, g)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, inputs)


def test_the_generator_decides() -> None:
    def errors(seed: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed)
        return [
            m.error
            for m in found(
                tanh_network(), regression(1)[0], F.mse_loss, generator=generator
            ).values()
            if m.supported
        ]

    assert errors(3) == errors(3) != errors(4)


# ---- Refusals ----------------------------------------------------------------------------------


def test_bad_arguments_are_refused() -> None:
    model = network(nn.Tanh())
    with pytest.raises(ValueError, match="order must be an integer of at least 1"):
        found(model, order=0)
    with pytest.raises(ValueError, match="most must be an integer of at least 1"):
        found(model, most=0)
    with pytest.raises(TypeError, match="generator must be"):
        found(model, generator=1)
    with pytest.raises(ValueError, match=r"masks must map .* got 'weight' with torch\.bool"):
        found(model, masks={"weight": torch.ones(2) > 0})
    with pytest.raises(ValueError, match="no coordinate is active"):
        found(model, masks={p: torch.zeros_like(p) > 0 for p in model.parameters()})
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        found(copy.deepcopy(model).requires_grad_(False))


def test_gradients_that_are_no_numbers_are_refused() -> None:
    model = network(nn.Tanh())
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan  # type: ignore[index]
    with pytest.raises(DivergenceError, match="gradient on the batch is NaN"):
        found(model)


def test_points_outside_the_domain_find_no_fault() -> None:
    """A model that has a value at its own weights only."""

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(randn(3))
            self.home = self.theta.detach().clone()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                factor = 1.0 if torch.equal(self.theta, self.home) else math.nan
            return factor * self.theta.prod().sin() * x.mean()

    batch = torch.ones(2, dtype=torch.float64), torch.zeros(2)
    modes = found(Point(), batch, lambda outputs, targets: outputs)
    for k in (1, 2, 3):
        assert modes[f"jets of order {k}"].supported
        assert "by symmetry only" in modes[f"jets of order {k}"].reason


def test_derivatives_that_are_no_numbers_are_unsupported() -> None:
    """|θ|^1.5 at zero has a gradient and no Hessian."""

    class Power(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (self.theta**1.5).sum() * x.mean()

    batch = torch.ones(2, dtype=torch.float64), torch.zeros(2)
    modes = found(Power(), batch, lambda outputs, targets: outputs)
    assert supported(modes) == set()
    assert "NaN or infinite" in modes["jets of order 1"].reason
