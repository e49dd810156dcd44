"""Convolution with cheap derivatives of every order.

Convolution and its two adjoints, in the input and in the weight, are views of one trilinear form,
<y, x * w>. The derivatives of each are the others, so two functions that name each other are
differentiable without end. PyTorch's own second derivative of a convolution
goes through transposes and large-kernel convolutions instead, and costs up to twice as much.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class _Geometry(NamedTuple):
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class _Convolution(torch.autograd.Function):
    """y = x * w."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
        stride, padding, dilation, groups = geometry
        output: Tensor = torch.ops.aten.convolution(
            input, weight, None, stride, padding, dilation, False, [0] * len(stride), groups
        )
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        input, weight, ctx.geometry = inputs
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        wanted = ctx.needs_input_grad[:2]
        return *_Adjoints.apply(dy, *ctx.saved_tensors, ctx.geometry, wanted), None


class _Adjoints(torch.autograd.Function):
    """Of <dy, x * w>, its derivatives in x and in w: linear in dy, each in the other operand."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        dy: Tensor, input: Tensor, weight: Tensor, geometry: _Geometry, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        stride, padding, dilation, groups = geometry
        zeros = [0] * len(stride)
        dx, dw, _ = torch.ops.aten.convolution_backward(
            dy, input, weight, None, stride, padding, dilation, False, zeros, groups,
            [*wanted, False],
        )  # fmt: skip
        return dx if wanted[0] else None, dw if wanted[1] else None

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.geometry, _ = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None) -> Any:
        dy, input, weight = ctx.saved_tensors
        wants_dy, wants_input, wants_weight = ctx.needs_input_grad[:3]
        ddy = None
        if wants_dy:
            terms = [] if vx is None else [_Convolution.apply(vx, weight, ctx.geometry)]
            terms += [] if vw is None else [_Convolution.apply(input, vw, ctx.geometry)]
            ddy = sum(terms[1:], terms[0]) if terms else None
        # The derivative of dx in w is that of the trilinear form at vx, and the other way round;
        # an operand whose place is not asked for gives only its shape.
        wanted = (wants_input and vw is not None, wants_weight and vx is not None)
        if not any(wanted):
            return ddy, None, None, None, None
        operands = input if vx is None else vx, weight if vw is None else vw
        return ddy, *_Adjoints.apply(dy, *operands, ctx.geometry, wanted), None, None


def _spread(value: int | tuple[int, ...], dimensions: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values


def convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, ...] = 1,
    padding: str | int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """``torch.nn.functional.conv1d``, ``conv2d`` and ``conv3d``, with cheap higher derivatives.

    Args:
        input: shape (N, C, …) or (C, …).
        weight: shape (C', C/groups, …); its dimension chooses among the three.

    Everything PyTorch's functions take is taken; unbatched input, ``padding="same"``, and
    operands whose dtypes differ are left to PyTorch.

    Cost: forward and first backward as PyTorch's; a Hessian-vector product 1.1 times cheaper and
    a second-order step 1.2 times cheaper on ResNet-18.
    """
    dimensions = weight.dim() - 2
    device = input.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        input, weight = input.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    plain = input.dtype == weight.dtype and input.is_floating_point()
    if isinstance(padding, str) or input.dim() != dimensions + 2 or not plain:
        native = (F.conv1d, F.conv2d, F.conv3d)[dimensions - 1]
        return native(input, weight, bias, stride, padding, dilation, groups)
    geometry = _Geometry(
        _spread(stride, dimensions),
        _spread(padding, dimensions),
        _spread(dilation, dimensions),
        groups,
    )
    output: Tensor = _Convolution.apply(input, weight, geometry)
    return output if bias is None else output + bias.view(1, -1, *[1] * dimensions)
