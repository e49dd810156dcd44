"""Small networks, data, and plain loops that the tests share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a module from a seed, without touching PyTorch's global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tanh_network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Nine parameters: 2 → 2 → 1."""
    return seeded(lambda: nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))).to(dtype)


def regression(count: int, batch: int = 8, inputs: int = 2) -> Batches:
    """Noisy batches of one smooth function."""
    batches = []
    for i in range(count):
        x = randn(batch, inputs, seed=2 * i)
        y = torch.sin(2 * x.sum(1, keepdim=True)) + 0.1 * randn(batch, 1, seed=2 * i + 1)
        batches.append((x, y))
    return batches


def classifier(
    norm: str = "batch", activation: Callable[[], nn.Module] = nn.SiLU, seed: int = 0
) -> nn.Module:
    """A small convolutional classifier of 6×6 one-channel images in three classes, float64."""
    norms: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: nn.BatchNorm2d(4),
        "group": lambda: nn.GroupNorm(2, 4),
        "layer": lambda: nn.LayerNorm([4, 6, 6]),
        "instance": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    }
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            norms[norm](),
            activation(),
            nn.Conv2d(4, 4, 3, padding=1, stride=2),
            activation(),
            nn.Flatten(),
            nn.Linear(36, 3),
        ),
        seed,
    ).double()


def image_batches(count: int, batch: int = 8) -> Batches:
    generator = torch.Generator().manual_seed(7)
    return [
        (
            torch.randn(batch, 1, 6, 6, generator=generator, dtype=torch.float64),
            torch.randint(3, (batch,), generator=generator),
        )
        for _ in range(count)
    ]


def vector(parameters: Sequence[Tensor] | Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters]).clone()


def masked_sgd(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    batches: Batches,
    masks: Sequence[Tensor | None],
    rates: Sequence[float] | float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> None:
    """True SGD on the active coordinates: the plain loop everything is compared with."""
    parameters = list(model.parameters())
    keep = [
        torch.ones_like(p) if m is None else m.to(p.dtype)
        for p, m in zip(parameters, masks, strict=True)
    ]
    velocities: list[Tensor] | None = None
    steps = itertools.repeat(rates) if isinstance(rates, (int, float)) else rates
    for (x, y), rate in zip(batches, steps, strict=False):
        gradients = torch.autograd.grad(loss_fn(model(x), y), parameters)
        with torch.no_grad():
            update = [
                ((-g if maximize else g) + weight_decay * p) * k
                for g, p, k in zip(gradients, parameters, keep, strict=True)
            ]
            if momentum:
                if velocities is None:
                    velocities = [u.clone() for u in update]
                else:
                    velocities = [
                        momentum * v + (1 - dampening) * u
                        for v, u in zip(velocities, update, strict=True)
                    ]
                update = (
                    [u + momentum * v for u, v in zip(update, velocities, strict=True)]
                    if nesterov
                    else velocities
                )
            for p, u in zip(parameters, update, strict=True):
                p -= rate * u


def run_recorded(opt: Any, model: nn.Module, batches: Batches, loss_fn: Any = F.mse_loss) -> None:
    for x, y in batches:
        opt.zero_grad()
        with opt.recording():
            loss_fn(model(x), y).backward()
        opt.step()
