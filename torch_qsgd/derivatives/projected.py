"""Derivative tensors of a loss along given directions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from torch_qsgd.derivatives.graph import refuse_unusable_graph
from torch_qsgd.derivatives.taylor import reverse


class Projection(Protocol):
    """Directions, by what they make of a vector."""

    @property
    def size(self) -> int:
        """m."""

    def project(self, vector: Sequence[Tensor | None]) -> Tensor | None:
        """Inner products with the m directions, of shape (m,), with the vector's graph."""


def projected_derivatives(
    gradients: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    basis: Projection,
    degree: int,
) -> list[Tensor]:
    r"""Tensors :math:`\nabla^{q+1} L[v_{i_1}, …, v_{i_{q+1}}]`, q = 0 … P, at the anchor.

    They are the exact derivatives of :math:`w \mapsto L(\theta^* + \sum_i w_i v_i)` at w = 0: with
    unit vectors all of L's own, with a Krylov basis its Galerkin projection. Entries are taken
    once for each unordered set of indices, depth first, so that one branch of graphs is held.

    Args:
        gradients: ∇L, one tensor a parameter, with the graph that made it; ``None`` where the
            loss does not depend on the parameter.
        parameters: the leaves of that graph.
        basis: m directions.
        degree: P, at least 1.

    Returns:
        P + 1 tensors, of shape (m,), (m, m), …, float64, on the CPU. The graph is kept.

    Raises:
        GraphError: where the graph has been freed or cannot be differentiated that often.
        ValueError: for a degree below 1.

    Cost: C(m + P, P) − 1 reverse passes through the gradient's graph and those made from it, with
    one transfer to the host each.

    Example:
        >>> from torch_qsgd.carleman.bases import UnitBasis
        >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> (g,) = torch.autograd.grad((theta**3).sum(), theta, create_graph=True)
        >>> unit = UnitBasis([theta], [None], limit=2)
        >>> projected_derivatives([g], [theta], unit, degree=1)[1].tolist()
        [[6.0, 0.0], [0.0, 12.0]]
    """
    if degree < 1:
        raise ValueError(f"degree must be at least 1, got {degree}")
    refuse_unusable_graph([g for g in gradients if g is not None], degree)
    size = basis.size
    tensors = [np.zeros((size,) * (q + 1)) for q in range(degree + 1)]
    # What is still to be differentiated, the deepest last, with the indices that led there.
    pending: list[tuple[tuple[int, ...], Tensor | None]] = [((), None)]
    with torch.enable_grad():
        while pending:
            index, product = pending.pop()
            depth = len(index)
            vector = (
                gradients
                if product is None
                else reverse(
                    [product],
                    parameters,
                    [torch.ones_like(product)],
                    retain_graph=True,
                    create_graph=depth < degree,
                )
            )
            products = basis.project(vector)
            if products is None:
                continue
            values = products.detach().double().tolist()
            following = range(index[-1] if index else 0, size)
            for i in following:
                for place in itertools.permutations((*index, i)):
                    tensors[depth][place] = values[i]
            if depth < degree and products.requires_grad:
                pending.extend(((*index, i), products[i]) for i in following)
    return [torch.from_numpy(t) for t in tensors]
