"""Piecewise operations, each written so that its pieces can be held.

A *definition* computes an operation from smooth functions and choices among them. It makes every
choice by ``held(function, *args)``, which at the anchor calls the function and remembers what it
returned, and elsewhere returns what it remembered. So the definition is the operation itself the
first time, and its analytic continuation from there afterwards. At a kink itself, where PyTorch has
to choose a derivative, the same one is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Held = Callable[..., Tensor]
#: Returns ``NotImplemented`` where these arguments make no kink; raises ``NotImplementedError``
#: where they make one that cannot be held.
Definition = Callable[..., Any]


# ---- Activations, element by element -----------------------------------------------------------


def _relu(held: Held, input: Tensor, inplace: bool = False) -> Tensor:
    return torch.where(held(torch.gt, input, 0), input, 0)


def _leaky_relu(
    held: Held, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor:
    return torch.where(held(torch.gt, input, 0), input, input * negative_slope)


def _prelu(held: Held, input: Tensor, weight: Tensor) -> Tensor:
    if weight.dim() and input.dim() > 1:
        weight = weight.view(-1, *[1] * (input.dim() - 2))
    return torch.where(held(torch.gt, input, 0), input, input * weight)


def _threshold(
    held: Held, input: Tensor, threshold: float, value: float, inplace: bool = False
) -> Tensor:
    return torch.where(held(torch.gt, input, threshold), input, value)


def _hardtanh(
    held: Held, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    capped = torch.where(held(torch.lt, input, max_val), input, max_val)
    return torch.where(held(torch.gt, input, min_val), capped, min_val)


def _relu6(held: Held, input: Tensor, inplace: bool = False) -> Tensor:
    return _hardtanh(held, input, 0.0, 6.0)


def _hardsigmoid(held: Held, input: Tensor, inplace: bool = False) -> Tensor:
    return _hardtanh(held, input, -3.0, 3.0) / 6 + 0.5


def _hardswish(held: Held, input: Tensor, inplace: bool = False) -> Tensor:
    capped = torch.where(held(torch.lt, input, 3), input * (input + 3) / 6, input)
    return torch.where(held(torch.gt, input, -3), capped, 0)


def _hardshrink(held: Held, input: Tensor, lambd: float = 0.5) -> Tensor:
    return torch.where(held(_outside, input, lambd), input, 0)


def _softshrink(held: Held, input: Tensor, lambd: float = 0.5) -> Tensor:
    moved = input - lambd * held(torch.sign, input)
    return torch.where(held(_outside, input, lambd), moved, 0)


def _outside(input: Tensor, bound: float) -> Tensor:
    return input.abs() > bound


def _exponential_below(
    held: Held, input: Tensor, alpha: float, scale: float, width: float
) -> Tensor:
    """Scaled x above 0, a multiple of exp(x/w) − 1 below: the kink may be of higher order."""
    above = held(torch.gt, input, 0)
    # The exponential must not overflow, not even where it is not chosen.
    below = torch.expm1(torch.where(above, 0, input) / width)
    return torch.where(above, scale * input, scale * alpha * below)


def _elu(held: Held, input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return _exponential_below(held, input, alpha, 1.0, 1.0)


def _celu(held: Held, input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return _exponential_below(held, input, alpha, 1.0, alpha)


def _selu(held: Held, input: Tensor, inplace: bool = False) -> Tensor:
    return _exponential_below(held, input, 1.6732632423543772, 1.0507009873554805, 1.0)


def _softsign(held: Held, input: Tensor) -> Tensor:
    return input / (1 + input * held(torch.sign, input))


def _abs(held: Held, input: Tensor) -> Any:
    return NotImplemented if input.is_complex() else input * held(torch.sign, input)


# ---- Bounds, and the larger of several ---------------------------------------------------------


def _larger(held: Held, input: Tensor, other: Tensor, sign: int = 1) -> Tensor:
    """The larger of two, or with the sign −1 the smaller; half of each where they are equal."""
    first, second = (torch.gt, torch.lt) if sign > 0 else (torch.lt, torch.gt)
    rest = torch.where(held(second, input, other), other, (input + other) / 2)
    return torch.where(held(first, input, other), input, rest)


def _clamp(
    held: Held, input: Tensor, min: float | Tensor | None = None, max: float | Tensor | None = None
) -> Tensor:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        raised = input if min is None else _larger(held, input, torch.as_tensor(min))
        return raised if max is None else _larger(held, raised, torch.as_tensor(max), -1)
    output = input
    if min is not None:
        output = torch.where(held(torch.le, input, min), min, output)
    if max is not None:  # which counts where the bounds cross
        output = torch.where(held(torch.ge, output, max), max, output)
    return torch.where(held(_passes, input, min, max), input, output)


def _passes(input: Tensor, min: float | None, max: float | None) -> Tensor:
    """Where PyTorch lets the gradient through; at the bounds themselves, versions differ."""
    with torch.enable_grad():
        leaf = input.detach().requires_grad_()
        (slope,) = torch.autograd.grad(leaf.clamp(min, max).sum(), leaf)
    return slope != 0


def _clamp_min(held: Held, input: Tensor, min: float | Tensor) -> Tensor:
    return _clamp(held, input, min)


def _clamp_max(held: Held, input: Tensor, max: float | Tensor) -> Tensor:
    return _clamp(held, input, None, max)


def _extreme(
    held: Held,
    input: Tensor,
    dim: int | Tensor | None = None,
    keepdim: bool = False,
    other: Tensor | None = None,
    *,
    sign: int,
) -> Any:
    """``max`` and ``min`` in their three forms."""
    if other is not None or isinstance(dim, Tensor):
        return _larger(held, input, other if other is not None else torch.as_tensor(dim), sign)
    if dim is None:
        return _extreme_over(held, input, sign=sign)
    native = torch.max if sign > 0 else torch.min
    index = held(lambda: native(input, dim, True).indices)
    result = torch.return_types.max if sign > 0 else torch.return_types.min
    values = input.gather(dim, index)
    return result((values, index) if keepdim else (values.squeeze(dim), index.squeeze(dim)))


def _extreme_over(
    held: Held,
    input: Tensor,
    dim: int | tuple[int, ...] = (),
    keepdim: bool = False,
    *,
    sign: int,
) -> Tensor:
    """``amax`` and ``amin``: the mean of the entries that are the largest."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim) or tuple(range(input.dim()))
    share = held(_shares, input, dims, sign)
    return (torch.where(share > 0, input, 0) * share).sum(dims, keepdim)


def _shares(input: Tensor, dims: tuple[int, ...], sign: int) -> Tensor:
    end = (input.amax if sign > 0 else input.amin)(dims, True)
    largest = (input == end).to(input.dtype)
    return largest / largest.sum(dims, True)


# ---- Pooling -----------------------------------------------------------------------------------


def pooled(spatial: int, adaptive: bool, both: bool) -> Definition:
    """Max-pooling over so many dimensions; ``both`` where it always returns indices too."""
    native = getattr(F, f"{'adaptive_' if adaptive else ''}max_pool{spatial}d_with_indices")

    def taken(held: Held, input: Tensor, *args: Any, return_indices: bool = False) -> Any:
        index = held(lambda: native(input, *args)[1])
        flat = index.flatten(-spatial)
        output = input.flatten(-spatial).gather(-1, flat).view_as(index)
        return (output, index) if both or return_indices else output

    def sliding(
        held: Held,
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        args = (kernel_size, stride or None, padding, dilation, ceil_mode)
        return taken(held, input, *args, return_indices=return_indices)

    def resizing(held: Held, input: Tensor, output_size: Any, return_indices: bool = False) -> Any:
        return taken(held, input, output_size, return_indices=return_indices)

    return resizing if adaptive else sliding


# ---- Losses ------------------------------------------------------------------------------------


def _reduced(errors: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return errors
    return errors.sum() if reduction == "sum" else errors.mean()


def _l1_loss(
    held: Held,
    input: Tensor,
    target: Tensor,
    size_average: None = None,
    reduce: None = None,
    reduction: str = "mean",
) -> Tensor:
    if size_average is not None or reduce is not None:
        raise NotImplementedError
    return _reduced(_abs(held, input - target), reduction)


def _smooth_l1_loss(
    held: Held,
    input: Tensor,
    target: Tensor,
    size_average: None = None,
    reduce: None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    if beta == 0 or size_average is not None or reduce is not None:
        return _l1_loss(held, input, target, size_average, reduce, reduction)
    return _huber_loss(held, input, target, reduction, beta) / beta


def _huber_loss(
    held: Held,
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    gap = input - target
    far = delta * (gap * held(torch.sign, gap) - 0.5 * delta)
    errors = torch.where(held(_outside, gap, delta), far, 0.5 * gap * gap)
    return _reduced(errors if weight is None else errors * weight, reduction)


# ---- What has a kink for some arguments, or one that is not held -------------------------------


def _norm(place: int) -> Definition:
    """A norm is smooth, but at zero, where its power is even."""

    def smooth_if_even(held: Held, *args: Any, **kwargs: Any) -> Any:
        named = [kwargs[name] for name in ("p", "ord", "norm_type") if name in kwargs]
        power = [*args[place : place + 1], *named, 2][0]
        number = isinstance(power, (int, float)) and math.isfinite(power)
        if power in (None, "fro") or (number and power > 0 and power % 2 == 0):
            return NotImplemented
        raise NotImplementedError

    return smooth_if_even


def _unheld_if(*words: str) -> Definition:
    """An operation with kinks where one of these words is among its arguments."""

    def smooth_otherwise(held: Held, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(a, str) and a in words for a in (*args, *kwargs.values())):
            raise NotImplementedError
        return NotImplemented

    return smooth_otherwise


def _grid_sample(held: Held, input: Tensor, grid: Tensor, *args: Any, **kwargs: Any) -> Any:
    if grid.requires_grad:
        raise NotImplementedError
    return NotImplemented  # linear in its input


#: By the name under which PyTorch has the function, in any of its namespaces.
DEFINITIONS: dict[str, Definition] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "threshold": _threshold,
    "hardtanh": _hardtanh,
    "relu6": _relu6,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "hardshrink": _hardshrink,
    "softshrink": _softshrink,
    "elu": _elu,
    "celu": _celu,
    "selu": _selu,
    "softsign": _softsign,
    "abs": _abs,
    "clamp": _clamp,
    "clamp_min": _clamp_min,
    "clamp_max": _clamp_max,
    "maximum": _larger,
    "minimum": partial(_larger, sign=-1),
    "max": partial(_extreme, sign=1),
    "min": partial(_extreme, sign=-1),
    "amax": partial(_extreme_over, sign=1),
    "amin": partial(_extreme_over, sign=-1),
    "l1_loss": _l1_loss,
    "smooth_l1_loss": _smooth_l1_loss,
    "huber_loss": _huber_loss,
    "norm": _norm(1),
    "vector_norm": _norm(1),
    "dist": _norm(2),
    "cdist": _norm(2),
    "pdist": _norm(1),
    "pairwise_distance": _norm(2),
    "normalize": _norm(1),
    "lp_pool1d": _norm(1),
    "lp_pool2d": _norm(1),
    "lp_pool3d": _norm(1),
    "embedding_bag": _unheld_if("max"),
    "scatter_reduce": _unheld_if("amax", "amin"),
    "index_reduce": _unheld_if("amax", "amin"),
    "grid_sample": _grid_sample,
}
