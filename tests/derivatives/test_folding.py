"""Folding eval-mode batch normalisation into convolutions is exact, and touches nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.cases import randn, seeded
from torch_qsgd.derivatives import higher_derivatives
from torch_qsgd.derivatives.graph import saved_bytes

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def moved_statistics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            count = module.num_features
            module.running_mean.copy_(randn(count, seed=5))
            module.running_var.copy_(randn(count, seed=6).abs() + 0.3)  # type: ignore[union-attr]
            if module.affine:
                module.weight.data.copy_(randn(count, seed=7))
                module.bias.data.copy_(randn(count, seed=8))
    return model


def network(
    dimensions: int = 2, bias: bool = True, affine: bool = True, **options: object
) -> nn.Module:
    options = {"kernel_size": 3, **options}
    return moved_statistics(
        seeded(
            lambda: nn.Sequential(
                CONVOLUTIONS[dimensions](2, 4, bias=bias, **options),  # type: ignore[arg-type]
                NORMS[dimensions](4, affine=affine),
                nn.Tanh(),
            )
        ).double()
    ).eval()


def second_derivatives(model: nn.Module, x: Tensor, fold: bool) -> tuple[Tensor, ...]:
    parameters = list(model.parameters())
    with higher_derivatives(fold=fold):
        loss = (model(x) ** 2).sum()
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    directions = [randn(*p.shape, seed=i) for i, p in enumerate(parameters)]
    products = torch.autograd.grad(gradients, parameters, directions)
    return loss.detach(), *(g.detach() for g in gradients), *products


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_values_and_derivatives_are_the_same(dimensions: int, bias: bool, affine: bool) -> None:
    model = network(dimensions, bias, affine)
    x = randn(3, 2, *[6] * dimensions, seed=9)
    plain, folded = (second_derivatives(model, x, fold) for fold in (False, True))
    for a, b in zip(plain, folded, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"groups": 2, "stride": 2, "dilation": 2}]
)
def test_every_geometry(options: dict[str, object]) -> None:
    x = randn(2, 2, 9, 9, seed=9)
    plain, folded = (second_derivatives(network(**options), x, fold) for fold in (False, True))
    for a, b in zip(plain, folded, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_the_graph_holds_less() -> None:
    model, x = network(), randn(8, 2, 20, 20)
    held = []
    for fold in (False, True):
        with higher_derivatives(fold=fold):
            loss = (model(x) ** 2).sum()
        held.append(
            saved_bytes(torch.autograd.grad(loss, list(model.parameters()), create_graph=True))
        )
    assert held[1] < 0.8 * held[0]


def test_only_the_convolution_just_before_is_folded() -> None:
    class Between(nn.Module):
        """The output of the convolution is used beside the normalisation too."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.first(x), self.second(x)
            return self.norm(a) + self.norm(b * 2) + self.norm(b) + a

    model = moved_statistics(seeded(Between).double())
    x = randn(2, 2, 6, 6)
    for train in (False, True):
        twins = [copy.deepcopy(model).train(train) for _ in range(2)]
        plain, folded = (
            second_derivatives(twin, x, fold)
            for twin, fold in zip(twins, (False, True), strict=True)
        )
        for a, b in zip(plain, folded, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
        for a, b in zip(twins[0].buffers(), twins[1].buffers(), strict=True):
            torch.testing.assert_close(a, b)
