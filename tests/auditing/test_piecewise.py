"""Held operations against their analytic pieces, written out one entry at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.cases import randn
from torch_qsgd.auditing.kinks import Pieces, recording_pieces

Scalar = Callable[[Tensor], Tensor]


def leaf(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).clone().requires_grad_()


def recorded(function: Callable[..., Any], *operands: Tensor) -> Pieces:
    with recording_pieces() as pieces:
        function(*operands)
    return pieces


def held(function: Callable[..., Any], anchor: Tensor, elsewhere: Tensor) -> Tensor:
    with recorded(function, anchor).replayed():
        found: Tensor = function(elsewhere)
    return found


# ---- Element by element --------------------------------------------------------------------------


def zero(x: Tensor) -> Tensor:
    return 0 * x


def same(x: Tensor) -> Tensor:
    return x


def constant(value: float) -> Scalar:
    return lambda x: value + 0 * x


def between(low: float, high: float, inner: Scalar, below: Scalar, above: Scalar) -> Any:
    return lambda a: below if a < low else above if a > high else inner


SCALE, ALPHA = 1.0507009873554805, 1.6732632423543772
TWO = torch.tensor([2.0], dtype=torch.float64)

#: A function of PyTorch, and the smooth function that it is around a point.
ELEMENTWISE: dict[str, tuple[Scalar, Callable[[float], Scalar]]] = {
    "relu": (F.relu, lambda a: same if a > 0 else zero),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), lambda a: same if a > 0 else lambda x: 0.2 * x),
    "prelu": (lambda x: F.prelu(x, TWO / 8), lambda a: same if a > 0 else lambda x: 0.25 * x),
    "threshold": (lambda x: F.threshold(x, 0.3, 7.0), lambda a: same if a > 0.3 else constant(7.0)),
    "hardtanh": (
        lambda x: F.hardtanh(x, -0.7, 1.1),
        between(-0.7, 1.1, same, constant(-0.7), constant(1.1)),
    ),
    "relu6": (F.relu6, between(0, 6, same, zero, constant(6.0))),
    "hardsigmoid": (F.hardsigmoid, between(-3, 3, lambda x: x / 6 + 0.5, zero, constant(1.0))),
    "hardswish": (F.hardswish, between(-3, 3, lambda x: x * (x + 3) / 6, zero, same)),
    "hardshrink": (lambda x: F.hardshrink(x, 0.4), between(-0.4, 0.4, zero, same, same)),
    "softshrink": (
        lambda x: F.softshrink(x, 0.4),
        between(-0.4, 0.4, zero, lambda x: x + 0.4, lambda x: x - 0.4),
    ),
    "elu": (lambda x: F.elu(x, 0.7), lambda a: same if a > 0 else lambda x: 0.7 * (x.exp() - 1)),
    "celu": (
        lambda x: F.celu(x, 0.7),
        lambda a: same if a > 0 else lambda x: 0.7 * ((x / 0.7).exp() - 1),
    ),
    "selu": (
        F.selu,
        lambda a: (lambda x: SCALE * x) if a > 0 else lambda x: SCALE * ALPHA * (x.exp() - 1),
    ),
    "softsign": (F.softsign, lambda a: lambda x: x / (1 + math.copysign(1, a) * x)),
    "abs": (torch.abs, lambda a: same if a > 0 else lambda x: -x),
    "clamp": (
        lambda x: x.clamp(-0.7, 1.1),
        between(-0.7, 1.1, same, constant(-0.7), constant(1.1)),
    ),
    "clamp_min": (lambda x: x.clamp_min(0.1), lambda a: same if a > 0.1 else constant(0.1)),
    "clamp_max": (lambda x: x.clamp_max(0.1), lambda a: same if a < 0.1 else constant(0.1)),
    "sign": (lambda x: x.sign() * x**2, lambda a: lambda x: math.copysign(1, a) * x**2),
    "round": (lambda x: x.round() * x, lambda a: lambda x: round(a) * x),
    "gt": (lambda x: torch.where(x > 0.2, x.sin(), x**2), lambda a: torch.sin if a > 0.2 else
           torch.square),
}  # fmt: skip

POINTS = [-4.0, -2.9, -0.8, -0.5, -0.3, 0.05, 0.15, 0.25, 0.5, 1.2, 2.9, 3.5, 7.0]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_held_function_is_the_smooth_one_around_its_anchor_with_two_derivatives(name: str):
    function, piece = ELEMENTWISE[name]
    elsewhere = leaf(randn(len(POINTS), seed=3))
    found = held(function, leaf(POINTS), elsewhere)
    (slope,) = torch.autograd.grad(found.sum(), elsewhere, create_graph=True)
    (curvature,) = torch.autograd.grad((slope + 0 * elsewhere).sum(), elsewhere)
    for i, a in enumerate(POINTS):
        x = leaf(elsewhere[i].item())
        y = piece(a)(x)
        (first,) = torch.autograd.grad(y, x, create_graph=True)
        (second,) = torch.autograd.grad(first + 0 * x, x)
        wanted = [y.item(), first.item(), second.item()]
        assert [t[i].item() for t in (found, slope, curvature)] == pytest.approx(wanted, 1e-12)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_at_its_anchor_it_is_pytorchs_own_with_the_derivative_chosen_at_kinks(name: str):
    function, _ = ELEMENTWISE[name]
    kinks = [0.0, 1.1, -0.7, 6.0, 3.0, -3.0, 0.4, -0.4, 0.3, 0.1, 0.2]
    anchor = leaf(POINTS + kinks)
    outputs = [function(anchor), held(function, anchor, anchor)]
    slopes = [torch.autograd.grad(y.sum(), anchor)[0] for y in outputs]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-14, atol=1e-15)
    # PyTorch's own slope of hardsigmoid is rounded to float32.
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-7, atol=1e-14)


def modified(change: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """What a form that writes to its argument leaves there, and in views of it."""

    def run(x: Tensor) -> Tensor:
        y = 1.5 * x
        change(y)
        return y.sin()

    return run


FORMS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "relu": [
        lambda x: torch.relu(1.5 * x).sin(),
        lambda x: (1.5 * x).relu().sin(),
        lambda x: nn.ReLU()(1.5 * x).sin(),
        modified(nn.ReLU(inplace=True)),
        modified(lambda y: F.relu(y, True)),
        modified(torch.relu_),
        modified(Tensor.relu_),
    ],
    "leaky_relu": [
        lambda x: nn.LeakyReLU(0.3)(1.5 * x).sin(),
        modified(nn.LeakyReLU(0.3, inplace=True)),
        modified(lambda y: F.leaky_relu_(y, 0.3)),
    ],
    "hardtanh": [
        lambda x: nn.Hardtanh(-0.5, 0.5)(1.5 * x).sin(),
        modified(nn.Hardtanh(-0.5, 0.5, inplace=True)),
        modified(lambda y: F.hardtanh_(y, -0.5, 0.5)),
    ],
    "hardswish": [lambda x: nn.Hardswish()(1.5 * x).sin(), modified(nn.Hardswish(inplace=True))],
    "elu": [
        lambda x: nn.ELU()(1.5 * x).sin(),
        modified(nn.ELU(inplace=True)),
        modified(F.elu_),
    ],
    "abs": [
        lambda x: abs(1.5 * x).sin(),
        lambda x: torch.absolute(1.5 * x).sin(),
        modified(Tensor.abs_),
        modified(torch.abs_),
    ],
    "clamp": [
        lambda x: torch.clamp(1.5 * x, -0.5, max=0.5).sin(),
        lambda x: (1.5 * x).clip(-0.5, 0.5).sin(),
        lambda x: (1.5 * x).clamp(torch.tensor(-0.5), torch.tensor(0.5)).sin(),
        modified(lambda y: y.clamp_(-0.5, 0.5)),
    ],
    "gt": [
        lambda x: torch.where(x > 0, x, x**2),
        lambda x: torch.where(torch.gt(x, 0), x, x**2),
        lambda x: torch.where(x.gt(0.0), x, x**2),
    ],
}


@pytest.mark.parametrize("name", FORMS)
def test_all_forms_of_an_operation_are_held_alike_also_those_that_write(name: str):
    anchor, elsewhere = leaf(randn(20, seed=1)), leaf(randn(20, seed=2))
    first, *others = FORMS[name]
    wanted = held(first, anchor, elsewhere)
    (slope,) = torch.autograd.grad(wanted.sum(), elsewhere)
    assert not torch.allclose(wanted, first(elsewhere))
    for form in others:
        assert recorded(form, anchor).kinks == [name]
        found = held(form, anchor, elsewhere)
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-15)
        torch.testing.assert_close(
            torch.autograd.grad(found.sum(), elsewhere)[0], slope, rtol=1e-14, atol=1e-15
        )


def test_the_slopes_of_prelu_are_weights_and_stay_so():
    images, anchor, elsewhere = randn(2, 3, 4, seed=1), leaf([0.1, 0.2, 0.3]), leaf([1.0, -2.0, 3])
    shift = leaf(0.0)
    found = held(lambda w: F.prelu(images + shift, w), anchor, elsewhere)
    slopes = torch.where(images > 0, torch.ones(()), elsewhere.view(1, 3, 1))
    torch.testing.assert_close(found, images * slopes)
    (gradient,) = torch.autograd.grad(found.sum(), elsewhere)
    torch.testing.assert_close(gradient, images.clamp(max=0).sum((0, 2)))


def test_a_large_value_on_the_straight_side_of_elu_gives_no_nan():
    x = leaf([2000.0, -1.0])
    (slope,) = torch.autograd.grad(held(F.elu, x, x).sum(), x)
    assert slope.tolist() == pytest.approx([1.0, math.exp(-1)])


# ---- The larger of several -----------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1], ids=["max", "min"])
def test_the_larger_of_two_stays_the_same_one_and_ties_are_shared(sign: int):
    other = leaf([0.0, 0.0, 0.0, 1.0])
    functions = [torch.maximum, torch.max] if sign > 0 else [torch.minimum, torch.min]
    for function in functions:
        anchor = leaf([1.0, -1.0, 0.0, 2.0])
        with recorded(lambda a: function(a, other), anchor).replayed():  # noqa: B023
            elsewhere = leaf([-5.0, 3.0, 4.0, 0.5])
            found = function(elsewhere, other)
        first = [-5.0, 0.0, 2.0, 0.5] if sign > 0 else [0.0, 3.0, 2.0, 1.0]
        assert found.tolist() == first


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.max(),
        lambda x: torch.amax(x, (0, 1)),
        lambda x: torch.max(x, 1).values,
        lambda x: x.max(dim=1, keepdim=True)[0],
        lambda x: x.amax(1, True),
        lambda x: x.min(0)[0],
        lambda x: torch.amin(x, dim=0),
        lambda x: x.min(),
    ],
)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_an_extreme_stays_the_entry_that_it_was(function: Scalar, seed: int):
    anchor, elsewhere = leaf(randn(3, 4, seed=seed)), leaf(randn(3, 4, seed=seed + 1))
    native = function(anchor)
    # The entries chosen: where the gradient of the native function is 1, and nowhere else.
    chosen = torch.autograd.grad(native.sum(), anchor)[0]
    found = held(function, anchor, elsewhere)
    weights = randn(found.numel(), seed=5).view(found.shape)
    (gradient,) = torch.autograd.grad((found * weights).sum(), elsewhere)
    assert found.shape == native.shape
    assert found.sum().item() == pytest.approx((chosen * elsewhere).sum().item(), rel=1e-12)
    (expected,) = torch.autograd.grad((function(anchor) * weights).sum(), anchor)
    torch.testing.assert_close(gradient, expected)


def test_several_largest_entries_share_as_in_pytorch():
    anchor = leaf([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    found = held(lambda x: x.amax(1), anchor, leaf([[3.0, 5.0, 9.0], [1.0, 7.0, 7.0]]))
    assert found.tolist() == [4.0, 1.0]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: F.max_pool1d(x.flatten(2), 3, 2, 1), "max_pool1d"),
        (lambda x: F.max_pool2d(x, 2), "max_pool2d"),
        (lambda x: nn.MaxPool2d(3, 2, 1, return_indices=True)(x)[0], "max_pool2d"),
        (lambda x: torch.max_pool2d(x, (2, 3), padding=1), "max_pool2d"),
        (lambda x: nn.MaxPool3d(2)(x[None]), "max_pool3d"),
        (lambda x: nn.AdaptiveMaxPool1d(2)(x.flatten(2)), "adaptive_max_pool1d"),
        (lambda x: nn.AdaptiveMaxPool2d(2)(x), "adaptive_max_pool2d"),
        (lambda x: F.adaptive_max_pool2d(x, (3, 1), return_indices=True)[0], "adaptive_max_pool2d"),
    ],
)
def test_pooling_stays_with_the_entry_that_it_chose(function: Scalar, name: str):
    anchor, elsewhere = leaf(randn(2, 3, 6, 7, seed=1)), leaf(randn(2, 3, 6, 7, seed=2))
    native = function(anchor)
    assert recorded(function, anchor).kinks == [name]
    found = held(function, anchor, elsewhere)
    for place in torch.ones_like(native).nonzero().tolist():
        # Each output is one entry: the only one in whose direction the native output moves.
        (slope,) = torch.autograd.grad(native[tuple(place)], anchor, retain_graph=True)
        (entry,) = slope.nonzero().tolist()
        assert found[tuple(place)] == elsewhere[tuple(entry)]


# ---- Losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    ("function", "piece"),
    [
        (F.l1_loss, lambda d: lambda e: math.copysign(1, d) * e),
        (
            lambda *a, **k: F.smooth_l1_loss(*a, beta=0.5, **k),
            lambda d: (lambda e: e * e) if abs(d) < 0.5 else
            lambda e: math.copysign(1, d) * e - 0.25,
        ),
        (
            lambda *a, **k: F.huber_loss(*a, delta=0.5, **k),
            lambda d: (lambda e: e * e / 2) if abs(d) < 0.5 else
            lambda e: 0.5 * (math.copysign(1, d) * e - 0.25),
        ),
    ],
    ids=["l1", "smooth_l1", "huber"],
)  # fmt: skip
def test_a_loss_keeps_the_sign_and_side_of_each_error(function: Any, piece: Any, reduction: str):
    target, anchor, elsewhere = randn(12, seed=1), leaf(randn(12, seed=2)), leaf(randn(12, seed=3))
    found = held(lambda x: function(x, target, reduction=reduction), anchor, elsewhere)
    errors = torch.stack(
        [piece((a - t).item())(x - t) for a, x, t in zip(anchor, elsewhere, target, strict=True)]
    )
    wanted = {"mean": errors.mean(), "sum": errors.sum(), "none": errors}[reduction]
    torch.testing.assert_close(found, wanted)
    slopes = [torch.autograd.grad(y.sum(), elsewhere)[0] for y in (found, wanted)]
    torch.testing.assert_close(*slopes)


def test_a_weighted_loss_is_held_with_its_weights():
    target, weight, x = randn(9, seed=1), randn(9, seed=2).abs(), leaf(randn(9, seed=3))
    native = F.huber_loss(x, target, weight=weight)
    found = held(lambda p: F.huber_loss(p, target, weight=weight), x, x)
    assert found.item() == pytest.approx(native.item(), rel=1e-14)
