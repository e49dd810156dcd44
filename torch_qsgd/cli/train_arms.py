"""The runs that ``torch-qsgd train`` compares: each from the same start, on the same batches."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from torch_qsgd.cli.train_report import TrainReport, WindowLines
from torch_qsgd.data import ImageData, fixed_batches
from torch_qsgd.hessian import DissipativityMonitor
from torch_qsgd.optim import QuantumSGD
from torch_qsgd.training import History, LossFunction, endless, train

#: Training batches that the monitor's spectra are of.
_MONITORED = 2


@dataclass(frozen=True)
class Arm:
    """One way to train, in a comparison."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer


@dataclass(frozen=True)
class Task:
    """What all arms have in common.

    Attributes:
        images: to train on and to evaluate on.
        loss_fn: of outputs and labels, a mean.
        sgd: options of ``torch.optim.SGD``.
        warmup: dense steps before the first upload.
        windows: of the first arm.
        eval_batches: to evaluate on, at most; all unless given.
    """

    images: ImageData
    loss_fn: LossFunction
    sgd: dict[str, Any]
    warmup: int
    windows: int
    eval_batches: int | None

    def validation(self) -> Iterable[Any]:
        """Batches to evaluate on; read once and kept, where they are few."""
        if self.eval_batches is None:
            return self.images.validation
        return list(itertools.islice(self.images.validation, self.eval_batches))


def build_arms(
    network: nn.Module, task: Task, quantum: dict[str, Any], compare: bool, seed: int
) -> list[Arm]:
    """``QuantumSGD`` with its options; to compare, also masked and dense SGD."""

    def arm(name: str, cycle: dict[str, Any] | None) -> Arm:
        model = copy.deepcopy(network)
        if cycle is None:
            return Arm(name, model, torch.optim.SGD(model.parameters(), **task.sgd))
        optimizer = QuantumSGD(
            model.parameters(),
            **task.sgd,
            **cycle,
            model=model,
            loss_fn=task.loss_fn,
            generator=torch.Generator().manual_seed(seed),
        )
        return Arm(name, model, optimizer)

    arms = [arm("QuantumSGD", quantum)]
    if compare:
        masked = {"density": quantum["density"], "pruning": quantum["pruning"], "window": 0}
        arms += [arm("masked SGD", masked), arm("dense SGD", None)]
    return arms


def build_monitor(model: nn.Module, task: Task, batch_size: int, seed: int) -> DissipativityMonitor:
    """A monitor of the loss on a few training batches, the same at every spectrum."""
    with torch.random.fork_rng():  # which images the run draws, and how cropped, must not change
        batches = list(fixed_batches(task.images, batch_size, _MONITORED, seed))
    # --tolerance ends windows by their jets, and says when not to.
    return DissipativityMonitor(None, model, task.loss_fn, batches, jet_ratio=None, seed=seed)


def require_loss(network: nn.Module, task: Task, names: tuple[str, str]) -> None:
    """Try the loss on a few images.

    Args:
        names: of model and loss, for messages.

    Raises:
        ValueError: where model or loss fail, or the loss is not one number to differentiate.
        OSError: where an image cannot be read.
    """
    model, loss = names
    device = next(network.parameters()).device
    mode = network.training
    with torch.random.fork_rng():
        inputs, labels = next(iter(fixed_batches(task.images, 2, 1)))
        network.eval()
        try:
            found: Any = task.loss_fn(network(inputs.to(device)), labels.to(device))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the model or the loss raises on such images
            raise ValueError(
                f"{model} with loss {loss} fails on images of shape {tuple(inputs.shape[1:])}: "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            network.train(mode)
    if not isinstance(found, Tensor) or found.dim() or not found.requires_grad:
        what = type(found).__name__
        if isinstance(found, Tensor):
            what = f"a tensor of shape {tuple(found.shape)}" if found.dim() else "a constant"
        raise ValueError(
            f"loss {loss} must return the mean loss of a batch, a tensor without dimensions that "
            f"depends on the outputs; it returns {what}"
        )


# ---- Training ------------------------------------------------------------------------------------


def dense_start(
    progress: Progress,
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterator[Any],
    sgd: dict[str, Any],
    steps: int,
) -> None:
    """Dense SGD from random weights, under a bar of its own.

    Args:
        progress: to show the bar in.
        model, loss_fn: trained in place.
        batches: pairs (inputs, labels), as many as steps at least.
        sgd: options of ``torch.optim.SGD``.
        steps: to take; none for 0.
    """
    if not steps:
        return
    device = next(model.parameters()).device
    bar = progress.add_task("dense start", total=steps)
    optimizer = torch.optim.SGD(model.parameters(), **sgd)
    for _ in range(steps):
        inputs, labels = (tensor.to(device) for tensor in next(batches))
        optimizer.zero_grad()
        loss_fn(model(inputs), labels).backward()
        optimizer.step()
        progress.advance(bar)
    model.zero_grad()
    progress.remove_task(bar)


def train_arms(
    progress: Progress,
    arms: list[Arm],
    task: Task,
    report: TrainReport,
    monitor: DissipativityMonitor | None,
) -> None:
    """Train every arm from the same dense weights, on the same batches.

    Args:
        progress: to show bars and windows in.
        arms: the first one may be watched by the monitor.
        task: what they have in common.
        report: filled in place, so that an interrupted run leaves what it measured.
        monitor: of the first arm; ``None`` for none.
    """
    validation = task.validation()
    cycle = arms[0].optimizer.param_groups[0]
    every = max(1, cycle["window"] // 4)
    # The last download ends the run, so that the weights compared are pruned ones; windows may
    # end early, so the other arms take as many steps as the first did.
    steps = task.windows * (cycle["window"] + cycle["classical_steps"])
    first = endless(task.images.train)
    dense_start(progress, arms[0].model, task.loss_fn, first, task.sgd, task.warmup)
    start = copy.deepcopy(arms[0].model.state_dict())
    # The order of the images, and their crops and flips: the same for every arm.
    drawn = torch.get_rng_state(), task.images.generator.get_state()
    for arm in arms:
        arm.model.load_state_dict(start)
        torch.set_rng_state(drawn[0])
        task.images.generator.set_state(drawn[1])
        lines = WindowLines(progress)
        if isinstance(arm.optimizer, QuantumSGD) and arm.optimizer.param_groups[0]["window"]:
            lines.header()
        bar = progress.add_task(arm.name, total=steps)
        history = History(arm.name)
        report.runs.append(history)
        began = time.perf_counter()
        watched = monitor is not None and arm is arms[0]
        if watched:
            assert monitor is not None
            assert isinstance(arm.optimizer, QuantumSGD)
            monitor.attach(arm.optimizer)
        try:
            train(
                arm.name,
                arm.model,
                task.loss_fn,
                arm.optimizer,
                endless(task.images.train),
                validation,
                steps=steps,
                every=every,
                windows=task.windows if arm is arms[0] else None,
                history=history,
                on_step=lambda step, bar=bar: progress.update(bar, completed=step),  # type: ignore[misc]
                on_window=lines.window,
            )
        finally:
            if monitor is not None:
                monitor.detach()
            report.seconds[arm.name] = time.perf_counter() - began
        steps = history.final.step
        progress.remove_task(bar)
