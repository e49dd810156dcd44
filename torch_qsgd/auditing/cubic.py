r"""How far a step of SGD is from linear: its quadratic part, and the loss's polynomial degree.

The step's quadratic coefficient is :math:`G_2 = -\frac{\eta}{2}\nabla^3 L`. For a symmetric tensor,
:math:`\max \|\nabla^3 L[v, w, \cdot]\|` over unit vectors is reached at v = w (Banach), so one
vector is searched for, by a power method. Whatever it finds is a lower bound of that maximum, and
so of the norm of :math:`G_2` as a matrix on :math:`v \otimes w`.

Directions stay in the active coordinates. The model is left as it was: its buffers are put back,
and dropout draws the same numbers each time.

References:
    [Kolda2011] T. G. Kolda and J. R. Mayo, *Shifted power method for computing tensor eigenpairs*,
    SIAM J. Matrix Anal. Appl. 32, 1095 (2011), arXiv:1007.1267.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from torch_qsgd.auditing.borrowing import displaced, untouched
from torch_qsgd.batches import Batch, forward
from torch_qsgd.checks import checked_generator, require_integer, require_number
from torch_qsgd.derivatives import higher_derivatives
from torch_qsgd.derivatives.coordinates import Coordinates
from torch_qsgd.derivatives.graph import refuse_unusable_graph
from torch_qsgd.derivatives.taylor import reverse
from torch_qsgd.errors import GraphError
from torch_qsgd.training import LossFunction

Tick = Callable[[int, int], object]
Masks = Mapping[Tensor, Tensor]

#: In units of the dtype's precision: what is below, relative to its like, counts as rounding.
_ROUNDING = 1e3
#: How far the points are at which derivatives are compared, relative to the weights' length.
_APART = 0.1


def cubic_norm(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Batch,
    *,
    masks: Masks | None = None,
    parameters: Sequence[Tensor] | None = None,
    lr: float,
    restarts: int = 2,
    iterations: int = 10,
    generator: torch.Generator | None = None,
    tick: Tick = lambda done, total: None,
) -> float:
    r"""A lower bound of :math:`\|G_2\|`, from :math:`\frac{\eta}{2} \|\nabla^3 L[v, v, \cdot]\|`.

    Unit vectors v are searched for it by

    .. math::
        v \leftarrow \frac{\nabla^3 L[v, v, \cdot] + \alpha v}{\| \cdot \|}

    with a shift α that starts at zero and grows whenever a step has gone down: a shift large enough
    makes every step go up. The first search starts from the gradient, where the window goes first,
    the others from random directions.

    Args:
        model, loss_fn: ``loss_fn(model(inputs), targets)`` is the loss.
        batch: inputs and targets.
        masks: bool, True where a coordinate is active, by parameter; a parameter without one is
            active as a whole.
        parameters: to differentiate by; by default all trainable ones.
        lr: η.
        restarts: searches, at least 1.
        iterations: of each, at least 1.
        generator: of the random directions, on the CPU; by default one with seed 0.
        tick: told how many iterations are done, of how many at most.

    Returns:
        The largest value met, in the unit of 1/weight; NaN where the third derivative cannot be
        had, or is NaN or infinite.

    Raises:
        ValueError, TypeError: for an argument outside what is allowed.

    Cost: a gradient with its graph, and about 8 gradients an iteration.

    Source: the shifted symmetric higher-order power method of [Kolda2011]; when to shift is ours.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[1.0, 1.0]]))
        >>> batch = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), None
        >>> bound = cubic_norm(model, lambda y, _: (y**3).sum() / 6, batch, lr=0.1)
        >>> round(bound, 4)  # η/2 times 2³, for L = (a³ + (2b)³)/6
        0.4
    """
    lr = require_number("lr", lr, 0)
    restarts = require_integer("restarts", restarts, 1)
    iterations = require_integer("iterations", iterations, 1)
    generator = checked_generator(generator)
    params = _trainable(model, parameters)
    coordinates = _coordinates(params, masks)
    best, done, total = 0.0, 0, restarts * iterations
    try:
        series = _Series(model, loss_fn, batch, params, coordinates)
        for search in range(restarts):
            steepest = search == 0 and bool(series.gradient.any())
            start = series.gradient if steepest else _random(coordinates, generator)
            for length in _search(series, start, iterations):
                best, done = max(best, length), done + 1
                tick(done, total)
    except (GraphError, _NotFiniteError):
        return math.nan
    return lr / 2 * best


def _search(series: _Series, start: Tensor, iterations: int) -> Iterator[float]:
    """‖∇³L[v, v, ·]‖ at the vectors of one run of the power method."""
    vector = start / start.norm()
    best, image_of_best, value, shift = vector, vector, -math.inf, 0.0
    for _ in range(iterations):
        _, image = series.along(vector)
        length = float(image.norm())
        yield length
        found = float(image.dot(vector))
        if found < 0:  # the form is odd: at −v it has the other sign, and the same image
            vector, found = -vector, -found
        if found >= value:
            best, image_of_best, value = vector, image, found
        else:
            shift = max(2 * shift, length)
        vector = image_of_best + shift * best
        if not bool(vector.any()):
            return
        vector = vector / vector.norm()


def polynomial_degree(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Batch,
    *,
    masks: Masks | None = None,
    parameters: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> int:
    r"""The degree of the loss as a polynomial in the active weights, if it is at most 3.

    Compared is :math:`\nabla^3 L[v, v, \cdot]` along one random direction at two random points near
    the weights: where it vanishes at both, the loss is quadratic; where it is the same at both, it
    is cubic. A polynomial of higher degree, or no polynomial, passes neither with probability 1.
    What a network of ReLUs is in one piece says nothing about it as a whole.

    Args:
        model, loss_fn, batch, masks, parameters, generator: as for :func:`cubic_norm`.

    Returns:
        2 for at most quadratic, 3 for cubic; 0 for anything else, also where derivatives cannot be
        had, or are NaN or infinite.

    Cost: two gradients with their graphs, about 16 gradients beside them, and two copies of the
    weights.

    Source: our definition.

    Example:
        >>> batch = torch.randn(8, 3), torch.randn(8, 1)
        >>> polynomial_degree(nn.Linear(3, 1), nn.functional.mse_loss, batch)
        2
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
        >>> polynomial_degree(net, nn.functional.mse_loss, batch)
        0
    """
    generator = checked_generator(generator)
    params = _trainable(model, parameters)
    coordinates = _coordinates(params, masks)
    length = float(coordinates.flatten([p.detach() for p in params]).norm()) or 1.0
    direction = _random(coordinates, generator) * length
    points = [_random(coordinates, generator) * (_APART * length) for _ in range(2)]
    lower, third = [], []
    try:
        for point in points:
            with displaced(params, coordinates.unflatten(point)):
                series = _Series(model, loss_fn, batch, params, coordinates)
                hessian, cubic = series.along(direction)
                lower.append(float(series.gradient.norm() + hessian.norm()))
                third.append(cubic / 2)
                del series
    except (GraphError, _NotFiniteError):
        return 0
    rounding = _ROUNDING * torch.finfo(coordinates.dtype).eps
    lengths = [float(t.norm()) for t in third]
    if all(t <= rounding * scale for t, scale in zip(lengths, lower, strict=True)):
        return 2
    return 3 if float((third[0] - third[1]).norm()) <= rounding * (max(lower) + max(lengths)) else 0


class _NotFiniteError(ArithmeticError):
    """A derivative is NaN or infinite."""


class _Series:
    """Derivatives of one batch's loss along a line of active weights, at the present weights."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        batch: Batch,
        params: Sequence[Tensor],
        coordinates: Coordinates,
    ) -> None:
        self._params, self._coordinates = params, coordinates
        with untouched(model), torch.enable_grad(), higher_derivatives():
            loss = loss_fn(forward(model, batch[0]), batch[1])
            one = torch.ones_like(loss)
            self._gradients = reverse([loss], params, [one], retain_graph=True, create_graph=True)
        refuse_unusable_graph([g for g in self._gradients if g is not None], order=2)
        #: ∇L, of shape (n,).
        self.gradient = self._flat(self._gradients)

    def along(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """∇²L[v, ·] and ∇³L[v, v, ·], of shape (n,)."""
        directions = self._coordinates.unflatten(vector)
        with torch.enable_grad():
            second = self._along(self._gradients, directions, create_graph=True)
            third = self._along(second, directions, create_graph=False)
        return self._flat(second), self._flat(third)

    def _along(
        self, rows: Sequence[Tensor | None], directions: Sequence[Tensor], create_graph: bool
    ) -> list[Tensor | None]:
        pairs = [
            (row, direction)
            for row, direction in zip(rows, directions, strict=True)
            if row is not None and row.requires_grad
        ]
        return reverse(
            [row for row, _ in pairs],
            self._params,
            [direction for _, direction in pairs],
            retain_graph=True,
            create_graph=create_graph,
        )

    def _flat(self, tensors: Sequence[Tensor | None]) -> Tensor:
        known = [None if t is None else t.detach() for t in tensors]
        flat = self._coordinates.flatten(known)
        if not bool(flat.isfinite().all()):
            raise _NotFiniteError
        return flat


def _trainable(model: nn.Module, parameters: Sequence[Tensor] | None) -> list[Tensor]:
    given = model.parameters() if parameters is None else parameters
    return [p for p in given if p.requires_grad]


def _coordinates(params: Sequence[Tensor], masks: Masks | None) -> Coordinates:
    return Coordinates(params, [(masks or {}).get(p) for p in params])


def _random(coordinates: Coordinates, generator: torch.Generator) -> Tensor:
    """A random unit vector; the same on every device."""
    drawn = torch.randn(coordinates.size, generator=generator, dtype=coordinates.dtype)
    return drawn.div_(drawn.norm()).to(coordinates.device)
