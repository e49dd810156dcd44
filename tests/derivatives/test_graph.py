"""What a graph holds: memory, and operations whose second derivative is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.cases import randn, seeded
from torch_qsgd.derivatives import higher_derivatives
from torch_qsgd.derivatives.graph import refuse_unusable_graph, saved_bytes
from torch_qsgd.errors import GraphError


def hessian(model: nn.Module, x: Tensor) -> Tensor:
    parameters = list(model.parameters())
    gradients = torch.autograd.grad((model(x) ** 2).sum(), parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradients])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in flat]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_is_wrong_in_pytorch_and_right_here(dim: int | None) -> None:
    model = seeded(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2), dim=dim)).double()
    x = randn(4, 3)
    gradients = torch.autograd.grad(
        (model(x) ** 2).sum(), list(model.parameters()), create_graph=True
    )
    if dim is not None:
        with pytest.raises(GraphError, match="weight_norm has a wrong second derivative"):
            refuse_unusable_graph(gradients, order=1)
    with higher_derivatives():
        right = hessian(model, x)
    torch.testing.assert_close(right, right.T)

    class Written(nn.Module):
        """The same from its definition."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = model.bias
            self.g, self.v = model.parametrizations.weight.parameters()  # type: ignore[union-attr]

        def forward(self, x: Tensor) -> Tensor:
            length = self.v.norm() if dim is None else self.v.norm(dim=1 - dim, keepdim=True)
            return x @ (self.g * self.v / length).T + self.bias  # type: ignore[no-any-return]

    written = Written()
    names = [name for name, _ in model.named_parameters()]
    assert names == ["bias", *(f"parametrizations.weight.original{i}" for i in (0, 1))]
    torch.testing.assert_close(right, hessian(written, x))


def test_saved_bytes_counts_each_storage_once() -> None:
    x = torch.ones(1000, requires_grad=True)
    y = x.sin()  # keeps x
    z = y * y  # keeps y, twice
    assert saved_bytes([z]) == 8000
    assert saved_bytes([z, y]) == 8000
    model = nn.Sequential(nn.Linear(10, 10), nn.Tanh())
    weights = 4 * sum(p.numel() for p in model[0].parameters() if p.dim() > 1)
    kept = saved_bytes([model(torch.ones(7, 10, requires_grad=True))])
    assert kept == weights + 4 * 70 + 4 * 70  # weight, input, output of tanh


def test_once_differentiable_functions_are_refused():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * gradient

    x = torch.tensor([2.0], requires_grad=True)
    (gradient,) = torch.autograd.grad((Once.apply(x) ** 2).sum(), x, create_graph=True)
    with pytest.raises(GraphError, match="once_differentiable"):
        refuse_unusable_graph([gradient], order=1)
