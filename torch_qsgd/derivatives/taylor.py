"""Taylor coefficients of the gradient along a polynomial path of parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_qsgd.derivatives.graph import refuse_unusable_graph
from torch_qsgd.errors import GraphError

Tensors = list[Tensor]


def taylor_coefficients(
    gradients: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    jets: Sequence[Sequence[Tensor]],
) -> list[Tensors]:
    r"""Coefficients :math:`[\varepsilon^k]\nabla L(\theta + \sum_j \varepsilon^j c_j)`, k = 1…N.

    With :math:`G_0 = \nabla L(\theta)` and :math:`G_k` the k-th coefficient, the chain rule for
    :math:`\frac{d}{d\varepsilon} L` gives the scalar
    :math:`S_k = [\varepsilon^k] L = \frac1k \sum_{j=1}^{k} j \langle G_{k-j}, c_j\rangle`, and
    :math:`G_k = \nabla_\theta S_k` because the path does not depend on :math:`\theta`. Hence each
    coefficient is one reverse pass through the graph of those before it:
    :math:`G_1 = H c_1`, :math:`G_2 = H c_2 + \tfrac12 T[c_1, c_1]`, and so on.

    Args:
        gradients: :math:`G_0`, one tensor a parameter, with the graph that made it; ``None``
            where the loss does not depend on the parameter.
        parameters: :math:`\theta`, the leaves of that graph.
        jets: :math:`c_1 … c_N`, each one tensor a parameter, of its shape. They are cast to the
            parameter's dtype.

    Returns:
        :math:`G_1 … G_N`, without a graph; zeros where the loss does not depend on a parameter.
        The graph of ``gradients`` is freed.

    Raises:
        GraphError: where the graph has been freed, or holds an operation whose derivatives are
            wrong or missing.

    Cost: N further reverse passes, each through a graph about three times the one before;
    with the gradient 3.5, 10 and 29 gradient evaluations for N = 1, 2, 3 on ResNet-18
    (``benchmarks/step_cost.py``).

    Source: reverse mode applied to truncated Taylor series, Griewank and Walther, *Evaluating
    Derivatives*, SIAM 2008, chapter 13; the form above is ours.

    Example:
        >>> theta = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> (g,) = torch.autograd.grad((theta**3).sum(), theta, create_graph=True)
        >>> c1 = torch.tensor([1.0, 0.5])
        >>> taylor_coefficients([g], [theta], [[c1]])  # H c1 with H = diag(6 theta)
        [[tensor([6., 6.])]]
    """
    order = len(jets)
    known = [g for g in gradients if g is not None]
    refuse_unusable_graph(known, order)
    paths = [[c.to(p.dtype) for c, p in zip(jet, parameters, strict=True)] for jet in jets]
    series: list[list[Tensor | None]] = [list(gradients)]
    for k in range(1, order + 1):
        outputs: Tensors = []
        weights: Tensors = []
        for j in range(1, k + 1):
            for gradient, direction in zip(series[k - j], paths[j - 1], strict=True):
                if gradient is not None and gradient.requires_grad:
                    outputs.append(gradient)
                    weights.append(direction if j == k else direction * (j / k))
        more = k < order
        series.append(reverse(outputs, parameters, weights, retain_graph=more, create_graph=more))
    return [
        [
            torch.zeros_like(p) if g is None else g.detach()
            for g, p in zip(row, parameters, strict=True)
        ]
        for row in series[1:]
    ]


def reverse(
    outputs: Tensors,
    parameters: Sequence[Tensor],
    weights: Tensors,
    *,
    retain_graph: bool,
    create_graph: bool,
) -> list[Tensor | None]:
    """One reverse pass, ∇_θ Σ ⟨weights, outputs⟩, with an error that says what to change."""
    if not outputs:  # a loss at most linear in the parameters
        return [None] * len(parameters)
    try:
        return list(
            torch.autograd.grad(
                outputs,
                parameters,
                weights,
                retain_graph=retain_graph,
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    except RuntimeError as error:
        if "is not implemented" in str(error):
            raise GraphError(
                f"PyTorch lacks a second derivative that the model needs: {error}. Replace the "
                "operation by others with the same value"
            ) from error
        raise GraphError(
            "the gradient's graph cannot be differentiated again: leave out "
            "`retain_graph=False`, do not change parameters or activations in place between the "
            f"forward pass and the step, and see PyTorch's own reason: {error}"
        ) from error


def loss_along_path(
    gradients: Sequence[Sequence[Tensor | None]], jets: Sequence[Sequence[Tensor]]
) -> Tensor:
    r"""Change of the loss along the path, :math:`\sum_{k=1}^{N} S_k`, from its gradient's series.

    Args:
        gradients: :math:`G_0 … G_{N-1}`, or more.
        jets: :math:`c_1 … c_N`.

    Returns:
        A scalar: :math:`\sum_k \frac1k \sum_{j \le k} j \langle G_{k-j}, c_j \rangle`.

    Cost: N(N+1)/2 inner products.

    Example:
        >>> g, h, c = torch.tensor([2.0]), torch.tensor([3.0]), torch.tensor([0.5])
        >>> loss_along_path([[g], [h]], [[c]])  # S_1 = <g, c>
        tensor(1.)
    """
    terms = []
    for k in range(1, len(jets) + 1):
        for j in range(1, k + 1):
            for gradient, jet in zip(gradients[k - j], jets[j - 1], strict=True):
                if gradient is not None:
                    product = torch.dot(gradient.flatten().to(jet.dtype), jet.flatten())
                    terms.append(product * (j / k))
    return torch.stack([t.to(terms[0].device) for t in terms]).sum()
