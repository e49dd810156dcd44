"""Products of a loss's Hessian, or Gauss–Newton matrix, with vectors, through a kept graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from torch_qsgd.derivatives.graph import refuse_unusable_graph
from torch_qsgd.derivatives.taylor import reverse
from torch_qsgd.errors import GraphError

Gradients = Sequence[Tensor | None]


class CurvatureGraph(Protocol):
    """A symmetric matrix over all parameters, by its products; it holds the graph it needs."""

    gradients: list[Tensor | None]

    @property
    def roots(self) -> list[Tensor]:
        """Tensors whose graph is held."""

    def product(
        self, directions: Sequence[Tensor], chosen: Sequence[int], last: bool = False
    ) -> list[Tensor | None]:
        """Rows of the product for the chosen parameters, with directions that are zero elsewhere.

        Args:
            directions: one tensor a chosen parameter, of its shape and dtype.
            chosen: positions of parameters.
            last: whether the graph may be freed on the way, which takes less memory.
        """


class HessianGraph:
    r"""The Hessian of a loss: :math:`H v = \nabla_\theta \langle \nabla_\theta L, v \rangle`.

    Args:
        loss: a scalar with its graph.
        parameters: :math:`\theta`, leaves of that graph.

    Raises:
        GraphError: where the graph holds an operation without a second derivative.

    Cost: a gradient with its graph; each product is one reverse pass, 2.0 to 2.3 gradients on
    residual networks.

    Example:
        >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> graph = HessianGraph((theta**3).sum(), [theta])
        >>> graph.product([torch.tensor([1.0, 1.0])], [0])  # H = diag(6 theta)
        [tensor([ 6., 12.])]
    """

    def __init__(self, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        refuse_unusable_graph([loss], order=1)
        self._parameters = list(parameters)
        self.gradients: list[Tensor | None] = list(
            torch.autograd.grad(loss, self._parameters, create_graph=True, allow_unused=True)
        )
        if any(g.layout != torch.strided for g in self.roots):
            raise GraphError(
                "a gradient is sparse, and has no second derivative: make the embedding with "
                "sparse=False"
            )

    @property
    def roots(self) -> list[Tensor]:
        """The gradients, with their graph."""
        return [g for g in self.gradients if g is not None]

    def product(
        self, directions: Sequence[Tensor], chosen: Sequence[int], last: bool = False
    ) -> list[Tensor | None]:
        """See :class:`CurvatureGraph`."""
        return hessian_vector_product(
            [self.gradients[i] for i in chosen],
            [self._parameters[i] for i in chosen],
            directions,
            last=last,
        )


class GaussNewtonGraph:
    r"""The generalized Gauss–Newton matrix :math:`J^\top \nabla_z^2 \ell\, J`, z the outputs.

    :math:`J v` is had from reverse passes alone, as the derivative of :math:`J^\top y`, linear in
    y, in the direction v.

    Args:
        outputs: z = model(inputs), one tensor with its graph.
        loss_fn: :math:`\ell(z)`, a scalar.
        parameters: :math:`\theta`, leaves of that graph.

    Raises:
        GraphError: where outputs are no single tensor, or do not depend on the parameters.

    Cost: a gradient with its graph; each product about as much as a Hessian's.

    Source: Schraudolph, Neural Computation 14, 1723 (2002).

    Example:
        >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> graph = GaussNewtonGraph(theta**2, lambda z: (z**2).sum() / 2, [theta])
        >>> graph.product([torch.tensor([1.0, 1.0])], [0])  # (2 theta)²
        [tensor([ 4., 16.])]
    """

    def __init__(
        self, outputs: Any, loss_fn: Callable[[Tensor], Tensor], parameters: Sequence[Tensor]
    ) -> None:
        if not isinstance(outputs, Tensor) or not outputs.requires_grad:
            raise GraphError(
                "kind='ggn' needs a model whose output is one tensor that depends on the "
                f"parameters, got {type(outputs).__name__}: wrap the model, or use kind='hessian'"
            )
        refuse_unusable_graph([outputs], order=1)
        self._parameters = list(parameters)
        self._outputs = outputs
        self._leaf = outputs.detach().requires_grad_()
        (self._slope,) = torch.autograd.grad(loss_fn(self._leaf), self._leaf, create_graph=True)
        self._dual = torch.zeros_like(outputs, requires_grad=True)
        self._pulled = torch.autograd.grad(
            outputs, self._parameters, self._dual, create_graph=True, allow_unused=True
        )
        slopes = torch.autograd.grad(
            outputs, self._parameters, self._slope.detach(), retain_graph=True, allow_unused=True
        )
        self.gradients: list[Tensor | None] = list(slopes)

    @property
    def roots(self) -> list[Tensor]:
        """What holds the graph."""
        return [g for g in (*self._pulled, self._slope) if g is not None]

    def product(
        self, directions: Sequence[Tensor], chosen: Sequence[int], last: bool = False
    ) -> list[Tensor | None]:
        """See :class:`CurvatureGraph`."""
        (moved,) = hessian_vector_product(
            [self._pulled[i] for i in chosen], [self._dual], directions
        )
        if moved is None or not self._slope.requires_grad:
            return [None] * len(chosen)
        (bent,) = reverse(
            [self._slope], [self._leaf], [moved], retain_graph=True, create_graph=False
        )
        if bent is None:
            return [None] * len(chosen)
        parameters = [self._parameters[i] for i in chosen]
        return reverse(
            [self._outputs], parameters, [bent], retain_graph=not last, create_graph=False
        )


def hessian_vector_product(
    gradients: Gradients,
    parameters: Sequence[Tensor],
    directions: Sequence[Tensor],
    *,
    last: bool = False,
) -> list[Tensor | None]:
    r""":math:`\nabla_\theta \sum_i \langle g_i, v_i \rangle` through the gradients' graph.

    Args:
        gradients: with their graph; ``None`` where there is none.
        parameters: leaves of that graph.
        directions: one tensor a gradient; cast to its dtype.
        last: whether the graph is freed on the way; otherwise it is kept.

    Returns:
        One tensor a parameter, ``None`` where it has no part in the gradients.

    Raises:
        GraphError: where the graph cannot be differentiated again.

    Cost: one reverse pass.

    Example:
        >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> (g,) = torch.autograd.grad((theta**3).sum(), theta, create_graph=True)
        >>> hessian_vector_product([g], [theta], [torch.tensor([1.0, 1.0])])
        [tensor([ 6., 12.])]
    """
    used = [
        (g, v.to(g.dtype))
        for g, v in zip(gradients, directions, strict=True)
        if g is not None and g.requires_grad
    ]
    outputs, weights = [g for g, _ in used], [v for _, v in used]
    return reverse(outputs, parameters, weights, retain_graph=not last, create_graph=False)
