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

    With a random vector u and w = Au, a symmetric A has :math:`\langle w, w\rangle = \langle u,
    Aw\rangle`; the second product is taken on a graph built anew, whose gradient must be that of
    the first.

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
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(coordinates.size, generator=generator, dtype=torch.float64)
    direction = (u / u.norm()).to(coordinates.device, coordinates.dtype)

    def product(v: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        graph, terms = curvature.build(0, inputs, targets)
        if keep:
            curvature.keep(graph, terms)
        moved = graph.product(coordinates.unflatten(v), positions)
        slopes = [None if g is None else g.detach() for g in graph.gradients]
        return coordinates.flatten(slopes).double(), coordinates.flatten(moved).double()

    first, w = product(direction, keep=False)
    length = w.norm()
    second, again = product((w / length).to(direction) if length > 0 else direction, keep=True)
    gap = float((first - second).norm())
    if gap > allowed * float(first.norm()):
        raise ValueError(
            f"the same batch gave two gradients {gap / float(first.norm()):.1e} apart: something "
            "in the model, or in loss_fn, draws random numbers outside PyTorch or keeps a state. "
            f"{_OFF}"
        )
    asymmetry = float((length - direction.double() @ again).abs())
    if asymmetry > allowed * float(length):
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
