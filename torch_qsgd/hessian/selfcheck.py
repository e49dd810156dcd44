"""Whether an operator can be trusted: cheap checks on one batch."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from torch_qsgd.batches import Batches
from torch_qsgd.derivatives.coordinates import Coordinates
from torch_qsgd.hessian.curvature import Curvature

_OFF = "If you know better, pass check=False"


def tolerance(dtype: torch.dtype) -> float:
    """The largest relative disagreement that rounding explains.

    Wrong derivatives show at 1e-2 and more; in float32, ReLU networks disagree with themselves by
    some 1e-4, where a rounded activation changes sides.
    """
    return {torch.float64: 1e-7, torch.float32: 2e-3}.get(dtype, 0.1)


def check_curvature(curvature: Curvature, batches: Batches, coordinates: Coordinates) -> None:
    r"""Raise where the first batch's matrix A is not symmetric, or changes, or changes the model.

    With a random vector u and the unit vector w along Au, a symmetric A has
    :math:`\langle u, Aw\rangle = \|Au\|`; the second product is taken on a graph built anew, whose
    gradient must be that of the first.

    Raises:
        ValueError: says what was found, and what may be the reason.

    Cost: two graphs, one after the other, and two products, on one batch; the second graph is
    kept for what follows.
    """
    before = _state(curvature)
    with contextlib.closing(iter(batches)) as passing:
        inputs, targets = next(passing)
    narrowest = min((p.dtype for p in curvature.parameters), key=lambda d: -torch.finfo(d).eps)
    allowed = tolerance(narrowest)
    positions = range(len(curvature.parameters))

    def probe() -> Tensor:
        """u: drawn anew rather than held, for vectors are as large as the model."""
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(coordinates.size, generator=generator, dtype=coordinates.dtype)
        return drawn.to(coordinates.device)

    def evaluated(v: Tensor, keep: bool) -> tuple[Tensor, float, float]:
        """The product with v, the gradient's length, and its component along u."""
        graph, terms = curvature.build(0, inputs, targets)
        if keep:
            curvature.keep(graph, terms)
        product = coordinates.flatten(graph.product(coordinates.unflatten(v), positions, not keep))
        gradient = coordinates.flatten([None if g is None else g.detach() for g in graph.gradients])
        return product, _length(gradient), _along(gradient, probe())

    w, slope, first = evaluated(probe(), keep=False)
    length = _length(w)
    again, other_slope, second = evaluated(w.div_(length or 1.0), keep=True)
    # A difference d of gradients shows along a Gaussian u as a number of size ‖d‖.
    largest = max(slope, other_slope)
    if abs(first - second) > allowed * largest:
        raise ValueError(
            f"the same batch gave two gradients {abs(first - second) / largest:.1e} apart: "
            "something in the model, or in loss_fn, draws random numbers outside PyTorch or keeps "
            f"a state. {_OFF}"
        )
    asymmetry = abs(length - _along(again, probe()))
    if asymmetry > allowed * length:
        raise ValueError(
            f"the second derivatives are not symmetric: they differ by {asymmetry / length:.1e}, "
            f"where {allowed:.0e} is rounding. A custom autograd.Function whose backward pass has "
            f"a wrong derivative does this. {_OFF}"
        )
    changed = [name for name, value in _state(curvature).items() if not _same(value, before[name])]
    if changed:
        raise ValueError(
            f"running the model changed its {', '.join(changed)}: a forward pass must leave "
            f"parameters and gradients alone. {_OFF}"
        )


def _length(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v, dtype=torch.float64))


def _along(v: Tensor, u: Tensor) -> float:
    return float(torch.dot(v, u))


def _state(curvature: Curvature) -> dict[str, Any]:
    model = curvature.model
    return {
        "parameters": [p._version for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad._version for p in model.parameters()],
        "buffers": [b.clone() for b in model.buffers()],
        "training flags": [m.training for m in model.modules()],
        "requires_grad flags": [p.requires_grad for p in model.parameters()],
        "random state": [torch.get_rng_state()],
    }


def _same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        bool(torch.equal(x, y)) if isinstance(x, Tensor) else x == y
        for x, y in zip(a, b, strict=True)
    )
