"""Derivative tensors of a loss along given directions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from torch_qsgd.derivatives.graph import refuse_unusable_graph
from torch_qsgd.derivatives.taylor import reverse

Vector = Sequence[Tensor]


def projected_derivatives(
    gradients: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    basis: Sequence[Vector],
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
        basis: m directions, each one tensor a parameter.
        degree: P, at least 1.

    Returns:
        P + 1 tensors, of shape (m,), (m, m), …, float64, on the CPU.

    Raises:
        GraphError: where the graph has been freed or cannot be differentiated that often.
        ValueError: for a degree below 1.

    Cost: C(m + P, P) − 1 reverse passes through the gradient's graph and those made from it.

    Example:
        >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> (g,) = torch.autograd.grad((theta**3).sum(), theta, create_graph=True)
        >>> unit = [[torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 1.0])]]
        >>> projected_derivatives([g], [theta], unit, degree=1)[1].tolist()
        [[6.0, 0.0], [0.0, 12.0]]
    """
    if degree < 1:
        raise ValueError(f"degree must be at least 1, got {degree}")
    known = [g for g in gradients if g is not None]
    refuse_unusable_graph(known, degree)
    size = len(basis)
    directions = [[v.to(p.dtype) for v, p in zip(row, parameters, strict=True)] for row in basis]
    tensors = [torch.zeros((size,) * (q + 1), dtype=torch.float64) for q in range(degree + 1)]

    def descend(vector: Sequence[Tensor | None], prefix: tuple[int, ...]) -> None:
        depth = len(prefix)
        for i in range(prefix[-1] if prefix else 0, size):
            product = _dot(vector, directions[i])
            if product is None:
                continue
            index = (*prefix, i)
            for place in {*itertools.permutations(index)}:
                tensors[depth][place] = float(product.detach())
            if depth < degree and product.requires_grad:
                derivative = reverse(
                    [product],
                    parameters,
                    [torch.ones_like(product)],
                    retain_graph=True,
                    create_graph=depth + 1 < degree,
                )
                descend(derivative, index)

    with torch.enable_grad():
        descend(gradients, ())
    return tensors


def _dot(vector: Sequence[Tensor | None], direction: Vector) -> Tensor | None:
    terms = [(a * b).sum() for a, b in zip(vector, direction, strict=True) if a is not None]
    return torch.stack([t.to(terms[0].device) for t in terms]).sum() if terms else None
