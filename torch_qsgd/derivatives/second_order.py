"""Batch normalisation where second derivatives are all that is wanted.

In train mode its second derivative is by hand. In eval mode it is folded into the convolution
before it: with running statistics :math:`\\mu, \\sigma^2` it is affine, and

.. math::
    \\gamma \\frac{(x * w + b) - \\mu}{\\sqrt{\\sigma^2 + \\epsilon}} + \\beta
    = x * (w s) + (b - \\mu) s + \\beta, \\qquad s = \\frac{\\gamma}{\\sqrt{\\sigma^2 + \\epsilon}}

exactly, with the derivatives in w, b, γ and β. The graph then holds one activation less a layer,
and its derivatives no pass over activations for the normalisation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_qsgd.derivatives.batch_norm import batch_norm
from torch_qsgd.derivatives.convolution import convolution

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)

_FULL = (torch.float32, torch.float64)


class _Call:
    """A convolution's operands and output, which may have been written to since."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        self.args, self.kwargs, self._output = args, kwargs, output
        self._versions = self._read()

    def _read(self) -> list[int]:
        operands = (*self.args, *self.kwargs.values(), self._output)
        return [t._version for t in operands if isinstance(t, Tensor)]

    def gave(self, tensor: Tensor) -> bool:
        """Whether the tensor is its output, and running it again would give the same."""
        return tensor is self._output and self._read() == self._versions


class SecondOrderBatchNorm:
    """Remembers the latest convolution, for the normalisation that may follow it.

    Cost: a folded convolution is computed twice, in the forward pass only.
    """

    def __init__(self) -> None:
        self._latest: _Call | None = None

    def convolution(self, *args: Any, **kwargs: Any) -> Tensor:
        """As :func:`torch_qsgd.derivatives.convolution.convolution`."""
        output = convolution(*args, **kwargs)
        self._latest = _Call(args, kwargs, output)
        return output

    def batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        """``F.batch_norm``, folded or by hand; ``None`` where neither applies.

        Folded where it is affine and its input the latest convolution's output, by hand in train
        mode on (N, C, …) of one precision.
        """
        latest, self._latest = self._latest, None
        if not training:
            if latest is None or not latest.gave(input):
                return None
            if running_mean is None or running_var is None:
                return None
            return _folded(latest, running_mean, running_var, weight, bias, eps)
        known = [t for t in (weight, bias, running_mean, running_var) if t is not None]
        uniform = input.dtype in _FULL and all(t.dtype == input.dtype for t in known)
        if not uniform or (weight is None) != (bias is None) or input.numel() <= input.shape[1]:
            return None
        return batch_norm(input, running_mean, running_var, weight, bias, momentum, eps)


def _folded(
    call: _Call,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    given = {**dict(zip(("input", "weight", "bias"), call.args, strict=False)), **call.kwargs}
    kernel, shift = given["weight"], given.get("bias")
    scale = torch.rsqrt(running_var + eps)
    if weight is not None:
        scale = scale * weight
    offset = -running_mean * scale if shift is None else (shift - running_mean) * scale
    if bias is not None:
        offset = offset + bias
    given["weight"] = kernel * scale.to(kernel.dtype).view(-1, *[1] * (kernel.dim() - 1))
    given["bias"] = offset.to(kernel.dtype)
    operands = [given.pop(name) for name in ("input", "weight", "bias")]
    return convolution(*operands, *call.args[3:], **given)
