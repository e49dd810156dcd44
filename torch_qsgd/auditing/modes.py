r"""Which ways of differentiating a model supports: each is run on one batch, and compared.

Along a random direction v in the weights, :math:`\nabla L(θ + εv) = \sum_k G_k ε^k`. A window of
order N needs :math:`G_1 … G_N`. Three ways to have them are tried, on a copy in float64:

- the package's own, which a window uses;
- PyTorch's own reverse mode, repeated, which gives wrong numbers through native normalisations
  without a word, and nothing through fused attention;
- forward mode over reverse mode by ``torch.func``, for :math:`G_1`.

*The references.* The package's own are compared with finite differences of PyTorch's gradient: odd
and even parts in ε at six points give each :math:`G_k`, and four of the points tell how well; the
series itself sets the scale. They converge on smooth functions. So a network with kinks is held on
the pieces that its kinked operations are on at these weights (:mod:`.kinks`): that is the network
whose derivatives the package takes. Where an operation cannot be held, points so near that no kink
lies amid them may do; where they do not, the derivatives' symmetry is looked at:
:math:`\langle w, G_k(v + sw) \rangle` and :math:`\langle v, G_k(v + sw) \rangle` are polynomials in
s whose coefficients, :math:`D^{k+1}L` of so many v and so many w, must be the same. Symmetry does
not see all: a backward pass through which nothing is differentiated is symmetric. The other two
ways are compared with the package's own, or with finite differences where those have found fault.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from torch_qsgd.auditing.subject import Subject, cut, masks_by_name, words
from torch_qsgd.checks import checked_generator, require_integer
from torch_qsgd.report.measurements import DerivativeMode
from torch_qsgd.training import Batch, LossFunction

#: Spacings of finite differences, in radii of convergence. The wide ones are exact where all is
#: smooth; of the narrow ones, kinks may lie outside.
_SPACINGS = {torch.float64: (1e-2, 6e-4, 1e-4, 1e-5), torch.float32: (0.1, 0.03)}
#: A coefficient counts as zero below this part of what the series has at its radius.
_NEGLIGIBLE = 1e-6
#: How many times smaller than a gap the differences' own error must be to find fault by it. That
#: of a kink amid the points is 5 % of the gap that it makes.
_SURE = 100.0
_NAMES = {1: "double", 2: "triple"}

T = TypeVar("T")
#: G_k by k, with the length below which a difference counts as none.
Known = Mapping[int, tuple[Tensor, float]]


def derivative_modes(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Batch,
    *,
    order: int = 2,
    masks: Mapping[Any, Tensor] | None = None,
    most: int | None = 4,
    generator: torch.Generator | None = None,
) -> list[DerivativeMode]:
    """Try each way of differentiating a model on one batch.

    Args:
        model: in the mode, train or eval, that is meant. It is copied and left as it was, and so
            are all random states.
        loss_fn: of outputs and targets; a scalar.
        batch: inputs and targets.
        order: N, at least 1. The package's own derivatives are tried to order N + 1, which says
            whether one order more could be had.
        masks: bool tensors by parameter or its name, True on active coordinates; the direction is
            zero elsewhere. Parameters without one are dense.
        most: samples of the batch to use, the first ones: which ways run does not depend on their
            number. Batch normalisation needs more than one. ``None`` takes them all.
        generator: of the direction, on the CPU; by default one with seed 0.

    Returns:
        ``"jets of order k"`` for k = 1 … N + 1, the package's own; ``"PyTorch's own double
        backward"`` for order 1, ``"… triple backward"`` for order 2 and so on; and ``"forward over
        reverse (torch.func)"`` for order 1. Each with its relative difference from its reference,
        supported up to 1e-3 (by symmetry up to rounding), and the reason why not, or what it was
        compared with.

    Raises:
        ValueError: for an argument outside what is allowed.
        DivergenceError: where the gradient on the batch is NaN or infinite.
        Exception: what the model or ``loss_fn`` raise of themselves on the batch.

    Cost: 7 gradients, up to 25 where finite differences fail, and the series of order N + 1 once,
    or three times for symmetry (10 gradients at order 2, 29 at order 3), all in float64. With four
    images, 45 s on a core for a ResNet of 7 million weights; a copy of the model, and about twenty
    vectors of its size.

    Source: ours.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> batch = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
        >>> for mode in derivative_modes(model, nn.functional.cross_entropy, batch, order=1):
        ...     print(mode.name, mode.supported)
        jets of order 1 True
        jets of order 2 True
        PyTorch's own double backward True
        forward over reverse (torch.func) True
    """
    order = require_integer("order", order, 1)
    generator = checked_generator(generator)
    if most is not None:
        batch = cut(batch, require_integer("most", most, 1))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    if not names:
        raise ValueError("the model has no parameter that requires a gradient")
    by_name = masks_by_name(model, masks or {})
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        subject = Subject.in_float64(model, loss_fn, batch, names, by_name)
        v, w = subject.direction(generator), subject.direction(generator)
        jets, known = _jets(subject, v, w, order + 1)
        return [*jets, *_native(subject, v, order, known), _forward(subject, v, w, known.get(1))]


# ---- The package's own ---------------------------------------------------------------------------


def _jets(subject: Subject, v: Tensor, w: Tensor, order: int) -> tuple[list[DerivativeMode], Known]:
    """Modes of orders 1 … ``order``, and what the coefficients are, where that is known."""
    reasons: dict[int, str] = {}
    modes: dict[int, DerivativeMode] = {}
    known: dict[int, tuple[Tensor, float]] = {}
    for highest in range(order, 0, -1):
        series = _tried(partial(subject.series, v, highest))
        if isinstance(series, str):
            reasons[highest] = series
            continue
        radius, largest = _radius(subject.base, series)
        floors = [_NEGLIGIBLE * largest / radius**k for k in range(1, highest + 1)]
        modes, references = _by_differences(subject, v, series, floors, radius)
        if len(modes) < highest:
            modes = {**_by_symmetry(subject, v, w, series), **modes}
        for k, mode in modes.items():
            if k in references or mode.supported:
                known[k] = references.get(k, series[k - 1]), floors[k - 1]
        break
    modes.update({k: _unsupported(_jet_name(k), k, reason) for k, reason in reasons.items()})
    return [modes[k] for k in sorted(modes)], known


def _jet_name(k: int) -> str:
    return f"jets of order {k}"


def _radius(base: Tensor, series: list[Tensor]) -> tuple[float, float]:
    """About the radius of convergence, at most 1, and the largest term there."""
    sizes = [_length(base), *map(_length, series)]
    pairs = itertools.pairwise(sizes[1:])
    radius = min([1.0, *(a / b for a, b in pairs if a > 0 and b > 0)])
    return radius, max(size * radius**k for k, size in enumerate(sizes))


def _by_differences(
    subject: Subject, v: Tensor, series: list[Tensor], floors: list[float], radius: float
) -> tuple[dict[int, DerivativeMode], dict[int, Tensor]]:
    """Those orders that finite differences can judge; and where they differ, what is right."""
    modes: dict[int, DerivativeMode] = {}
    references: dict[int, Tensor] = {}
    for spacing in _SPACINGS[subject.coordinates.dtype]:
        estimates = _differences(subject, v, spacing * radius, len(series))
        for k, (finer, coarser) in enumerate(estimates, 1):
            floor = floors[k - 1]
            gap, unsure = _gap(series[k - 1], finer, floor), _gap(coarser, finer, floor)
            right = gap <= subject.allowed
            if k in modes or not (right or unsure * _SURE < gap):  # or NaN
                continue
            reason = f"compared on the present pieces of {subject.held}" if subject.held else ""
            if not right:
                references[k] = finer
                reason = (
                    "it differs from finite differences of the gradient, as where the backward "
                    "pass of a custom autograd.Function is not differentiable"
                )
            modes[k] = DerivativeMode(_jet_name(k), k, right, gap, reason)
        if len(modes) == len(series):
            break
    return modes, references


def _differences(subject: Subject, v: Tensor, h: float, order: int) -> list[tuple[Tensor, Tensor]]:
    """G_1 … G_order by differences at ±h … ±3h, or more, and by those without the last."""
    count = max(3, (order + 1) // 2 + 1)
    odd, even = [], []
    for i in range(1, count + 1):
        ends = []
        for sign in (1, -1):
            ends.append(subject.gradient(sign * i * h, v))
        odd.append((ends[0] - ends[1]) / 2)
        even.append((ends[0] + ends[1]) / 2 - subject.base)

    def coefficient(k: int, points: int) -> Tensor:
        """Of Σ_p G_p (ih)^p, p as odd or even as k, the coefficient of the power k."""
        parts, first = (odd, 1) if k % 2 else (even, 2)
        powers = first + 2 * np.arange(points)
        values = np.arange(1.0, points + 1)[:, None] ** powers
        weights = np.linalg.inv(values)[(k - first) // 2] / h**k
        found = torch.zeros_like(v)
        for weight, part in zip(weights, parts, strict=False):
            found.add_(part, alpha=float(weight))
        return found

    return [(coefficient(k, count), coefficient(k, count - 1)) for k in range(1, order + 1)]


def _by_symmetry(
    subject: Subject, v: Tensor, w: Tensor, series: list[Tensor]
) -> dict[int, DerivativeMode]:
    r"""Whether numbers :math:`a_i = D^{k+1}L` of k + 1 − i times v and i times w explain all.

    .. math:: k! \langle v, G_k(v + sw) \rangle = \sum_i \binom ki s^i a_i, \qquad
        k! \langle w, G_k(v + sw) \rangle = \sum_i \binom ki s^i a_{i+1}

    at more s than it takes to determine them; the residual of least squares is the error.
    """
    order = len(series)
    places = [0, *(sign * i for i in range(1, order + 1) for sign in (1, -1))][: (order + 4) // 2]
    rows = [series, *(subject.series(v + s * w, order) for s in places[1:])]
    modes = {}
    for k in range(1, order + 1):
        matrix, values = np.zeros((2 * len(places), k + 2)), []
        for place, (s, row) in enumerate(zip(places, rows, strict=True)):
            for other, u in enumerate((v, w)):
                for i in range(k + 1):
                    matrix[2 * place + other, i + other] = math.comb(k, i) * s**i
                values.append(float(torch.dot(u, row[k - 1])))
        solution = np.linalg.lstsq(matrix, values)[0]
        size = max(float(np.linalg.norm(values)), _NEGLIGIBLE * _length(v) * _length(series[k - 1]))
        error = float(np.linalg.norm(matrix @ solution - values)) / size if size else 0.0
        right = error <= subject.rounding
        reason = "compared by symmetry only, for finite differences do not converge"
        if subject.unheld:
            reason += f" where there are kinks, and {subject.unheld}"
        if not right:
            reason = "it is not symmetric, as derivatives are"
        modes[k] = DerivativeMode(_jet_name(k), k, right, error, reason)
    return modes


# ---- PyTorch's own -------------------------------------------------------------------------------


def _native(subject: Subject, v: Tensor, order: int, known: Known) -> list[DerivativeMode]:
    """Reverse mode again and again: G_k = ∇⟨G_{k−1}, v⟩/k."""
    moves = subject.coordinates.unflatten(v)
    found: list[Tensor] = []

    def advance() -> None:
        with torch.enable_grad():
            rows: Any = torch.autograd.grad(
                subject.loss(), subject.parameters, create_graph=True, allow_unused=True
            )
            for k in range(1, order + 1):
                terms = [
                    (g * c).sum()
                    for g, c in zip(rows, moves, strict=True)
                    if g is not None and g.requires_grad
                ]
                rows = [None] * len(moves)
                if terms:
                    more = k < order
                    rows = torch.autograd.grad(
                        sum(terms), subject.parameters, create_graph=more, allow_unused=True
                    )
                found.append(subject.coordinates.flatten(rows).detach() / math.factorial(k))

    failure = _tried(advance)
    modes = []
    for k in range(1, order + 1):
        name = f"PyTorch's own {_NAMES.get(k, f'{k + 1}-fold')} backward"
        if k > len(found):
            modes.append(_unsupported(name, k, str(failure)))
        else:
            modes.append(_compared(subject, name, k, found[k - 1], known.get(k)))
    return modes


def _forward(
    subject: Subject, v: Tensor, w: Tensor, known: tuple[Tensor, float] | None
) -> DerivativeMode:
    """Where it draws other random numbers than the plain model, its symmetry is looked at."""
    name = "forward over reverse (torch.func)"
    found = _tried(lambda: subject.forward_over_reverse(v))
    if isinstance(found, str):
        return _unsupported(name, 1, found)
    product, loss = found
    plain = float(subject.loss().detach())
    same = abs(loss - plain) <= subject.rounding * max(abs(plain), abs(loss))
    if same and known is not None:
        return _compared(subject, name, 1, product, known)
    other, _ = subject.forward_over_reverse(w)
    sides = float(torch.dot(w, product)), float(torch.dot(v, other))
    error = abs(sides[0] - sides[1]) / (max(map(abs, sides)) or 1.0)
    reason = "compared by symmetry, for " + (
        "there is no reference" if same else "it draws other random numbers, in dropout say"
    )
    return DerivativeMode(name, 1, error <= subject.rounding, error, reason)


def _compared(
    subject: Subject, name: str, order: int, found: Tensor, known: tuple[Tensor, float] | None
) -> DerivativeMode:
    if known is None:
        return _unsupported(name, order, "it runs, and there is nothing to compare it with")
    error = _gap(found, *known)
    right = error <= subject.allowed
    reason = "" if right else "it runs, and its numbers are wrong"
    return DerivativeMode(name, order, right, error, reason)


# ---- Small parts ---------------------------------------------------------------------------------


def _unsupported(name: str, order: int, reason: str) -> DerivativeMode:
    return DerivativeMode(name, order, False, math.nan, reason)


def _tried(function: Callable[[], T]) -> T | str:
    """What it returns, or the words of what it raises, whatever that is."""
    try:
        return function()
    except Exception as error:
        return words(error)


def _length(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def _gap(found: Tensor, reference: Tensor, floor: float) -> float:
    """Their distance beside the reference's length, or beside the floor where that is larger."""
    size = max(_length(reference), floor)
    return _length(found - reference) / size if size else _length(found)
