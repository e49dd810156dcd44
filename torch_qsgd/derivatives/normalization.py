"""Normalisations composed of primitive operations.

PyTorch's native normalisations have first derivatives that are right and higher ones that are
silently wrong in some modes: the second-order Taylor coefficient of a gradient is off by 51 % for
``layer_norm`` in plain reverse mode, and train-mode ``batch_norm`` has none. The same functions
written with mean, subtraction, square and reciprocal root are right at every order, because each
primitive is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


def _widened(input: Tensor) -> Tensor:
    """Half precision is normalised in float32, as the native kernels do."""
    return input.float() if input.dtype in _HALF else input


def _moments(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, centred values and biased variance over ``dims``, kept as dimensions of size 1.

    A sum scaled afterwards, and a product rather than a square, have the derivatives that take
    the fewest passes over the input: 2 to 4 % of a whole window step on a ResNet.
    """
    mean = x.sum(dims, keepdim=True)
    share = mean.numel() / x.numel()
    mean = mean * share
    centred = x - mean
    return mean, centred, (centred * centred).sum(dims, keepdim=True) * share


def _affine(
    normalised: Tensor, weight: Tensor | None, bias: Tensor | None, shape: Sequence[int]
) -> Tensor:
    if weight is not None:
        normalised = normalised * weight.to(normalised.dtype).view(shape)
    if bias is not None:
        normalised = normalised + bias.to(normalised.dtype).view(shape)
    return normalised


def _channel_shape(input: Tensor) -> list[int]:
    return [1, input.shape[1]] + [1] * (input.dim() - 2)


def _update_running(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: int,
    momentum: float,
) -> None:
    """Move the running statistics once; the variance with Bessel's correction, as native does."""
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.batch_norm`` from primitives; running statistics move as there."""
    shape = _channel_shape(input)
    x = _widened(input)
    if training:
        dims = [d for d in range(input.dim()) if d != 1]
        count = input.numel() // input.shape[1]
        if count <= 1:
            raise ValueError(
                "Expected more than 1 value per channel when training, "
                f"got input size {tuple(input.shape)}"
            )
        mean, centred, var = _moments(x, dims)
        _update_running(running_mean, running_var, mean.flatten(), var.flatten(), count, momentum)
    else:
        if running_mean is None or running_var is None:
            raise ValueError("batch_norm in eval mode needs running_mean and running_var")
        centred = x - running_mean.to(x.dtype).view(shape)
        var = running_var.to(x.dtype).view(shape)
    # The per-channel factors are combined first, so that one pass over the input is enough.
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight.to(x.dtype).view(shape)
    return _affine(centred * scale, None, bias, shape).to(input.dtype)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.layer_norm`` from primitives."""
    dims = list(range(-len(normalized_shape), 0))
    _, centred, var = _moments(_widened(input), dims)
    normalised = centred * torch.rsqrt(var + eps)
    return _affine(normalised, weight, bias, normalized_shape).to(input.dtype)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.group_norm`` from primitives."""
    if input.dim() < 2 or input.shape[1] % num_groups:
        raise ValueError(
            f"group_norm needs an input (N, C, ...) with C divisible by num_groups={num_groups}, "
            f"got shape {tuple(input.shape)}"
        )
    grouped = _widened(input).reshape(input.shape[0], num_groups, -1)
    _, centred, var = _moments(grouped, [2])
    normalised = (centred * torch.rsqrt(var + eps)).view(input.shape)
    return _affine(normalised, weight, bias, _channel_shape(input)).to(input.dtype)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.instance_norm`` from primitives; running statistics move as there."""
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    count = math.prod(input.shape[2:])
    if count <= 1:
        raise ValueError(
            "Expected more than 1 spatial element when training, "
            f"got input size {tuple(input.shape)}"
        )
    mean, centred, var = _moments(_widened(input), list(range(2, input.dim())))
    channels = input.shape[1]
    _update_running(
        running_mean,
        running_var,
        mean.view(-1, channels).mean(0),
        var.view(-1, channels).mean(0),
        count,
        momentum,
    )
    normalised = centred * torch.rsqrt(var + eps)
    return _affine(normalised, weight, bias, _channel_shape(input)).to(input.dtype)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """``torch.nn.functional.rms_norm`` from primitives."""
    x = _widened(input)
    dims = list(range(-len(normalized_shape), 0))
    floor = torch.finfo(x.dtype).eps if eps is None else eps
    normalised = x * torch.rsqrt(x.square().mean(dims, keepdim=True) + floor)
    return _affine(normalised, weight, None, normalized_shape).to(input.dtype)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``torch._weight_norm``, g v/‖v‖, from primitives; PyTorch's second derivative is wrong.

    Args:
        v: direction of the weight.
        g: its length, along ``dim``; of the whole tensor where that is −1.
    """
    dims = list(range(v.dim())) if dim == -1 else [d for d in range(v.dim()) if d != dim]
    return v * (g * torch.rsqrt((v * v).sum(dims, keepdim=dim != -1)))


def _torch_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    return batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _torch_instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    return instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


def _without_cudnn_flag(composed: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The C++ twins of these functions end in a cuDNN flag that does not change the value."""

    def call(
        *args: Any, cudnn_enable: bool = True, cudnn_enabled: bool = True, **kwargs: Any
    ) -> Tensor:
        return composed(*args[:5], **kwargs)

    return call


#: The composed twin of each native function, for a mode to put in its place.
COMPOSED: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm,
    F.group_norm: group_norm,
    F.instance_norm: instance_norm,
    F.rms_norm: rms_norm,
    torch.batch_norm: _torch_batch_norm,
    torch.instance_norm: _torch_instance_norm,
    torch.layer_norm: _without_cudnn_flag(layer_norm),
    torch.group_norm: _without_cudnn_flag(group_norm),
    torch.rms_norm: rms_norm,
    torch._weight_norm: weight_norm,
}
