"""Batch normalisation for second derivatives alone is exact, folded or by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import randn, seeded
from torch_qsgd.derivatives import higher_derivatives, second_derivatives
from torch_qsgd.derivatives.graph import saved_bytes
from torch_qsgd.errors import GraphError

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


def second_derivatives_of(model: nn.Module, x: Tensor, fold: bool) -> tuple[Tensor, ...]:
    parameters = list(model.parameters())
    with second_derivatives() if fold else higher_derivatives():
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
    plain, folded = (second_derivatives_of(model, x, fold) for fold in (False, True))
    for a, b in zip(plain, folded, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "options", [{"padding": "same"}, {"groups": 2, "stride": 2, "dilation": 2}]
)
def test_every_geometry(options: dict[str, object]) -> None:
    x = randn(2, 2, 9, 9, seed=9)
    plain, folded = (second_derivatives_of(network(**options), x, fold) for fold in (False, True))
    for a, b in zip(plain, folded, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_the_graph_holds_less() -> None:
    model, x = network(), randn(8, 2, 20, 20)
    held = []
    for fold in (False, True):
        with second_derivatives() if fold else higher_derivatives():
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
            second_derivatives_of(twin, x, fold)
            for twin, fold in zip(twins, (False, True), strict=True)
        )
        for a, b in zip(plain, folded, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
        for a, b in zip(twins[0].buffers(), twins[1].buffers(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dimensions", [0, 1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_train_mode_by_hand(dimensions: int, affine: bool, momentum: float | None) -> None:
    norm = NORMS[max(dimensions, 1)](3, affine=affine, momentum=momentum)
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 5), nn.Tanh())).double()
    if dimensions == 0:
        model = nn.Sequential(nn.Linear(5, 3), norm, nn.Tanh(), nn.Linear(3, 2)).double()
    else:
        model = nn.Sequential(model, norm, nn.Tanh(), nn.Linear(5, 2)).double()
    moved_statistics(model)
    shape = (7, 5) if dimensions == 0 else (4, 3, *[2] * (dimensions - 1), 5)
    twins = [copy.deepcopy(model) for _ in range(2)]
    x = randn(*shape, seed=3)
    plain, by_hand = (
        second_derivatives_of(twin, x, fold)
        for twin, fold in zip(twins, (False, True), strict=True)
    )
    for a, b in zip(plain, by_hand, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    for a, b in zip(twins[0].buffers(), twins[1].buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_by_hand_the_check_of_pytorch_agrees() -> None:
    """gradgradcheck compares with finite differences, in every direction."""

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with second_derivatives():
            return F.batch_norm(x, None, None, weight, bias, training=True)

    arguments = [randn(5, 3, 2), randn(3, seed=1), randn(3, seed=2)]
    for argument in arguments:
        argument.requires_grad_()
    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


def test_by_hand_a_third_derivative_is_refused_rather_than_wrong() -> None:
    x = randn(4, 3).requires_grad_()
    with second_derivatives():
        loss = (F.batch_norm(x, None, None, training=True) ** 3).sum()
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), x, create_graph=True)
    with pytest.raises(GraphError, match="no third derivative"):
        torch.autograd.grad(second.sum(), x)


def test_half_precision_and_single_values_go_the_composed_way() -> None:
    norm = nn.BatchNorm2d(3).bfloat16()
    x = randn(4, 3, 2, 2).bfloat16().requires_grad_()
    with second_derivatives():
        assert norm(x).dtype == torch.bfloat16
        with pytest.raises(ValueError, match="more than 1 value"):
            nn.BatchNorm1d(3)(torch.randn(1, 3))
