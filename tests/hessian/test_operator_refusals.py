"""What the Hessian operator refuses, and in which words."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import randn, seeded, tanh_network
from tests.hessian.test_operator import small_batch
from torch_qsgd.errors import DivergenceError, GraphError
from torch_qsgd.hessian.operator import HessianOperator


class _Crooked(torch.autograd.Function):
    """x³, whose backward pass is right and whose second derivative is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x.detach() ** 2 * dy


class _Wrong(nn.Module):
    def __init__(self, spoil: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = tanh_network()
        self.spoil = spoil

    def forward(self, x: Tensor) -> Tensor:
        return self.spoil(self.inner[1](self.inner[0](x)) @ self.inner[2].weight.T)  # type: ignore


def test_the_check_refuses_what_is_not_symmetric() -> None:
    # Detached on one path alone: the cross terms are lost in one direction only.
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))).double()

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return _Crooked.apply(self.inner(x)) + self.inner(x)  # type: ignore[no-any-return]

    class Skewed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
            ctx.save_for_backward(a, b)
            return a * b

        @staticmethod
        def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
            a, b = ctx.saved_tensors
            return dy * b, dy * a.detach()

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return Skewed.apply(self.a(x), self.b(x))  # type: ignore[no-any-return]

    skewed = seeded(Product).double()
    with pytest.raises(ValueError, match="not symmetric"):
        HessianOperator(skewed, F.mse_loss, small_batch())
    HessianOperator(skewed, F.mse_loss, small_batch(), check=False)
    HessianOperator(Half(), F.mse_loss, small_batch())  # wrong, yet symmetric: not seen


@pytest.mark.parametrize("source", ["random", "numpy", "state"])
def test_the_check_refuses_what_does_not_repeat(source: str) -> None:
    calls: list[int] = []
    draws = np.random.default_rng(0)

    def spoil(x: Tensor) -> Tensor:
        calls.append(0)
        factor = {"random": random.random(), "numpy": draws.random(), "state": len(calls)}[source]
        return x * factor

    with pytest.raises(ValueError, match="two gradients"):
        HessianOperator(
            _Wrong(spoil), F.mse_loss, small_batch(), layers=["inner.0", "inner.2.weight"]
        )


def test_losses_that_are_no_numbers() -> None:
    model, (x, y) = tanh_network(), small_batch()
    with pytest.raises(DivergenceError, match="the loss on batch 2 is nan"):
        HessianOperator(model, F.mse_loss, [(x, y), (x, y * torch.nan)]) @ randn(9)
    for p in model.parameters():
        p.detach().zero_()
    with pytest.raises(DivergenceError, match=r"a product .* NaN or infinite"):  # at a kink, 0/0
        HessianOperator(model, lambda z, y: (z**2).sqrt().mean(), (x, y), check=False) @ randn(9)


def test_bad_arguments_end_in_plain_words() -> None:
    model, batch = tanh_network(), small_batch()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"layers": "1.weight"}, "did you mean '[02].weight'"),
        ({"layers": []}, "layers is empty"),
        ({"kind": "fisher"}, "kind must be one of hessian, ggn"),
        ({"reduction": "none"}, "reduction must be one of"),
        ({"keep_graph": "yes"}, "keep_graph must be"),
        ({"memory": -1}, "memory must be"),
        (
            {"masks": {"0.weight": torch.zeros(2, 2, dtype=torch.bool)}, "layers": "0.weight"},
            "no coordinate",
        ),
        ({"masks": {"0.weight": torch.ones(3, dtype=torch.bool)}}, "a mask has shape"),
        ({"masks": {"0.weight": torch.ones(2, 2)}}, "bool tensors"),
        ({"parameters": [nn.Parameter(torch.ones(1))]}, "not the model's"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            HessianOperator(model, F.mse_loss, batch, **options)
    for data, message in (([], "no batch"), (batch[0], "data must be"), ([batch[0]], "a pair")):
        with pytest.raises(ValueError, match=message):
            HessianOperator(model, F.mse_loss, data)
    with pytest.raises(ValueError, match="one number"):
        HessianOperator(model, lambda z, y: z - y, batch)
    with pytest.raises(GraphError, match="does not depend"):
        HessianOperator(model, lambda z, y: z.detach().mean(), batch)
    operator = HessianOperator(model, F.mse_loss, batch)
    with pytest.raises(ValueError, match="9 active coordinates, and the vector 8"):
        operator @ randn(8)
    with torch.no_grad():
        model[0].weight.add_(1)  # type: ignore[index,union-attr,operator]
    with pytest.raises(GraphError, match="parameters have changed"):
        operator @ randn(9)


def test_compiled_and_checkpointed_models_are_refused_by_name() -> None:
    from torch.utils.checkpoint import checkpoint

    inner = tanh_network()

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x.requires_grad_(), use_reentrant=True)  # type: ignore

    with pytest.raises(GraphError, match="use_reentrant=False"):
        HessianOperator(Checkpointed(), F.mse_loss, small_batch())
