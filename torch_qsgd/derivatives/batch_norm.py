"""Batch normalisation in train mode, with its second derivative written by hand.

Good for Hessian-vector products, and for nothing beyond: composed of primitives
(:mod:`torch_qsgd.derivatives.normalization`) it has every derivative, and takes twice as many
passes over the activations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_qsgd.errors import GraphError


class _BatchNorm(torch.autograd.Function):
    r"""y = w x̂ + b, with :math:`\hat x = r (x - \mu)`, :math:`r = (\sigma^2 + \epsilon)^{-1/2}`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        y, mean, scale = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, True, momentum, eps
        )
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return *_Gradient.apply(dy, *ctx.saved_tensors, ctx.eps), None, None, None, None


class _Gradient(torch.autograd.Function):
    r"""Σ over a channel's n values:

    .. math::
        db = \sum dy, \quad dw = \sum dy\, \hat x, \quad
        dx = w r \left(dy - \frac{db}{n} - \hat x \frac{dw}{n}\right)
    """

    @staticmethod
    def forward(
        ctx: Any,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        scale: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        dx, dw, db = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, None, None, mean, scale, True, eps, [True, True, True]
        )
        ctx.save_for_backward(dy, x, weight, mean, scale, dw, db)
        ctx.set_materialize_grads(False)
        affine = weight is not None
        return dx, dw if affine else None, db if affine else None

    @staticmethod
    def backward(ctx: Any, vx: Tensor | None, vw: Tensor | None, vb: Tensor | None) -> Any:
        return *_SecondDerivative.apply(vx, vw, vb, *ctx.saved_tensors), None, None, None


class _SecondDerivative(torch.autograd.Function):
    r"""The derivatives of :math:`\phi = \langle vx, dx\rangle + vw\, dw + vb\, db` in dy, x and w.

    With s = Σ vx, t = Σ vx x̂, q = Σ vx dy − s db/n − t dw/n, it is φ = w r q + vw dw + vb db. At
    fixed r, its derivative in x̂ is g = −(w r dw/n) vx + (vw − w r t/n) dy; that in r, at fixed x̂,
    is w q; and dr = −(r²/n) Σ x̂ dx.
    """

    @staticmethod
    def forward(
        ctx: Any,
        vx: Tensor | None,
        vw: Tensor | None,
        vb: Tensor | None,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        r: Tensor,
        dw: Tensor,
        db: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        shape = [1, -1] + [1] * (x.dim() - 2)
        dims = [d for d in range(x.dim()) if d != 1]
        n = x.numel() / x.shape[1]
        zero = torch.zeros_like(r)
        w = torch.ones_like(r) if weight is None else weight
        vw = zero if vw is None else vw
        vb = zero if vb is None else vb

        def spread(channels: Tensor) -> Tensor:
            return channels.view(shape)

        x_hat = (x - spread(mean)).mul_(spread(r))
        if vx is None:
            s = t = q = zero
        else:
            s, t = vx.sum(dims), (vx * x_hat).sum(dims)
            q = (vx * dy).sum(dims) - s * db / n - t * dw / n
        on_vx, on_dy = -w * r * dw / n, vw - w * r * t / n
        g_sum, g_along = on_vx * s + on_dy * db, on_vx * t + on_dy * dw
        on_x_hat = -r * (g_along + w * r * q) / n
        d_dy = torch.addcmul(spread(vb - w * r * s / n), x_hat, spread(on_dy))
        d_x = x_hat.mul_(spread(on_x_hat)).addcmul_(dy, spread(r * on_dy))
        if vx is not None:
            d_dy.addcmul_(vx, spread(w * r))
            d_x.addcmul_(vx, spread(r * on_vx))
        d_x.sub_(spread(r * g_sum / n))
        return d_dy, d_x, None if weight is None else r * q

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        raise GraphError(
            "batch normalisation under `second_derivatives()` has no third derivative: use "
            "`higher_derivatives()`"
        )


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """``torch.nn.functional.batch_norm`` in train mode, with first and second derivatives.

    Args:
        input: (N, C, …), float32 or float64, of the parameters' dtype.
        running_mean, running_var: moved as by PyTorch, or ``None``.
        weight, bias: (C,); both or neither.

    Raises:
        GraphError: where a third derivative is asked for.

    Cost: forward and backward as PyTorch's native ones; a Hessian-vector product on ResNet-18 is
    1.08 times cheaper than with the composed form.
    """
    output: Tensor = _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)
    return output
