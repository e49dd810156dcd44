r"""Upload and download of a window that has been taken: their odds, gates, and effect on the loss.

An upload loads s active weights. Gate by gate it takes the gates of sparse state preparation
(:func:`torch_qsgd.readout.preparation_cost`). With a quantum memory, the squared amplitudes are
kept summed pairwise in a binary tree, and qubit l is turned by an angle that is fetched from level
l, at the place which the qubits before it hold: one call a level, :math:`\lceil \log_2 s \rceil`
over the s weights that stay, whose places among all weights are known classically
[Kerenidis2016]_. That each fetched angle is put back, by as many calls again, is not counted.

A download is emulated: the displacement is read by :class:`torch_qsgd.readout.Tomography` with the
statistics of so many measurements, added to the anchor, and the loss is that of the weights found.

.. [Kerenidis2016] I. Kerenidis and A. Prakash, Quantum recommendation systems, arXiv:1603.08675.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from torch_qsgd.auditing.borrowing import displaced, untouched
from torch_qsgd.auditing.run import Tick
from torch_qsgd.carleman.jet import norm
from torch_qsgd.checks import checked_generator, require_integer
from torch_qsgd.optim import QuantumSGD
from torch_qsgd.readout import PostSelection, Tomography, post_selection, preparation_cost
from torch_qsgd.report.measurements import ReadoutTrial, Transfer
from torch_qsgd.representations import Jet
from torch_qsgd.training import Batch, LossFunction, evaluate

#: A tenth of the displacement's length, three times coarser, and three times finer.
PRECISIONS = (0.3, 0.1, 0.1 / 3)


def measure_transfer(
    model: nn.Module,
    optimizer: QuantumSGD,
    loss_fn: LossFunction,
    held_out: Iterable[Batch],
    *,
    grams: ArrayLike | None = None,
    rescaling: float | None = None,
    precisions: Sequence[float] = PRECISIONS,
    repeats: int = 3,
    generator: torch.Generator | None = None,
    tick: Tick = lambda done, total: None,
) -> Transfer:
    r"""What loading and reading an open window costs, and what a noisy reading does to the loss.

    Args:
        model: at the anchor. Its weights are moved to where a download would bring them, and put
            back bit for bit, also where the evaluation fails or is interrupted.
        optimizer: of that model, in a window of jets whose steps have been taken, and which is not
            downloaded; it is left so.
        loss_fn: of outputs and targets; a mean over samples.
        held_out: batches to evaluate on, at least one.
        grams: Gram matrices of the jets after 0 … T steps, of shape (T+1, N, N); by default those
            that the optimizer has kept.
        rescaling: γ; by default what the optimizer's own download takes, ‖u‖ unless its
            representation says otherwise.
        precisions: relative ℓ2 errors of the displacement asked for, each in (0, 1).
        repeats: readings a precision.
        generator: source of the readings' noise, on the CPU; by default one with seed 0.
        tick: told how many evaluations are done, of how many.

    Returns:
        Gates of an upload, an upper bound without QRAM and calls with it; the probabilities of the
        final time and of the displacement; losses at the anchor, at :math:`\theta^* + u`, and at
        each reading. Where the window has moved nothing there is nothing to read: probabilities
        and γ are then NaN, and there are no trials. With momentum, a download reads the velocities
        too, and the probability is that of finding either; readings here are of u alone.

    Raises:
        ValueError: where no window of jets is open, none of its steps has been taken, or the
            optimizer is of another model; for Gram matrices of another number of steps, no batch,
            or an argument out of its range.

    Cost: 2 + precisions · repeats evaluations, and as many readings, each two to five seconds for
    10⁷ active weights; two copies of the weights.

    Source: probabilities, see ``torch_qsgd/readout/postselection.py``; gates, see
    ``torch_qsgd/readout/state_preparation.py``; calls, [Kerenidis2016]_.

    Example:
        >>> from torch_qsgd import QuantumSGD
        >>> model, loss_fn = nn.Linear(4, 1), nn.functional.mse_loss
        >>> batch = torch.randn(32, 4), torch.randn(32, 1)
        >>> options = {"density": 1.0, "window": 9, "model": model, "loss_fn": loss_fn}
        >>> optimizer = QuantumSGD(model.parameters(), lr=0.1, **options)
        >>> for _ in range(5):
        ...     _ = optimizer.step(*batch)
        >>> found = measure_transfer(model, optimizer, loss_fn, [batch], repeats=2)
        >>> found.active, found.qubits, found.qram_calls, [len(t.losses) for t in found.trials]
        (5, 3, 3, [2, 2, 2])
        >>> found.loss_after < found.loss_before
        True
    """
    batches = list(held_out)
    if not batches:
        raise ValueError("held_out holds no batch: give at least one to evaluate on")
    repeats = require_integer("repeats", repeats, 1)
    readers = [Tomography(precision=precision) for precision in precisions]
    generator = checked_generator(generator)
    form = _open_window(model, optimizer)
    params, displacement = form.displacement(optimizer)
    chosen = optimizer.masks
    masks = [chosen.get(p) for p in params]
    moved = bool(norm(displacement) > 0)
    odds = _odds(form, optimizer, grams, rescaling) if moved else None

    device = next(model.parameters()).device
    total = 2 + (len(readers) * repeats if moved else 0)
    done = 0

    def loss_at(move: Sequence[Tensor]) -> float:
        nonlocal done
        with untouched(model), displaced(params, move):
            loss, _ = evaluate(model, loss_fn, batches, device)
        done += 1
        tick(done, total)
        return loss

    loss_before = loss_at([torch.zeros_like(u) for u in displacement])
    loss_after = loss_at(displacement)
    trials = []
    for reader in readers if moved else ():
        errors, losses = [], []
        for _ in range(repeats):
            reading = reader.measure(displacement, generator, support=masks)
            errors.append(reading.error)
            losses.append(loss_at(reading.estimate))
        assert reader.precision is not None
        trials.append(
            ReadoutTrial(
                reader.precision, reading.copies, reading.guaranteed_copies, errors, losses
            )
        )

    size = sum(p.numel() for p in params)
    active = sum(
        p.numel() if m is None else int(m.sum()) for p, m in zip(params, masks, strict=True)
    )
    gates = preparation_cost(active, max(1, (size - 1).bit_length()))
    return Transfer(
        active=active,
        qubits=gates.qubits,
        cx=gates.cx,
        t_gates=gates.t_gates,
        rotations=gates.rotations,
        qram_calls=(active - 1).bit_length(),
        final=odds.final if odds is not None else math.nan,
        level_one=odds.level_one if odds is not None else math.nan,
        rescaling=odds.rescaling if odds is not None else math.nan,
        loss_before=loss_before,
        loss_after=loss_after,
        trials=trials,
    )


def _open_window(model: nn.Module, optimizer: QuantumSGD) -> Jet:
    """The form of the window, where it is one of jets that has been taken, and of this model."""
    form = optimizer.representation
    if not isinstance(form, Jet):
        raise ValueError(
            f"the window must be one of jets, and this optimizer's representation is "
            f"{form.name!r}: construct it with representation='jet'"
        )
    if optimizer.phase != "window" or not optimizer.window_step:
        raise ValueError(
            f"the optimizer must be in an open window, some of whose steps have been taken, and it "
            f"is in phase {optimizer.phase!r} with {optimizer.window_step} window steps: take its "
            "steps first, with a `window` longer than their number, or it downloads by itself"
        )
    own = set(model.parameters())
    if not all(p in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "the optimizer has parameters that are not the model's: give the model that it trains"
        )
    return form


def _odds(
    form: Jet, optimizer: QuantumSGD, grams: ArrayLike | None, rescaling: float | None
) -> PostSelection:
    matrices = np.asarray(optimizer._cycle["grams"] if grams is None else grams)
    if matrices.shape[:1] != (optimizer.window_step + 1,):
        raise ValueError(
            f"grams must hold a matrix for each of 0 … {optimizer.window_step} steps, got an "
            f"array of shape {matrices.shape}"
        )
    if rescaling is None:
        rescaling = form.rescaling or math.sqrt(max(matrices[-1].sum(), 0.0)) or None
    return post_selection(matrices, rescaling, form.idle)
