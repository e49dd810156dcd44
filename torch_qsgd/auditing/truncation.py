"""A window against true SGD, step by step and order by order.

Three things run side by side on the same batches, with the same random numbers: the window; masked
SGD from the same anchor; and, where the model has kinks, SGD on the model held on the pieces that
it is on at the anchor (:mod:`.kinks`). One run serves all orders, for the jets of a
lower order are the first of those of a higher one.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointError

from torch_qsgd.auditing.borrowing import displaced, drawing, untouched
from torch_qsgd.auditing.cubic import cubic_norm, polynomial_degree
from torch_qsgd.auditing.kinks import Pieces, PiecesError, recording_pieces
from torch_qsgd.auditing.twin import Twin, length
from torch_qsgd.batches import Batch, forward, mapped
from torch_qsgd.carleman.jet import summed
from torch_qsgd.checks import checked_generator, require_integer
from torch_qsgd.errors import DivergenceError
from torch_qsgd.optim import QuantumSGD
from torch_qsgd.report.measurements import OrderError, Truncation
from torch_qsgd.training import LossFunction, evaluate

Tick = Callable[[int, int], object]


def measure_truncation(
    model: nn.Module,
    optimizer: QuantumSGD,
    loss_fn: LossFunction,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    *,
    steps: int,
    cubic_restarts: int = 1,
    cubic_iterations: int = 5,
    generator: torch.Generator | None = None,
    tick: Tick = lambda done, total: None,
) -> Truncation:
    r"""Take a window's steps beside true SGD, and compare after each of them.

    .. math::
        e_K(t) = \frac{\|\sum_{k \le K} c_k(t) - u(t)\|}{\|u(t)\|}, \qquad
        \text{floor}(t) = \frac{\|\tilde u(t) - u(t)\|}{\|u(t)\|}

    with the jets :math:`c_k`, SGD's displacement u, and ũ that of SGD on the held model, over all
    trainable weights; pruned ones rest in all three. u and ũ are held in float64, so that learning
    rates below the weights' resolution are measured, too.

    Args:
        model, optimizer: a window that has just been opened, longer than ``steps``, of a
            ``QuantumSGD`` with jets, infinite tolerance and no trigger. It is left open after the
            last step taken, with its jets and its weights at the anchor; only where the jets
            overflow is it dropped.
        loss_fn: of outputs and targets; a mean.
        batches: one a step; taken in turn again where there are fewer.
        held_out: batches to evaluate on.
        steps: T, at least 1.
        cubic_restarts, cubic_iterations: of :func:`.cubic.cubic_norm` on the first
            batch. Without iterations, ``cubic`` is NaN and ``smooth_degree`` 0. With groups of
            several learning rates the bound is for the smallest.
        generator: of dropout's random numbers and of the search for ``cubic``, on the CPU; by
            default one with seed 0. No global random state is changed.
        tick: told how many steps and iterations are done, of how many at most.

    Returns:
        The measurements. Where a series or SGD overflows, up to the last step at which neither
        had; held-out losses that are no numbers are infinite. ``kinks`` are those met in the steps
        taken. ``forcing`` is of G_0, so that it holds weight decay, η‖g_t + λθ*‖. ``rounding`` is
        that of :meth:`~torch_qsgd.auditing.twin.Twin.rounding` on the last batch.

    Raises:
        ValueError, TypeError: for an argument outside what is allowed.
        GraphError: where the window's derivatives cannot be had.

    Cost: the window's own steps; one gradient evaluation a step for SGD, and one more where there
    are kinks; two more in all for ``rounding``; what ``cubic`` and, without kinks,
    ``smooth_degree`` cost; N + 2 passes over the held-out batches; for SGD two copies of the model
    and two of its weights in float64, three with momentum, and as much again with kinks.

    Source: our definition.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> loss_fn = nn.functional.mse_loss
        >>> options = {"lr": 0.1, "density": 1.0, "window": 9, "order": 1}
        >>> opt = QuantumSGD(model.parameters(), **options, model=model, loss_fn=loss_fn)
        >>> opt.upload()
        >>> batches = [(torch.randn(8, 2), torch.randn(8, 1)) for _ in range(4)]
        >>> found = measure_truncation(model, opt, loss_fn, batches, batches, steps=8)
        >>> found.steps, found.smooth_degree, found.orders[0].errors[-1] < 1e-5
        (8, 2, True)
    """
    steps = require_integer("steps", steps, 1)
    cubic_restarts = require_integer("cubic_restarts", cubic_restarts, 1)
    cubic_iterations = require_integer("cubic_iterations", cubic_iterations, 0)
    generator = checked_generator(generator)
    _require_open(optimizer, steps)
    if not batches or not held_out:
        raise ValueError("batches and held_out must hold at least one batch each")
    device = next(model.parameters()).device
    here = [mapped(tuple(batch), lambda t: t.to(device)) for batch in batches]
    total = steps + cubic_restarts * cubic_iterations

    anchor_loss = _loss(model, loss_fn, held_out)
    race = _Race(model, optimizer, loss_fn)
    # Attention draws dropout's numbers as it does in the window.
    with _gradients_put_back(model), sdpa_kernel(SDPBackend.MATH):
        for step, batch in enumerate(itertools.islice(itertools.cycle(here), steps)):
            seed = int(torch.randint(2**62, (), generator=generator))
            if not race.step(batch, seed):
                break
            tick(step + 1, total)
        rounding = race.true.rounding(*here[(race.taken - 1) % len(here)])

    cubic, degree = math.nan, 0
    if cubic_iterations:
        masks, params = optimizer.masks, optimizer._trainable()
        cubic = cubic_norm(
            model,
            loss_fn,
            here[0],
            masks=masks,
            parameters=params,
            lr=min(float(group["lr"]) for group in optimizer.param_groups),
            restarts=cubic_restarts,
            iterations=cubic_iterations,
            generator=generator,
            tick=lambda done, _: tick(steps + done, total),
        )
        if race.taken and not race.kinks and not race.unfrozen:
            degree = polynomial_degree(
                model, loss_fn, here[0], masks=masks, parameters=params, generator=generator
            )
    losses = race.order_losses(held_out)
    return Truncation(
        steps=race.taken,
        orders=[
            OrderError(order, errors, loss)
            for order, (errors, loss) in enumerate(zip(race.errors, losses, strict=True), 1)
        ],
        floor=race.floor,
        kinks=race.kinks,
        unfrozen=race.unfrozen,
        loss_anchor=anchor_loss,
        loss_true=_loss(race.true.model, loss_fn, held_out),
        grams=race.grams,
        forcing=race.forcing,
        cubic=cubic,
        smooth_degree=degree,
        rounding=rounding,
    )


class _Race:
    """The window, true SGD and held SGD, and how far they are from each other.

    Attributes:
        true: masked SGD.
        taken: steps that all have taken.
        errors: one list an order.
        floor, kinks, unfrozen, grams, forcing: as of ``Truncation``.
    """

    def __init__(self, model: nn.Module, optimizer: QuantumSGD, loss_fn: LossFunction) -> None:
        self._model, self._optimizer, self._loss_fn = model, optimizer, loss_fn
        self._params = optimizer._trainable()
        self.true = Twin(model, optimizer, loss_fn)
        self._held: Twin | None = Twin(model, optimizer, loss_fn)
        order = optimizer.param_groups[0]["order"]
        self.taken = 0
        self.errors: list[list[float]] = [[] for _ in range(order)]
        self.floor: list[float] | None = []
        self.kinks: list[str] = []
        self.unfrozen: list[str] = []
        self.grams: list[list[list[float]]] = [[[0.0] * order for _ in range(order)]]
        self.forcing = 0.0

    def step(self, batch: Batch, seed: int) -> bool:
        """Take one step of each; False where one overflows, which then none has taken."""
        with drawing(self._model, seed):
            self.true.step(*batch)
        if not self.true.finite():
            self.true.step_back()
            return False
        try:
            with drawing(self._model, seed):
                pieces = self._window_step(*batch)
        except DivergenceError:
            self.true.step_back()
            return False
        true = self.true.displacement()
        way = length(true)
        self.taken += 1
        self.forcing = max(self.forcing, self._force())
        self.grams = [*self._optimizer._cycle["grams"]]
        jets = self._optimizer._series("jet", self._params)
        for k, errors in enumerate(self.errors):
            errors.append(_relative(summed(jets[: k + 1]), true, way))
        self._measure_floor(pieces, batch, seed, true, way)
        return True

    def _window_step(self, inputs: object, targets: object) -> Pieces:
        """One step of the window; leaves the gradient at the anchor in ``.grad``."""
        recorded = []

        def closure() -> Tensor:
            self._optimizer.zero_grad()
            with recording_pieces() as pieces:
                loss = self._loss_fn(forward(self._model, inputs), targets)
            pieces.name_unseen(loss)
            recorded.append(pieces)
            loss.backward()
            return loss

        self._optimizer.step(closure)
        return recorded[0]

    def _measure_floor(
        self, pieces: Pieces, batch: Batch, seed: int, true: Sequence[Tensor], way: float
    ) -> None:
        self.kinks += [name for name in pieces.kinks if name not in self.kinks]
        if self.floor is None:
            return
        if self.taken == 1 and not pieces.kinks:
            self._held = None  # nothing to hold: it would be SGD itself
        unheld = pieces.unfrozen
        if not unheld and self._held is None:
            unheld = [f"{name} (not met on the first batch)" for name in pieces.kinks]
        if unheld:
            self._give_up(unheld)
        elif self._held is None:
            self.floor.append(0.0)
        elif self.floor and self.floor[-1] == math.inf:
            self.floor.append(math.inf)
        else:
            try:
                with drawing(self._model, seed), pieces.replayed():
                    self._held.step(*batch)
            except PiecesError as error:
                self._give_up([f"{', '.join(self.kinks)}: {error}"])
            except CheckpointError:
                self._give_up([f"{', '.join(self.kinks)}: part of the model is checkpointed"])
            else:
                self.floor.append(_relative(self._held.displacement(), true, way))

    def _give_up(self, unheld: list[str]) -> None:
        self.unfrozen, self.floor, self._held = list(unheld), None, None

    def _force(self) -> float:
        """‖G_0‖ of this step: η‖g + λθ*‖ on the active coordinates."""
        masks, squares = self._optimizer.masks, 0.0
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                pull = -p.grad if group["maximize"] else p.grad
                pull = pull + group["weight_decay"] * p.detach()
                pull = pull * masks[p] if p in masks else pull
                squares += (float(group["lr"]) * length([pull])) ** 2
        return math.sqrt(squares)

    def order_losses(self, held_out: Sequence[Batch]) -> list[float]:
        """Held-out loss at θ* + u_K for each order K; infinite where the window was dropped."""
        if self._optimizer.phase != "window":
            return [math.inf] * len(self.errors)
        jets = self._optimizer._jets(self._params)
        losses = []
        for k in range(len(jets)):
            with displaced(self._params, summed(jets[: k + 1])):
                losses.append(_loss(self._model, self._loss_fn, held_out))
        return losses


def _relative(found: Sequence[Tensor], true: Sequence[Tensor], way: float) -> float:
    """‖found − true‖ in units of ‖true‖; infinite where it is no number."""
    gap = length([f - t for f, t in zip(found, true, strict=True)])
    if math.isnan(gap):
        return math.inf
    return gap / way if way else (math.inf if gap else 0.0)


def _loss(model: nn.Module, loss_fn: LossFunction, held_out: Sequence[Batch]) -> float:
    """Mean held-out loss; infinite where it is no number."""
    with untouched(model):
        loss, _ = evaluate(model, loss_fn, held_out, next(model.parameters()).device)
    return math.inf if math.isnan(loss) else loss


@contextlib.contextmanager
def _gradients_put_back(model: nn.Module) -> Iterator[None]:
    saved = [(p, p.grad) for p in model.parameters()]
    try:
        yield
    finally:
        for p, gradient in saved:
            p.grad = gradient


def _require_open(optimizer: QuantumSGD, steps: int) -> None:
    if not isinstance(optimizer, QuantumSGD):
        raise TypeError(f"optimizer must be a QuantumSGD, got {type(optimizer).__name__}")
    if optimizer.phase != "window" or optimizer.window_step:
        raise ValueError(
            f"optimizer must be in a window without steps, got phase {optimizer.phase!r} after "
            f"{optimizer.window_step} steps: call optimizer.upload() first"
        )
    if optimizer.param_groups[0]["window"] <= steps:
        raise ValueError(
            f"the window must be longer than steps={steps}, or it is downloaded at its end; got "
            f"window={optimizer.param_groups[0]['window']}"
        )
    form, tolerance = optimizer.representation.name, optimizer.param_groups[0]["tolerance"]
    if form != "jet" or math.isfinite(tolerance) or optimizer.trigger is not None:
        raise ValueError(
            "optimizer must have representation 'jet', tolerance inf and no trigger, got "
            f"{form!r}, {tolerance} and {optimizer.trigger!r}"
        )
