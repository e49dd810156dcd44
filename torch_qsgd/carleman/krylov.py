r"""The Krylov representation: the window of a real network in a few dimensions.

At first order, gradient descent on one batch never leaves the Krylov space of its Hessian and
gradient: :math:`u_T = -\eta \sum_t (I - \eta H)^t g \in K_T(H, g)`. So the loss is restricted to a
small one, :math:`w \mapsto L(\theta^* + V w)` with an orthonormal V from Lanczos, and its update
map, of m variables, is written out as an explicit Carleman system. This is a Galerkin projection:
exact at m = n, at order 1 exact from m = T on. At higher orders third derivatives drive descent out
of the space: that part of the error falls with m, not with N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from torch_qsgd.carleman.explicit import CarlemanSystem
from torch_qsgd.carleman.jet import jet_dtype, norm
from torch_qsgd.carleman.polynomial import PolynomialMap
from torch_qsgd.derivatives import higher_derivatives, projected_derivatives
from torch_qsgd.derivatives.taylor import reverse
from torch_qsgd.errors import SizeError
from torch_qsgd.pruning import forward

Array = NDArray[np.float64]
Vector = list[Tensor]
Masks = Sequence[Tensor | None]

#: A new direction shorter than this, relative to ‖H v‖, is rounding: the space is complete.
_BREAKDOWN = 1e3


def krylov_basis(
    gradients: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    dimension: int,
    *,
    masks: Masks | None = None,
    weight_decay: float = 0.0,
) -> list[Vector]:
    r"""An orthonormal basis of :math:`K_m(PHP, P(g + \lambda\theta^*))`, P the mask.

    Lanczos with full reorthogonalization, twice; each new direction is one Hessian-vector
    product through the gradient's graph.

    Args:
        gradients: g, one tensor a parameter, with their graph; ``None`` where there is none.
        parameters: θ*, the leaves.
        dimension: m, at least 1.
        masks: bool, True on active coordinates; ``None`` where all are.
        weight_decay: λ.

    Returns:
        At most m directions, each one tensor a parameter; fewer where the space is smaller.

    Raises:
        ValueError: for a dimension below 1, or a gradient that is zero, whose space is empty.
        GraphError: where the graph cannot be differentiated again.

    Cost: m − 1 Hessian-vector products and 2 m² inner products.
    """
    if isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 1:
        raise ValueError(f"dimension must be an integer of at least 1, got {dimension!r}")
    active = masks or [None] * len(parameters)

    def masked(vector: Sequence[Tensor | None]) -> Vector:
        return [
            torch.zeros_like(p, dtype=jet_dtype(p.dtype))
            if v is None
            else v.detach().to(jet_dtype(p.dtype)) * (1 if mask is None else mask)
            for v, p, mask in zip(vector, parameters, active, strict=True)
        ]

    start: list[Tensor | None] = [None if g is None else g.detach() for g in gradients]
    direction = masked(start)
    if weight_decay:
        torch._foreach_add_(direction, masked(list(parameters)), alpha=weight_decay)
    length = float(norm(direction))
    if length == 0:
        raise ValueError(
            "the gradient is zero on the active coordinates: its Krylov space is empty"
        )
    basis = [_scaled(direction, 1 / length)]
    rounding = _BREAKDOWN * max(torch.finfo(v.dtype).eps for v in direction)
    while len(basis) < dimension:
        weights = [v.to(p.dtype) for v, p in zip(basis[-1], parameters, strict=True)]
        outputs = [
            (g, w)
            for (g, w) in zip(gradients, weights, strict=True)
            if g is not None and g.requires_grad
        ]
        product = reverse(
            [g for g, _ in outputs],
            parameters,
            [w for _, w in outputs],
            retain_graph=True,
            create_graph=False,
        )
        direction = masked(product)
        whole = float(norm(direction))
        for _ in range(2):
            for v in basis:
                torch._foreach_add_(direction, _scaled(v, -_dot(v, direction)))
        length = float(norm(direction))
        if length <= rounding * whole:
            break
        basis.append(_scaled(direction, 1 / length))
    return basis


def unit_basis(parameters: Sequence[Tensor], masks: Masks | None, limit: int) -> list[Vector]:
    """The unit vectors of the active coordinates: the basis of the explicit representation.

    Raises:
        SizeError: for more than ``limit`` active coordinates; nothing has been built.

    Cost: n² numbers.
    """
    active = masks or [None] * len(parameters)
    counts = [
        p.numel() if mask is None else int(mask.sum())
        for p, mask in zip(parameters, active, strict=True)
    ]
    if sum(counts) > limit:
        raise SizeError(
            f"{sum(counts):,} active coordinates are more than the {limit:,} that the explicit "
            "representation allows: use representation='krylov' or 'jet', a lower density, or "
            "raise `limit`"
        )
    basis: list[Vector] = []
    for i, (p, mask) in enumerate(zip(parameters, active, strict=True)):
        places = torch.ones_like(p, dtype=torch.bool) if mask is None else mask
        for place in places.flatten().nonzero().flatten().tolist():
            direction = [torch.zeros_like(q, dtype=jet_dtype(q.dtype)) for q in parameters]
            direction[i].view(-1)[place] = 1.0
            basis.append(direction)
    return basis


def lift(basis: Sequence[Vector], coordinates: ArrayLike) -> Vector:
    """Σ_i w_i v_i, one tensor a parameter. Cost: m passes over the parameters."""
    total = [torch.zeros_like(v) for v in basis[0]]
    for direction, w in zip(basis, np.asarray(coordinates, dtype=float).tolist(), strict=True):
        torch._foreach_add_(total, direction, alpha=w)
    return total


@dataclass(frozen=True)
class KrylovWindow:
    """Gradient descent on one batch, restricted to a Krylov space.

    Attributes:
        step: the update map of the m coordinates.
        basis: V, m orthonormal directions, each one tensor a parameter.
    """

    step: PolynomialMap
    basis: list[Vector]

    @property
    def dimension(self) -> int:
        """m."""
        return len(self.basis)

    def system(self, steps: int, order: int, **options: Any) -> CarlemanSystem:
        """The explicit system of T steps; options as of :class:`CarlemanSystem`."""
        return CarlemanSystem(self.step, steps, order=order, **options)

    def lift(self, coordinates: ArrayLike) -> Vector:
        """The displacement V w of the parameters, one tensor each."""
        return lift(self.basis, coordinates)


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
        ValueError: for a dimension or degree below 1, or a zero gradient.

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
    with torch.enable_grad(), higher_derivatives():
        gradients = torch.autograd.grad(
            loss_fn(forward(model, inputs), targets),
            parameters,
            create_graph=True,
            allow_unused=True,
        )
    basis = krylov_basis(gradients, parameters, dimension, masks=masks, weight_decay=weight_decay)
    tensors = projected_derivatives(gradients, parameters, basis, degree)
    step = PolynomialMap.from_derivatives(
        [t.numpy() for t in tensors],
        lr=lr,
        weight_decay=weight_decay,
        anchor=coordinates(basis, parameters),
    )
    return KrylovWindow(step, basis)


def coordinates(basis: Sequence[Vector], vector: Sequence[Tensor | None]) -> Array:
    """Vᵀ x, of shape (m,); ``None`` stands for zero. Cost: m inner products."""
    known = [i for i, x in enumerate(vector) if x is not None]
    held = [x.detach() for x in vector if x is not None]
    return np.array([_dot([v[i] for i in known], held) if known else 0.0 for v in basis])


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    terms = [torch.dot(x.flatten(), y.flatten().to(x.dtype)) for x, y in zip(a, b, strict=True)]
    return float(torch.stack([t.double().to(terms[0].device) for t in terms]).sum())


def _scaled(vector: Vector, factor: float) -> Vector:
    return list(torch._foreach_mul(vector, factor))
