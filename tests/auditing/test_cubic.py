"""The third derivative's norm and the polynomial degree, against dense tensors and closed forms."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.cases import classifier, image_batches, randn, regression, seeded, tanh_network
from torch_qsgd.auditing.cubic import _search, cubic_norm, polynomial_degree


class Weights(nn.Module):
    """A loss of a vector of weights, whatever the batch."""

    def __init__(self, values: Tensor, loss: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(values.clone())
        self._loss = loss

    def forward(self, x: Tensor) -> Tensor:
        return self._loss(self.weight)


def first(outputs: Tensor, targets: Any) -> Tensor:
    return outputs


BATCH = (torch.zeros(1), None)


def third_derivative(model: nn.Module, loss_fn: Any, batch: Any) -> Tensor:
    """∇³L as a dense tensor (n, n, n), by nested forward-mode derivatives of the loss."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes.values()])
        values = {n: part.view(shapes[n]) for n, part in zip(shapes, parts, strict=True)}
        return loss_fn(torch.func.functional_call(model, values, (batch[0],)), batch[1])

    return torch.func.jacfwd(torch.func.jacfwd(torch.func.jacfwd(loss)))(flat)


def largest(tensor: Tensor, tries: int = 100, steps: int = 150) -> float:
    """max ‖T[v, v, ·]‖ over unit vectors, by gradient ascent on T[v, v, v] from many starts."""
    v = randn(tries, len(tensor), seed=11)
    v = v / v.norm(dim=1, keepdim=True)
    shift = 2 * float(tensor.flatten(1).norm())  # every step then goes up
    for _ in range(steps):
        image = torch.einsum("ijk,ti,tj->tk", tensor, v, v)
        v = image + shift / 10 * v
        v = v / v.norm(dim=1, keepdim=True)
    return float(torch.einsum("ijk,ti,tj->tk", tensor, v, v).norm(dim=1).max())


def symmetric(size: int, seed: int) -> Tensor:
    half = randn(size, size, size, seed=seed)
    return torch.stack([half.permute(o) for o in itertools.permutations(range(3))]).sum(0)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 6))
def test_of_a_random_cubic_it_is_near_the_norm_and_never_more(seed: int, size: int):
    tensor = symmetric(size, seed)

    def loss(w: Tensor) -> Tensor:
        return torch.einsum("ijk,i,j,k->", tensor, w, w, w) / 6 + (w * w).sum()

    model = Weights(randn(size, seed=seed + 1), loss)
    norm = largest(tensor)
    found = cubic_norm(model, first, BATCH, lr=0.2, restarts=6, iterations=40)
    assert found <= 0.1 * norm * (1 + 1e-9)
    assert found >= 0.5 * 0.1 * norm  # a peak, if not the highest
    few = cubic_norm(model, first, BATCH, lr=0.2, restarts=1, iterations=2)
    assert 0 < few <= found * (1 + 1e-12)


def test_of_a_network_it_is_that_of_the_dense_tensor_also_under_a_mask():
    model, (batch,) = tanh_network(), regression(1)
    tensor = third_derivative(model, F.mse_loss, batch)
    options: dict[str, Any] = {"lr": 0.3, "restarts": 6, "iterations": 40}
    found = cubic_norm(model, F.mse_loss, batch, **options)
    assert found == pytest.approx(0.15 * largest(tensor), rel=1e-4)
    keep = {model[0].weight: torch.tensor([[True, False], [False, True]])}
    active = [0, 3, 4, 5, 6, 7, 8]
    part = tensor[active][:, active][:, :, active]
    found = cubic_norm(model, F.mse_loss, batch, masks=keep, **options)
    assert found == pytest.approx(0.15 * largest(part), rel=1e-4)
    last = list(model[2].parameters())
    found = cubic_norm(model, F.mse_loss, batch, parameters=last, **options)
    assert found == 0  # the loss is quadratic in the last layer


def test_two_searches_find_more_than_one_where_the_first_ends_at_a_lower_peak():
    # L = a³/6 + 5 b³/6; the gradient is along a, from where the search does not leave.
    model = Weights(torch.tensor([1.0, 0.0]).double(), lambda w: w[0] ** 3 / 6 + 5 * w[1] ** 3 / 6)
    assert cubic_norm(model, first, BATCH, lr=2.0, restarts=1) == pytest.approx(1.0)
    draw = torch.Generator().manual_seed(1)
    assert cubic_norm(model, first, BATCH, lr=2.0, generator=draw) == pytest.approx(5.0)


class Dense:
    """A symmetric tensor, by its images."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def along(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        return vector, torch.einsum("ijk,i,j->k", self._tensor, vector, vector)


def test_a_search_comes_to_rest_also_where_plain_power_steps_go_round_in_circles():
    circles = 0
    for trial in range(40):
        tensor, start = symmetric(3, trial), randn(3, seed=trial + 1)
        v, plain = start / start.norm(), []
        for _ in range(150):
            _, image = Dense(tensor).along(v)
            plain.append(float(image.norm()))
            v = image / image.norm()
        circles += abs(plain[-1] - plain[-2]) > 1e-3 * plain[-1]
        shifted = list(_search(Dense(tensor), start, 150))  # type: ignore[arg-type]
        assert shifted[0] == pytest.approx(plain[0])
        assert abs(shifted[-1] - shifted[-2]) < 1e-4 * shifted[-1]
        assert shifted[-1] > 0.2 * largest(tensor, 20, 50)
    assert circles > 0


def test_of_a_quadratic_it_is_zero_and_of_what_has_no_third_derivative_nan():
    model = Weights(randn(4), lambda w: (w * w).sum())
    assert cubic_norm(model, first, BATCH, lr=0.1) == 0.0
    model = Weights(randn(4), lambda w: (w**3).sum() * float("inf"))
    assert np.isnan(cubic_norm(model, first, BATCH, lr=0.1))
    assert polynomial_degree(model, first, BATCH) == 0

    model = Weights(randn(4), lambda w: checkpoint(torch.exp, w, use_reentrant=True).sum())
    assert np.isnan(cubic_norm(model, first, BATCH, lr=0.1))
    assert polynomial_degree(model, first, BATCH) == 0


def deep_linear() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("loss", "degree"),
    [
        (lambda w: w.sum(), 2),
        (lambda w: (w * w).sum() + w[0] * w[1], 2),
        (lambda w: torch.log(torch.exp((w * w).sum())), 2),
        (lambda w: w[0] ** 3 + (w * w).sum(), 3),
        (lambda w: w[0] * w[1] * w[2], 3),
        (lambda w: (w**4).sum(), 0),
        (lambda w: torch.cos(w).sum(), 0),
        (lambda w: torch.exp(w).sum(), 0),
        (lambda w: 1e-2 * (w**4).sum() + (w * w).sum(), 0),
    ],
)
@pytest.mark.parametrize("at", [0.0, 0.7])
def test_the_degree_of_a_polynomial(loss: Any, degree: int, at: float, dtype: torch.dtype):
    # At zero the third derivatives of x⁴ and of the cosine vanish, and must not mislead.
    model = Weights(torch.full((3,), at, dtype=dtype), loss)
    assert polynomial_degree(model, first, BATCH) == degree


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_degree_of_networks(dtype: torch.dtype):
    (x, y), labels = regression(1)[0], torch.tensor([0, 1] * 4)
    x, y = x.to(dtype), y.to(dtype)
    linear = seeded(lambda: nn.Linear(2, 1)).to(dtype)
    assert polynomial_degree(linear, F.mse_loss, (x, y)) == 2
    assert polynomial_degree(deep_linear().to(dtype), F.mse_loss, (x, y)) == 0
    assert polynomial_degree(tanh_network(dtype), F.mse_loss, (x, y)) == 0
    logistic = seeded(lambda: nn.Linear(2, 2)).to(dtype)
    assert polynomial_degree(logistic, F.cross_entropy, (x, labels)) == 0
    # In the active coordinates alone: with one layer held, the other's loss is quadratic.
    model = deep_linear().to(dtype)
    masks = {p: torch.zeros_like(p, dtype=torch.bool) for p in model[0].parameters()}
    assert polynomial_degree(model, F.mse_loss, (x, y), masks=masks) == 2


def test_the_model_its_buffers_and_the_random_state_are_left_as_they_were():
    model = nn.Sequential(classifier("batch"), nn.Dropout(0.5)).train()
    batch = image_batches(1)[0]
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    ticks: list[tuple[int, int]] = []
    found = [
        cubic_norm(
            model, F.cross_entropy, batch, lr=0.1, iterations=2, tick=lambda *t: ticks.append(t)
        )
        for _ in range(2)
    ]
    assert polynomial_degree(model, F.cross_entropy, batch) == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert found[0] == found[1] > 0  # dropout drew the same numbers
    assert ticks == [(i, 4) for i in (1, 2, 3, 4)] * 2


def test_bad_arguments_are_refused_in_words():
    model = tanh_network()
    for name, value in (("lr", 0.0), ("restarts", 0), ("iterations", 0)):
        with pytest.raises(ValueError, match=name):
            cubic_norm(model, F.mse_loss, regression(1)[0], **{"lr": 0.1, name: value})  # type: ignore[arg-type]
