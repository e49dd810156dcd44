"""Whether an operator can be trusted: cheap checks on one batch."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from torch_qsgd.batches import Batches, digest, mapped, samples, tensors_in
from torch_qsgd.derivatives.coordinates import Coordinates
from torch_qsgd.hessian.curvature import Curvature

_OFF = "If you know better, pass check=False"


def tolerance(dtype: torch.dtype) -> float:
    """The largest relative disagreement that rounding explains.

    Wrong derivatives show at 1e-2 and more; in float32, ReLU networks disagree with themselves by
    some 1e-4, where a rounded activation changes sides.
    """
    return {torch.float64: 1e-7, torch.float32: 5e-3}.get(dtype, 0.1)


def check_curvature(
    curvature: Curvature, batches: Batches, coordinates: Coordinates, mean: bool
) -> None:
    r"""Raise where the first batch's matrix A is not symmetric, or changes, or changes the model.

    With a random vector u and the unit vector w along Au, a symmetric A has
    :math:`\langle u, Aw\rangle = \|Au\|`; the second product is taken on a graph built anew, whose
    gradient must be that of the first. Where there are several batches, and the model is in eval
    mode, the first one's two parts must make up the whole.

    Args:
        curvature: A.
        batches: the first one is looked at.
        coordinates: of all of its parameters.
        mean: whether ``loss_fn`` averages over a batch, rather than sums.

    Raises:
        ValueError: says what was found, and what may be the reason.

    Cost: two graphs, one after the other, and two products, on one batch; the second graph is
    kept for what follows. With several batches, two gradients more.
    """
    before = _state(curvature)
    with contextlib.closing(iter(batches)) as passing:
        inputs, targets = next(passing)
    narrowest = min((p.dtype for p in curvature.parameters), key=lambda d: -torch.finfo(d).eps)
    allowed = tolerance(torch.bfloat16 if curvature.autocast else narrowest)
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
            "a wrong derivative does this, and so, more weakly, does half precision inside the "
            f"model. {_OFF}"
        )
    if batches.several and not any(m.training for m in curvature.model.modules()):
        _check_parts(curvature, coordinates, inputs, targets, mean, allowed)
    changed = [name for name, value in _state(curvature).items() if not _same(value, before[name])]
    if changed:
        raise ValueError(
            f"running the model changed its {', '.join(changed)}, which was not put back. {_OFF}"
        )


def _check_parts(
    curvature: Curvature,
    coordinates: Coordinates,
    inputs: Any,
    targets: Any,
    mean: bool,
    allowed: float,
) -> None:
    """Raise where the first batch's gradient is not that of its parts, weighted as batches are."""
    length = int(samples(inputs, targets))
    if length < 2 or any(len(t) != length for t in tensors_in((inputs, targets)) if t.dim()):
        return  # it cannot be taken apart

    def gradient(rows: slice) -> tuple[Tensor, float]:
        part = mapped((inputs, targets), lambda t: t[rows] if t.dim() else t)
        terms = curvature.terms("a part of batch 1", *part)
        return coordinates.flatten(curvature.gradient(*part)), terms

    try:
        whole, _ = gradient(slice(None))
        first, one = gradient(slice(length // 3 or 1))
        second, two = gradient(slice(length // 3 or 1, None))
    except (RuntimeError, ValueError, IndexError, ArithmeticError):
        return
    share = one / (one + two)
    combined = first.mul_(share).add_(second, alpha=1 - share) if mean else first.add_(second)
    size = max(_length(whole), _length(combined))
    gap = _length(whole - combined)
    if gap > allowed * size:
        raise ValueError(
            f"the first batch's gradient is not that of its two parts ({gap / size:.1e} apart), so "
            "several batches would be weighted wrong: give reduction='sum' where loss_fn sums over "
            "samples, or count= where it averages over something else than samples (tokens that "
            f"are not padding, say). If the loss is no such mean, pass check=False"
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
        digest([x]) == digest([y]) if isinstance(x, Tensor) else x == y
        for x, y in zip(a, b, strict=True)
    )
