"""Coordinates of a window: u = V w with orthonormal directions V, few of them."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from torch_qsgd.derivatives.coordinates import Coordinates
from torch_qsgd.derivatives.products import hessian_vector_product
from torch_qsgd.errors import SizeError
from torch_qsgd.orthonormal import OrthonormalBasis

Array = NDArray[np.float64]
Vector = list[Tensor]
Masks = Sequence[Tensor | None]

#: A new direction shorter than so many roundings, relative to ‖H v‖, is rounding itself.
_BREAKDOWN = 1e3


class Basis(abc.ABC):
    """Directions in the space of all parameters."""

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """m, the number of directions."""

    @abc.abstractmethod
    def project(self, vector: Sequence[Tensor | None]) -> Tensor | None:
        """Vᵀ x, of shape (m,), with the graph of x; ``None`` stands for zero. Cost: m products."""

    @abc.abstractmethod
    def lift(self, coordinates: ArrayLike) -> Vector:
        """V w, one tensor a parameter. Cost: m passes over the parameters."""

    def coordinates(self, vector: Sequence[Tensor | None]) -> Array:
        """Vᵀ x, of shape (m,), float64, without a graph."""
        found = self.project([None if x is None else x.detach() for x in vector])
        return np.zeros(self.size) if found is None else found.double().cpu().numpy()


class DirectionBasis(Basis):
    """Directions of any kind.

    Args:
        directions: m of them, each one tensor a parameter, orthonormal over all coordinates.
    """

    def __init__(self, directions: Sequence[Vector]) -> None:
        self.directions = list(directions)

    @property
    def size(self) -> int:
        """m."""
        return len(self.directions)

    def project(self, vector: Sequence[Tensor | None]) -> Tensor | None:
        """See :class:`Basis`."""
        known = [(i, x.flatten()) for i, x in enumerate(vector) if x is not None]
        if not known or not self.directions:
            return None
        device = known[0][1].device
        return torch.stack(
            [
                torch.stack(
                    [torch.dot(x.to(v[i].dtype), v[i].flatten()).to(device) for i, x in known]
                ).sum()
                for v in self.directions
            ]
        )

    def lift(self, coordinates: ArrayLike) -> Vector:
        """See :class:`Basis`."""
        total = [torch.zeros_like(v) for v in self.directions[0]]
        weights = np.asarray(coordinates, dtype=float).tolist()
        for direction, weight in zip(self.directions, weights, strict=True):
            torch._foreach_add_(total, direction, alpha=weight)
        return total


class UnitBasis(Basis):
    """The active coordinates themselves, by their positions.

    Args:
        parameters: whose coordinates.
        masks: bool, True on active coordinates, one a parameter; ``None`` where all are.
        limit: the most coordinates.

    Raises:
        SizeError: for more than ``limit`` active coordinates.
    """

    def __init__(self, parameters: Sequence[Tensor], masks: Masks, limit: int) -> None:
        self._coordinates = Coordinates(parameters, masks)
        if self.size > limit:
            raise SizeError(
                f"{self.size:,} active coordinates are more than the {limit:,} that the explicit "
                "representation allows: use representation='krylov' or 'jet', a lower density, or "
                "raise `coordinates`"
            )

    @property
    def size(self) -> int:
        """n, the active coordinates."""
        return self._coordinates.size

    def project(self, vector: Sequence[Tensor | None]) -> Tensor | None:
        """See :class:`Basis`. Cost: one selection."""
        if all(x is None for x in vector):
            return None
        return self._coordinates.flatten(vector)

    def lift(self, coordinates: ArrayLike) -> Vector:
        """See :class:`Basis`. Cost: one pass."""
        weights = torch.as_tensor(np.asarray(coordinates, dtype=float))
        return self._coordinates.unflatten(weights, self._coordinates.dtype)


def krylov_basis(
    gradients: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    dimension: int,
    *,
    masks: Masks | None = None,
    weight_decay: bool = False,
) -> DirectionBasis:
    r"""An orthonormal basis of the Krylov space of PHP from Pg, P the mask.

    :math:`u_T` of gradient descent at order 1 lies in :math:`K_T(PHP, Pg)`, and with weight decay
    in :math:`K_T(PHP, Pg) + K_T(PHP, P\theta^*)`: the space then starts from both, so that it does
    not depend on the scale of the loss. Lanczos with full reorthogonalization, twice; each new
    direction is one Hessian-vector product through the gradient's graph.

    Args:
        gradients: g, one tensor a parameter, with their graph; ``None`` where there is none.
        parameters: θ*, the leaves.
        dimension: m, at least 1.
        masks: bool, True on active coordinates; ``None`` where all are.
        weight_decay: whether there is any.

    Returns:
        At most m directions; fewer where the space is smaller, none where the gradient is zero.

    Raises:
        ValueError: for a dimension below 1.
        GraphError: where the graph cannot be differentiated again.

    Cost: at most m Hessian-vector products and 2 m² inner products; m vectors of the active
    coordinates.
    """
    if isinstance(dimension, bool) or not isinstance(dimension, int) or dimension < 1:
        raise ValueError(f"dimension must be an integer of at least 1, got {dimension!r}")
    coordinates = Coordinates(parameters, masks)
    starts: list[Sequence[Tensor | None]] = [gradients]
    if weight_decay:  # of what moves at all
        starts.append(
            [None if g is None else p for g, p in zip(gradients, parameters, strict=True)]
        )
    empty = torch.zeros(coordinates.size, dtype=coordinates.dtype, device=coordinates.device)
    basis = OrthonormalBasis(min(dimension, coordinates.size), like=empty)
    rounding = _BREAKDOWN * torch.finfo(coordinates.dtype).eps
    multiplied = 0
    while basis.size < basis.capacity and (starts or multiplied < basis.size):
        if starts:
            vector = starts.pop(0)
        else:
            direction = coordinates.unflatten(basis.rows[multiplied])
            vector = hessian_vector_product(gradients, parameters, direction)
            multiplied += 1
        fresh = coordinates.flatten([None if v is None else v.detach() for v in vector])
        whole = fresh.norm()
        basis.orthogonalize(fresh)
        length = fresh.norm()
        if whole > 0 and length > rounding * whole:
            basis.append(fresh / length)
    return DirectionBasis([coordinates.unflatten(v, coordinates.dtype) for v in basis.rows])


def add_decay(
    tensors: list[Array], basis: Basis, moving: Sequence[Tensor | None], weight_decay: float
) -> None:
    r"""Add the derivatives of :math:`\frac\lambda2 |\theta|^2`, in place.

    Args:
        tensors: :math:`\nabla L, \nabla^2 L, …` along the basis; the first two are changed.
        basis: V.
        moving: θ*, with ``None`` for parameters without a gradient, which SGD leaves alone.
        weight_decay: λ.

    Cost: m + 1 projections.
    """
    if not weight_decay:
        return
    tensors[0] = tensors[0] + weight_decay * basis.coordinates(moving)
    tensors[1] = tensors[1] + weight_decay * np.stack(
        [
            basis.coordinates(
                [None if p is None else v for p, v in zip(moving, basis.lift(w), strict=True)]
            )
            for w in np.eye(basis.size)
        ]
    )
