"""A short training run, whose Hessian spectra and windows an audit looks at."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from torch_qsgd.hessian import DissipativityMonitor
from torch_qsgd.optim import QuantumSGD
from torch_qsgd.training import Batch, History, LossFunction, train

Tick = Callable[[int, int], object]


def watching_monitor(
    model: nn.Module, loss_fn: LossFunction, batches: Sequence[Batch], steps: int, probes: int
) -> DissipativityMonitor:
    """A monitor that takes a spectrum at each upload, and ends no window.

    Args:
        model, loss_fn, batches: whose mean loss has the Hessian.
        steps, probes: of the Lanczos runs.
    """
    return DissipativityMonitor(
        None,
        model,
        loss_fn,
        list(batches),
        adapt_window=False,
        proxy=None,
        jet_ratio=None,
        steps=steps,
        probes=probes,
    )


def measured_run(
    model: nn.Module,
    optimizer: QuantumSGD,
    loss_fn: LossFunction,
    batches: Sequence[Batch],
    held_out: Sequence[Batch],
    *,
    windows: int,
    monitor: DissipativityMonitor,
    history: History,
    tick: Tick = lambda done, total: None,
) -> None:
    """Train for a few windows, each measured against true SGD, with a spectrum at each upload.

    Args:
        model, optimizer, loss_fn: an optimizer that has not stepped yet; both are trained.
        batches: taken in turn, again and again.
        held_out: batches to evaluate on.
        windows: to train for.
        monitor: of the model; attached, and detached at the end, whatever happens.
        history: filled in place, as the monitor's own is, so that what was measured stays.
        tick: told how many steps are taken, of how many at most.

    Raises:
        DivergenceError: where the run diverges.

    Cost: the steps; a gradient a step for true SGD; a spectrum an upload.
    """
    group = optimizer.param_groups[0]
    steps = windows * (group["window"] + group["classical_steps"])
    device = next(model.parameters()).device

    def on_step(step: int) -> None:
        tick(step, steps)

    monitor.attach(optimizer)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            train(
                "QuantumSGD",
                model,
                loss_fn,
                optimizer,
                itertools.cycle(batches),
                held_out,
                steps=steps,
                every=max(1, group["window"] // 4),
                windows=windows,
                history=history,
                on_step=on_step,
            )
    finally:
        monitor.detach()
