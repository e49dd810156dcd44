"""The networks and batches that ``hessian.py`` measures on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hessian_peers import KEPT, Problem, circumstances_of
from sklearn.datasets import load_digits
from step_cost import network as resnet18
from torch import Tensor, nn

from torch_qsgd.models import ResNet, ResNetConfig


class Transformer(nn.Module):
    """Pre-norm encoder over tokens given as vectors, mean-pooled, 10 classes."""

    def __init__(self, features: int, tokens: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.head = nn.Linear(features, width), nn.Linear(width, 10)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 2 * width),
                    "down": nn.Linear(2 * width, width),
                }
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.position
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            qkv = block["qkv"](block["norm1"](h)).unflatten(-1, (3, self.heads, -1))
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            h = h + block["out"](mixed)
            h = h + block["down"](F.gelu(block["up"](block["norm2"](h))))
        output: Tensor = self.head(self.norm(h).mean(1))
        return output


@dataclass(frozen=True)
class Case:
    """A network with a batch: what one product is measured on."""

    name: str
    network: str
    batch: int = 32
    training: bool = False
    channels_last: bool = False
    density: float = 1.0
    aim: float | None = None

    def problem(self, small: bool) -> Problem:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            batch = min(self.batch, 4) if small else self.batch
            shape: tuple[int, ...] = (3, 32, 32)
            if self.network == "resnet18":
                model = resnet18(small)
            elif self.network == "resnet20":
                model = ResNet(100, ResNetConfig(16, 8) if small else ResNetConfig(16, 20))
            else:
                shape = (16, 8) if small else (64, 64)
                width, depth = (16, 1) if small else (128, 4)
                model = Transformer(shape[1], shape[0], width, 4, depth)
            inputs = torch.randn(batch, *shape)
            targets = torch.randint(10, (batch,))
            settle(model, inputs)
            model.train(self.training)
            masks = {}
            if self.density < 1:
                for name, p in model.named_parameters():
                    masks[name] = torch.rand_like(p) < self.density
                    p.data *= masks[name]
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return Problem(model, inputs, targets, masks)


def settle(model: nn.Module, inputs: Tensor) -> None:
    """Running statistics as they would be after training, so that eval mode is well scaled."""
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    usual = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0
    with torch.no_grad():
        model.train()(inputs)
    for layer, momentum in zip(layers, usual, strict=True):
        layer.momentum = momentum


CASES = [
    Case("ResNet-18, train", "resnet18", training=True, aim=2.3),
    Case("ResNet-18, eval", "resnet18", aim=2.1),
    Case("ResNet-18, train, channels-last", "resnet18", 32, True, True, aim=1.8),
    Case("ResNet-18, eval, channels-last", "resnet18", 32, False, True, aim=1.8),
    Case("ResNet-18, eval, 10 % mask", "resnet18", density=0.1),
    Case("ResNet-20, eval", "resnet20"),
    Case("transformer, 0.5 M", "transformer"),
]
SPECTRA = {
    "spectrum": Case("ResNet-20, eval, batch 32", "resnet20"),
    "spectrum-large": Case("ResNet-18, eval, batch 4", "resnet18", 4),
}


def trained(name: str, small: bool) -> Problem:
    """A network of less than 2000 parameters on 8×8 images of digits, in float64."""
    images, labels = load_digits(return_X_y=True)
    count = 32 if small else 128
    inputs = torch.tensor(images[:count] / 8 - 1, dtype=torch.float64)
    targets = torch.tensor(labels[:count])
    width = 4 if small else 16
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module
        if name.startswith("MLP"):
            layers = [nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
            model, updates = nn.Sequential(*layers, nn.Linear(width, 10)), 20
        elif name.startswith("CNN"):
            inputs, one, two = inputs.view(-1, 1, 8, 8), width // 2, 3 * width // 4
            first = [nn.Conv2d(1, one, 3, 1, 1), nn.BatchNorm2d(one), nn.ReLU(), nn.MaxPool2d(2)]
            second = [nn.Conv2d(one, two, 3, 1, 1), nn.BatchNorm2d(two), nn.ReLU()]
            last = [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * two, 10)]
            model, updates = nn.Sequential(*first, *second, *last), 20 if small else 200
        else:
            inputs = inputs.view(-1, 8, 8)
            model, updates = Transformer(8, 8, width // 2 + 2, 2, 1), 20 if small else 200
    model.double().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with circumstances_of(KEPT):
        for _ in range(updates):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    model.zero_grad()
    return Problem(model.eval(), inputs, targets)


NETWORKS = ("MLP, crowded", "CNN, trained", "transformer, trained")
