r"""The Krylov representation: the window of a real network in a few dimensions.

At first order, gradient descent on one batch never leaves the Krylov space of its Hessian and
gradient: :math:`u_T = -\eta \sum_t (I - \eta H)^t g \in K_T(H, g)`. So the loss is restricted to a
small one, :math:`w \mapsto L(\theta^* + V w)` with an orthonormal V from Lanczos, and its update
map, of m variables, is written out as an explicit Carleman system. This is a Galerkin projection:
exact at m = n, at order 1 exact from m = T on. At higher orders third derivatives drive descent out
of the space: that part of the error falls with m, not with N.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from torch_qsgd.batches import forward
from torch_qsgd.carleman.bases import Basis, Masks, add_decay, krylov_basis
from torch_qsgd.carleman.explicit import CarlemanSystem
from torch_qsgd.carleman.polynomial import PolynomialMap
from torch_qsgd.derivatives import higher_derivatives, projected_derivatives


@dataclass(frozen=True)
class KrylovWindow:
    """Gradient descent on one batch, restricted to a Krylov space.

    Attributes:
        step: the update map of the m coordinates.
        basis: V, m orthonormal directions.
    """

    step: PolynomialMap
    basis: Basis

    @property
    def dimension(self) -> int:
        """m."""
        return self.basis.size

    def system(self, steps: int, order: int, **options: Any) -> CarlemanSystem:
        """The explicit system of T steps; options as of :class:`CarlemanSystem`."""
        return CarlemanSystem(self.step, steps, order=order, **options)

    def lift(self, coordinates: ArrayLike) -> list[Tensor]:
        """The displacement V w of the parameters, one tensor each."""
        return self.basis.lift(coordinates)


def krylov_window(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    inputs: Any,
    targets: Any,
    *,
    dimension: int,
    lr: float,
    degree: int = 2,
    masks: Masks | None = None,
    weight_decay: float = 0.0,
) -> KrylovWindow:
    r"""Project one batch's gradient descent onto the Krylov space of its Hessian and gradient.

    Args:
        model, loss_fn: the loss is ``loss_fn(model(inputs), targets)``.
        inputs, targets: the batch.
        dimension: m.
        lr: η.
        degree: D of the projected :math:`G_0 … G_D`; an order-N system needs no more than N.
        masks: bool, one a trainable parameter, in the order of ``model.parameters()``.
        weight_decay: λ.

    Returns:
        A :class:`KrylovWindow`. The model's buffers move as in any forward pass.

    Raises:
        GraphError: where the model has no derivatives of that order.
        ValueError: for a dimension or degree below 1, masks that do not fit, a zero gradient, or
            a model without a trainable parameter.

    Cost: m Hessian-vector products, then C(m + D, D) − 1 reverse passes.

    Source: ours; Galerkin projection on the space of Lanczos, J. Res. Natl. Bur. Stand. 45 (1950).

    Example:
        >>> from torch.nn.functional import mse_loss
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> x, y = torch.randn(16, 4), torch.randn(16, 1)
        >>> window = krylov_window(model, mse_loss, x, y, dimension=3, lr=0.1)
        >>> system = window.system(steps=5, order=2)
        >>> u = window.lift(system.displacement(system.solution))
        >>> [tuple(part.shape) for part in u]
        [(8, 4), (8,), (1, 8), (1,)]
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no trainable parameter")
    if masks is not None and (
        len(masks) != len(parameters)
        or any(m is not None and m.shape != p.shape for m, p in zip(masks, parameters, strict=True))
    ):
        raise ValueError(
            f"masks must be one a trainable parameter, {len(parameters)} of them, of its shape, "
            "or None where all of it is active"
        )
    with torch.enable_grad(), higher_derivatives():
        gradients = torch.autograd.grad(
            loss_fn(forward(model, inputs), targets),
            parameters,
            create_graph=True,
            allow_unused=True,
        )
    basis = krylov_basis(
        gradients, parameters, dimension, masks=masks, weight_decay=weight_decay != 0
    )
    if not basis.size:
        raise ValueError(
            "the gradient is zero on the active coordinates: its Krylov space is empty"
        )
    tensors = [t.numpy() for t in projected_derivatives(gradients, parameters, basis, degree)]
    moving = [None if g is None else p for g, p in zip(gradients, parameters, strict=True)]
    add_decay(tensors, basis, moving, weight_decay)
    return KrylovWindow(PolynomialMap.from_derivatives(tensors, lr=lr), basis)
