"""Networks and functions, some with wrong derivatives, and the modes found for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import randn, seeded
from torch_qsgd.auditing.modes import derivative_modes
from torch_qsgd.report.measurements import DerivativeMode

DOUBLE, TRIPLE = "PyTorch's own double backward", "PyTorch's own triple backward"
FORWARD = "forward over reverse (torch.func)"
ROWS = randn(8, 4), torch.arange(8) % 3


def found(model: nn.Module, batch: Any = ROWS, loss_fn: Any = F.cross_entropy, **options: Any):
    modes = derivative_modes(model, loss_fn, batch, **options)
    return {mode.name: mode for mode in modes}


def supported(modes: dict[str, DerivativeMode]) -> set[str]:
    return {name for name, mode in modes.items() if mode.supported}


def network(*middle: nn.Module, width: int = 16) -> nn.Module:
    def build() -> nn.Module:
        layers = [nn.Linear(4, width), *copy.deepcopy(middle), nn.Linear(width, 3)]
        model = nn.Sequential(*layers).double()
        for part in model.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()  # those given were drawn without the seed
        return model

    return seeded(build)


# ---- Operations whose derivatives are not what they look like ----------------------------------


class Detached(torch.autograd.Function):
    """A sine, the derivative of whose backward pass is cut off without a word."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].detach().cos()


class Once(torch.autograd.Function):
    """A sine that says it can be differentiated once only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].cos()


class Slope(torch.autograd.Function):
    """A cosine whose derivative is one in a hundred too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.cos()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -1.01 * g * ctx.saved_tensors[0].sin()


class SlightlyWrong(torch.autograd.Function):
    """A sine whose second derivative is one in a hundred too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * Slope.apply(ctx.saved_tensors[0])


class Zigzag(torch.autograd.Function):
    """A slope of 1.5 and 0.5 in turn, with a kink every 1e-8, which is not seen to be one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        phase = (x / 1e-8) % 2
        ctx.slope = torch.where(phase < 1, 1.5, 0.5)
        return x + 0.5e-8 * torch.minimum(phase, 2 - phase)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.slope


class HalfDetached(torch.autograd.Function):
    """A product, of which one factor's derivative forgets the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return g * y.detach(), g * x


class Layer(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.function(*args, **kwargs)
