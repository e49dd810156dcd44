"""An optimizer's linear dynamics, against steps of ``torch.optim.SGD``."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import regression, tanh_network
from torch_qsgd.hessian.dynamics import Dynamics, UpdateOperator
from torch_qsgd.hessian.estimate import spectrum_of
from torch_qsgd.hessian.operator import HessianOperator


def step_matrix(curvature: float, **options: Any) -> np.ndarray:
    """What one step of ``torch.optim.SGD`` makes of (displacement, momentum), column by column."""
    columns = []
    for start, velocity in ((1.0, 0.0), (0.0, 1.0)):
        p = nn.Parameter(torch.tensor([start], dtype=torch.float64))
        opt = torch.optim.SGD([p], **options)
        if options.get("momentum"):
            opt.state[p]["momentum_buffer"] = torch.tensor([velocity], dtype=torch.float64)
        p.grad = (-1 if options.get("maximize") else 1) * curvature * p.detach()
        opt.step()
        buffer = opt.state[p].get("momentum_buffer")
        columns.append([float(p.detach()), 0.0 if buffer is None else float(buffer)])
    return np.array(columns).T


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.5, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.5, "maximize": True},
    ],
    ids=str,
)
def test_multipliers_are_the_largest_roots_of_a_step_of_sgd(options: dict[str, Any]) -> None:
    group = {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "nesterov": False, **options}
    dynamics = Dynamics.of([group])
    curvatures = [-3.0, -0.1, 0.0, 1e-3, 0.5, 5.0, 9.0, 19.9, 25.0, 37.0, 60.0]
    expected = [
        np.abs(np.linalg.eigvals(step_matrix(c, lr=0.1, **options))).max() for c in curvatures
    ]
    np.testing.assert_allclose(dynamics.multipliers(curvatures), expected, rtol=1e-7)
    # Plain descent at the equivalent curvatures does the same, sign by sign.
    same = dynamics.equivalent_nodes(curvatures)
    np.testing.assert_allclose(np.abs(1 - dynamics.lr * same), expected, rtol=1e-7)
    assert np.array_equal(np.sign(same), np.sign(curvatures))
    bound = dynamics.largest_stable
    near = dynamics.multipliers([0.999 * bound, 1.001 * bound])
    assert near[0] < 1 < near[1]


class Diagonal:
    dimension, dtype, device = 2, torch.float64, torch.device("cpu")

    def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
        return v * torch.tensor([1.0, -1.0], dtype=torch.float64)


def test_at_a_rate_of_zero_nothing_moves() -> None:
    still = Dynamics(0.0)
    seen = spectrum_of(Diagonal())
    assert seen.lambda_min == pytest.approx(-1)
    assert still.best_window(seen) == math.inf
    assert still.error_proxy(seen, 100).total == 1
    assert still.largest_stable == math.inf


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_groups_with_their_own_rates_and_decays_have_the_modes_of_their_step(
    maximize: bool, masked: bool
) -> None:
    model = tanh_network()
    (x, y), *_ = regression(1)
    rates, decays = (0.1, 0.03), (0.2, 0.0)
    groups = [
        {
            "params": list(layer.parameters()),
            "lr": rate,
            "weight_decay": decay,
            "momentum": 0.0,
            "dampening": 0.0,
            "nesterov": False,
            "maximize": maximize,
        }
        for layer, rate, decay in zip((model[0], model[2]), rates, decays, strict=True)
    ]
    masks = {model[0].weight: torch.tensor([[True, False], [False, True]])} if masked else {}
    hessian = HessianOperator(model, F.mse_loss, (x, y), masks=masks)
    update = UpdateOperator(hessian, groups, dict(model.named_parameters()))
    found = (update @ torch.eye(update.dimension, dtype=torch.float64)).numpy()
    one = update @ torch.ones(update.dimension, dtype=torch.float64)
    np.testing.assert_allclose(one.numpy(), found.sum(1), atol=1e-12)
    np.testing.assert_allclose(found, found.T, atol=1e-12)
    # The Jacobian of one true step, by differentiating it.
    names = list(dict(model.named_parameters()))
    sizes = [p.numel() for p in model.parameters()]
    shapes = [p.shape for p in model.parameters()]

    def step(vector: torch.Tensor) -> torch.Tensor:
        parts = [p.reshape(s) for p, s in zip(vector.split(sizes), shapes, strict=True)]
        weights = dict(zip(names, parts, strict=True))
        loss = F.mse_loss(torch.func.functional_call(model, weights, x), y)
        gradients = torch.autograd.grad(loss, parts, create_graph=True)
        sign = -1 if maximize else 1
        moved = []
        for i, (p, g) in enumerate(zip(parts, gradients, strict=True)):
            rate, decay = rates[i // 2], decays[i // 2]
            moved.append((p - rate * (sign * g + decay * p)).flatten())
        return torch.cat(moved)

    anchor = torch.cat([p.detach().flatten() for p in model.parameters()])
    jacobian = torch.autograd.functional.jacobian(step, anchor).numpy()
    keep = np.ones(len(anchor), bool)
    if masked:
        keep[:4] = [True, False, False, True]
    modes = np.linalg.eigvals(jacobian[np.ix_(keep, keep)])
    assert np.abs(modes.imag).max() < 1e-12
    expected = np.sort(modes.real)
    lr = Dynamics.of(groups).lr
    assert lr == 0.1
    np.testing.assert_allclose(np.sort(1 - lr * np.linalg.eigvalsh(found)), expected, atol=1e-10)


def test_a_group_of_less_momentum_moves_as_slowly_as_it_does() -> None:
    """Slow modes of each group keep their rates η(1 − τ)/(1 − μ)."""
    model = tanh_network()
    settings = [(0.1, 0.9, 0.2), (0.3, 0.0, 0.7), (0.2, 0.5, 0.0), (0.1, 0.9, 0.0)]
    groups = [
        {
            "params": [p], "lr": lr, "momentum": mu, "dampening": tau, "nesterov": False,
            "weight_decay": 0.0, "maximize": False,
        }
        for p, (lr, mu, tau) in zip(model.parameters(), settings, strict=True)
    ]  # fmt: skip
    hessian = HessianOperator(model, F.mse_loss, regression(1)[0])
    update = UpdateOperator(hessian, groups, dict(model.named_parameters()))
    identity = torch.eye(9, dtype=torch.float64)
    ratio = torch.diagonal((update @ identity) / (hessian @ identity)).numpy()
    slow = [lr * ((1 - tau) / (1 - mu) if mu else 1.0) for lr, mu, tau in settings]
    sizes = [p.numel() for p in model.parameters()]
    expected = list(itertools.chain(*([s] * n for s, n in zip(slow, sizes, strict=True))))
    dynamics = Dynamics.of(groups)
    np.testing.assert_allclose(dynamics.lr * ratio / (1 - 0.9), expected, rtol=1e-10)


def test_a_game_has_no_spectrum() -> None:
    model = tanh_network()
    hessian = HessianOperator(model, F.mse_loss, regression(1)[0])
    groups = [
        {"params": [p], "lr": 0.1, "momentum": 0.0, "maximize": i == 1, "weight_decay": 0.0}
        for i, p in enumerate(model.parameters())
    ]
    with pytest.raises(ValueError, match="some parameter groups have maximize=True"):
        UpdateOperator(hessian, groups, dict(model.named_parameters()))
