"""Models that an audit's verdicts are known of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]


class Chain(nn.Module):
    """y_i = θ_i x_i + c θ_{i+1} x_{i+1}: the squared error's Hessian is tridiagonal.

    Its weights are a matrix, so that they can be pruned.
    """

    def __init__(self, weights: Tensor, coupling: float = 0.3) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights.reshape(20, -1).clone())
        self.coupling = coupling

    def forward(self, x: Tensor) -> Tensor:
        moved = x * self.weight.reshape(-1)
        return moved + self.coupling * moved.roll(-1, dims=1)


def summed_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum(1).mean()


def theorem_case(seed: int = 0) -> tuple[Chain, Batches]:
    """A sparse, strongly convex quadratic loss, a tenth of whose weights are not zero.

    Its batches are large, so that one classical step takes more than loading the weights does.
    """
    generator = torch.Generator().manual_seed(seed)
    n = 400
    support = torch.randperm(n, generator=generator)[: n // 10]
    start, goal = torch.zeros(2, n, dtype=torch.float64)
    start[support] = 1 + torch.rand(n // 10, generator=generator, dtype=torch.float64)
    goal[support] = -1 - torch.rand(n // 10, generator=generator, dtype=torch.float64)
    teacher = Chain(goal)
    batches = []
    for _ in range(26):
        x = 1 + 0.2 * torch.randn(2048, n, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            noise = 0.01 * torch.randn(2048, n, generator=generator, dtype=torch.float64)
            batches.append((x, teacher(x) + noise))
    return Chain(start), batches


def rectified(seed: int = 0) -> tuple[nn.Module, Batches]:
    """A ReLU network on random labels."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)
        ).double()
    batches = [
        (
            torch.randn(32, 8, generator=generator, dtype=torch.float64),
            torch.randint(3, (32,), generator=generator),
        )
        for _ in range(30)
    ]
    return model, batches
