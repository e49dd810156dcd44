"""Windows on small residual networks and real images (scikit-learn's digits) against true SGD."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import masked_sgd, seeded, vector
from torch_qsgd import QuantumSGD
from torch_qsgd.data import load_data
from torch_qsgd.models import ResNet, ResNetConfig
from torch_qsgd.training import endless

STEPS = 50
RATE = 0.01


@functools.cache
def trained(norm: str, activation: str) -> tuple[nn.Module, list[tuple[torch.Tensor, ...]]]:
    """A network after 200 steps of plain SGD, and the 50 batches of 64 that come next."""
    data = load_data("digits", batch_size=64, seed=0)
    config = ResNetConfig(width=8, depth=8, norm=norm, activation=activation, channels=1)
    model = seeded(lambda: ResNet(data.classes, config))
    stream = endless(data.train)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(200):
        x, y = next(stream)
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()
    opt.zero_grad()
    return model.double(), [(x.double(), y) for x, y in (next(stream) for _ in range(STEPS))]


@functools.cache
def window_errors(norm: str, activation: str, density: float) -> list[float]:
    """Relative error of the downloaded displacement at orders 1 and 2."""
    model, batches = trained(norm, activation)
    errors = []
    for order in (1, 2):
        ours = copy.deepcopy(model)
        opt = QuantumSGD(
            ours.parameters(), lr=RATE, density=density, window=STEPS, order=order, pruning="erk"
        )
        opt.upload()
        plain, anchor = copy.deepcopy(ours), vector(ours.parameters())
        for x, y in batches:
            opt.zero_grad()
            with opt.recording():
                F.cross_entropy(ours(x), y).backward()
            opt.step()
        assert opt.windows[0].steps == STEPS
        masks = [opt.masks.get(p) for p in ours.parameters()]
        masked_sgd(plain, F.cross_entropy, batches, masks, RATE)
        target = vector(plain.parameters())
        errors.append(float((vector(ours.parameters()) - target).norm() / (target - anchor).norm()))
    return errors


@pytest.mark.parametrize(("norm", "most"), [("group", 0.005), ("batch", 0.015)])
def test_order_two_beats_order_one_on_smooth_networks(norm: str, most: float) -> None:
    first, second = window_errors(norm, "silu", density=1.0)
    assert second < 0.5 * first
    assert second < most


def test_on_relu_networks_a_floor_remains_that_order_two_hardly_lowers() -> None:
    """The gradient jumps at kinks, which no Taylor series sees."""
    first, second = window_errors("group", "relu", density=1.0)
    smooth = window_errors("group", "silu", density=1.0)
    assert second > 0.3 * first
    assert second > 3 * smooth[1]
