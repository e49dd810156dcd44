"""Costs counted on models against formulas by hand."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.cases import classifier, image_batches, randn, seeded
from torch_qsgd.resources.classical import StepCost, step_cost


def summed(outputs: Tensor, targets: Any) -> Tensor:
    return outputs.sum()


def cost(model: nn.Module, inputs: Any, loss_fn: Any = summed) -> StepCost:
    return step_cost(model, loss_fn, (inputs, None))


# ---- Floating-point operations -------------------------------------------------------------------


def matmul(m: int, k: int, n: int) -> int:
    return 2 * m * k * n


def test_a_layer_takes_its_product_once_forward_and_once_backward_and_again_for_its_inputs():
    batch, widths = 5, (7, 11, 3)
    model = nn.Sequential(nn.Linear(7, 11), nn.Tanh(), nn.Linear(11, 3))
    first, second = (matmul(batch, a, b) for a, b in itertools.pairwise(widths))
    # Forward, weights' gradients, and inputs' gradients of all layers but the first.
    assert cost(model, torch.ones(batch, 7)).flops == 2 * first + 3 * second


def test_a_convolution_takes_a_product_for_each_place_it_looks_at():
    batch, channels, filters, kernel, side = 2, 3, 4, 3, 8
    model = nn.Sequential(nn.Conv2d(channels, filters, kernel), nn.Conv2d(filters, 1, kernel))
    first = 2 * batch * (side - 2) ** 2 * filters * channels * kernel**2
    second = 2 * batch * (side - 4) ** 2 * 1 * filters * kernel**2
    found = cost(model, torch.ones(batch, channels, side, side))
    assert found.flops == 2 * first + 3 * second


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(8, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = [t.view(2, 5, 2, 4).transpose(1, 2) for t in self.projection(x).chunk(3, dim=-1)]
        return F.scaled_dot_product_attention(*heads)


def test_attention_is_counted_as_it_is_written_out():
    projection = matmul(2 * 5, 8, 24)
    products = 2 * 2 * (matmul(5, 4, 5) + matmul(5, 5, 4))  # QKᵀ and AV of two heads in two samples
    found = cost(Attention(), torch.ones(2, 5, 8))
    assert found.flops == 2 * projection + 3 * products


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.cells = kind(4, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x)[0]


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.LSTM, 4), (nn.GRU, 3)])
def test_recurrent_layers_are_not_hidden_in_a_fused_kernel(
    kind: Callable[..., nn.Module], gates: int
):
    inputs, hidden = matmul(2 * 5, 4, 8 * gates), matmul(2, 8, 8 * gates)
    found = cost(Recurrent(kind), torch.ones(2, 5, 4))
    # The gradient of the first state, which is zero, is not needed.
    assert found.flops == 2 * inputs + (3 * 5 - 1) * hidden


# ---- Elements and bytes --------------------------------------------------------------------------


class Scaled(nn.Module):
    """w · x, of three elements each."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


def test_elements_and_bytes_of_a_tiny_model_are_exact():
    found = cost(Scaled(), torch.ones(3))
    # w·x, its sum, the sum's gradient 1, which is spread over x by a view, and times x.
    assert found.elementwise == 3 + 3 + 1 + 3
    read_and_written = (3 + 3 + 3) + (3 + 1) + (1 + 1) + (1 + 3 + 3)
    assert found.bytes_moved == 4 * read_and_written
    assert found.flops == 0
    assert found.operations == 10


class Shifted(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.w.sum()


def test_a_gradient_that_is_one_number_is_written_out_as_backward_does():
    found = cost(Shifted(4), torch.ones(3))
    # w's sum, x plus it, the sum's gradient 1, spread and summed over x; and that, spread over w.
    assert found.elementwise == 4 + 3 + 3 + 1 + 3 + 4


def test_bytes_grow_with_the_dtype_and_operations_do_not():
    single, double = (
        cost(Scaled().to(dtype), torch.ones(3, dtype=dtype))
        for dtype in (torch.float32, torch.float64)
    )
    assert double.bytes_moved == 2 * single.bytes_moved
    assert double.operations == single.operations


def test_a_product_reads_its_factors_and_writes_its_result():
    model, batch = nn.Linear(4, 3, bias=False), 8
    found = cost(model, torch.ones(batch, 4))
    x, w, y = batch * 4, 3 * 4, batch * 3
    forward, total = x + w + y, y + 1
    ones, backward = 1 + 1, 1 + x + w  # the sum's gradient is one number, spread by a view
    assert found.bytes_moved == 4 * (forward + total + ones + backward)


class Reshaped(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(3, 1).t().squeeze().unflatten(0, (1, 3)).select(0, 0)


def test_views_are_free_forward():
    plain, reshaped = (cost(model, torch.ones(3)) for model in (Scaled(), Reshaped()))
    # Backward, the sum's gradient is written out as the row selected, and then read as such.
    assert reshaped.elementwise == plain.elementwise + 3
    assert reshaped.bytes_moved == plain.bytes_moved + 4 * ((1 + 3) + (3 - 1))


def test_an_embedding_reads_the_rows_it_is_asked_for():
    rows, width, words = 1000, 4, 3
    found = cost(nn.Embedding(rows, width), torch.arange(words))
    forward, total, ones = words * width, words * width, 1
    backward = rows * width  # the gradient is dense
    assert found.elementwise == forward + total + ones + backward
    read = (words * width + 2 * words) + words * width + 1 + (1 + 2 * words)
    written = words * width + 1 + 1 + rows * width
    assert found.bytes_moved == 4 * (read + written)


def test_costs_add_up_over_steps():
    found = cost(Scaled(), torch.ones(3))
    assert found.times(100) == StepCost(0, 100 * found.elementwise, 100 * found.bytes_moved)
    assert found.times(0) == StepCost(0, 0, 0)
    with pytest.raises(ValueError, match="steps must be an integer of at least 0"):
        found.times(-1)


def test_operations_are_proportional_to_the_batch():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)))
    one, two, three = (cost(model, torch.ones(b, 6)) for b in (10, 20, 30))
    assert two.flops == 2 * one.flops
    assert three.elementwise - two.elementwise == two.elementwise - one.elementwise


# ---- Any model -----------------------------------------------------------------------------------


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(3, 2, bias=False)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.weight(left * right)


def test_inputs_may_be_a_tuple_or_a_mapping():
    x = torch.ones(4, 3)
    by_place, by_name = cost(Several(), (x, x)), cost(Several(), {"left": x, "right": x})
    assert by_place == by_name
    assert by_place.flops == 2 * matmul(4, 3, 2)


def noisy_classifier() -> nn.Module:
    return nn.Sequential(*classifier("batch")[:-1], nn.Dropout(0.5), nn.Linear(36, 3).double())


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_state_are_left_as_they_were(training: bool):
    model = noisy_classifier().train(training)
    model[0].eval()
    batch = image_batches(1)[0]
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    gradients = [p.grad for p in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    with torch.no_grad():
        first = step_cost(model, F.cross_entropy, batch)
    assert first == step_cost(model, F.cross_entropy, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert [m.training for m in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert p.grad is gradient
        assert (gradient == 7).all()
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_that_fails_is_left_as_it_was_too():
    model = noisy_classifier()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()

    def failing(outputs: Tensor, targets: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step_cost(model, failing, image_batches(1)[0])
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_mode_decides_what_is_counted():
    batch = image_batches(1)[0]
    in_training = step_cost(noisy_classifier().train(), F.cross_entropy, batch)
    in_eval = step_cost(noisy_classifier().eval(), F.cross_entropy, batch)
    assert in_training.flops == in_eval.flops
    assert in_training.elementwise > in_eval.elementwise


@pytest.mark.parametrize("start", [None, 7.0])
@pytest.mark.parametrize("kind", [weight_norm, spectral_norm])
def test_a_layer_whose_weights_are_parametrized_takes_the_same_products(
    kind: Callable[..., nn.Module], start: float | None
):
    # What makes the weights is of elements, and of products with vectors, which count as such.
    def network(parametrized: bool) -> nn.Module:
        layer = nn.Linear(4, 6)
        return nn.Sequential(kind(layer) if parametrized else layer, nn.Linear(6, 1))

    model, plain = (seeded(lambda p=p: network(p)) for p in (True, False))
    for p in model.parameters():
        p.grad = None if start is None else torch.full_like(p, start)
    gradients = [p.grad for p in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    found, wanted = (cost(m, torch.ones(5, 4)) for m in (model, plain))
    assert found.flops == wanted.flops == 2 * matmul(5, 4, 6) + 3 * matmul(5, 6, 1)
    assert found.elementwise >= wanted.elementwise + 4 * 6
    assert found == cost(model, torch.ones(5, 4))
    for name, value in model.state_dict().items():  # the vectors of the power iteration too
        assert torch.equal(value, before[name]), name
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert p.grad is gradient
        assert gradient is None or (gradient == start).all()


def test_no_hook_is_told_of_a_gradient():
    model = nn.Linear(3, 2)
    told: list[Tensor] = []
    model.weight.register_post_accumulate_grad_hook(told.append)
    cost(model, torch.ones(4, 3))
    assert told == []
    model(torch.ones(4, 3)).sum().backward()
    assert len(told) == 1


def test_frozen_weights_cost_no_gradient():
    model = nn.Sequential(nn.Linear(7, 11), nn.Linear(11, 3))
    model[0].requires_grad_(False)
    assert cost(model, torch.ones(5, 7)).flops == matmul(5, 7, 11) + 2 * matmul(5, 11, 3)


@pytest.mark.parametrize(
    ("model", "loss_fn", "batch", "words"),
    [
        (nn.Linear(2, 1), summed, torch.ones(4, 2), "batch must be a pair .* got Tensor"),
        (nn.Linear(2, 1), summed, (torch.ones(4, 2),), "batch must be a pair"),
        (nn.Tanh(), summed, (torch.ones(4, 2), None), "no trainable weights"),
        (nn.Linear(2, 1), lambda o, t: o, (torch.ones(4, 2), None), r"scalar .* shape \(4, 1\)"),
        (nn.Linear(2, 1), lambda o, t: o.detach().sum(), (torch.ones(4, 2), None), "depends on"),
        (nn.Linear(2, 1), lambda o, t: 3.0, (torch.ones(4, 2), None), "got float"),
        (nn.Embedding(9, 2, sparse=True), summed, (torch.arange(3), None), "sparse=False"),
    ],
)
def test_what_cannot_be_counted_is_said_so(model: Any, loss_fn: Any, batch: Any, words: str):
    with pytest.raises(ValueError, match=words):
        step_cost(model, loss_fn, batch)


def test_a_loss_of_doubles_is_counted_as_of_singles():
    model = seeded(lambda: nn.Linear(3, 2))
    x = randn(4, 3)
    assert cost(copy.deepcopy(model).double(), x).operations == cost(model, x.float()).operations
