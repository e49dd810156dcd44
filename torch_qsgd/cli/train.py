"""``torch-qsgd train``: train, and measure every window against true SGD."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from torch_qsgd.cli import common
from torch_qsgd.cli.train_arms import Task, build_arms, build_monitor, require_loss, train_arms
from torch_qsgd.cli.train_report import TrainReport
from torch_qsgd.data import load_data
from torch_qsgd.errors import DivergenceError, GraphError
from torch_qsgd.models import build_model
from torch_qsgd.readout import Tomography
from torch_qsgd.surroundings import surroundings

#: Options that the numbers do not depend on.
_FREE = ("workers", "json", "output")


def train_command(
    context: typer.Context,
    data: common.Data,
    model: common.Model = "resnet",
    width: common.Width = None,
    depth: common.Depth = None,
    activation: common.Activation = None,
    norm: common.Norm = None,
    loss: common.Loss = "cross-entropy",
    density: Annotated[float, typer.Option(help="Share of prunable weights kept.")] = 0.1,
    window: Annotated[int, typer.Option(help="Steps in a window, T.")] = 100,
    order: Annotated[int, typer.Option(help="Truncation order, N.")] = 2,
    classical_steps: Annotated[int, typer.Option(help="Dense steps between windows.")] = 10,
    windows: Annotated[int, typer.Option(min=1, help="Windows to train for.")] = 4,
    pruning: Annotated[str, typer.Option(help="How masks are chosen.")] = "magnitude",
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="End a window once ‖c_N‖/‖c_1‖ passes this: 0.5 unless given, inf for never."
        ),
    ] = None,
    representation: Annotated[
        str, typer.Option(help="Form of the window: jet, krylov or explicit.")
    ] = "jet",
    solver: Annotated[
        str, typer.Option(help="exact or noise; for krylov and explicit also hhl, qsvt, circuit.")
    ] = "exact",
    copies: Annotated[
        int | None, typer.Option(help="Copies measured at download, twice; exact unless given.")
    ] = None,
    warmup: Annotated[
        int, typer.Option(min=0, help="Dense SGD steps before the first upload.")
    ] = 100,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.01,
    momentum: Annotated[float, typer.Option(help="Momentum.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.0,
    batch_size: common.BatchSize = 64,
    augment: Annotated[bool, typer.Option(help="Random crops and flips.")] = True,
    image_size: common.ImageSize = None,
    eval_batches: Annotated[
        int | None, typer.Option(min=1, help="Most batches to evaluate on.")
    ] = None,
    compare: Annotated[
        bool, typer.Option(help="Also train with masked SGD and with dense SGD.")
    ] = False,
    monitor: Annotated[
        bool,
        typer.Option(
            "--monitor",
            help="Take the Hessian's spectrum at each upload, and end windows by it.",
        ),
    ] = False,
    device: common.Device = "cpu",
    workers: common.Workers = 0,
    seed: Annotated[int, typer.Option(help="Of weights, batches and masks.")] = 0,
    json: common.Json = False,
    output: Annotated[Path, typer.Option(help="Folder for curves, log and weights.")] = Path(
        "runs/train"
    ),
) -> None:
    """Train a network with QuantumSGD and measure every window against true SGD.

    Writes curves.png, run.json and model.pt into --output, with --monitor also
    monitor.json and monitor.png; Ctrl-C leaves what was measured so far.

    Example: python -m torch_qsgd train --data digits --compare
    """
    console = Console(stderr=json)  # so that stdout holds nothing but the JSON
    if tolerance is None:
        tolerance = 0.5 if order > 1 else math.inf
    declared = [parameter.name for parameter in context.command.params]
    settings = {n: context.params[n] for n in declared if n in context.params and n not in _FREE}
    settings["tolerance"] = tolerance if math.isfinite(tolerance) else str(tolerance)
    try:
        torch.manual_seed(seed)
        images = load_data(
            data,
            batch_size=batch_size,
            seed=seed,
            augment=augment,
            image_size=image_size,
            workers=workers,
        )
        shape = common.model_shape(width, depth, activation, norm)
        network = build_model(model, images.classes, images.channels, **shape)
        network = network.to(common.usable_device(device))
        sgd = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        task = Task(images, common.build_loss(loss), sgd, warmup, windows, eval_batches)
        quantum: dict[str, Any] = {
            "density": density,
            "window": window,
            "order": order,
            "classical_steps": classical_steps,
            "pruning": pruning,
            "representation": representation,
            "solver": solver,
            "readout": None if copies is None else Tomography(copies=copies),
            "tolerance": tolerance,
        }
        arms = build_arms(network, task, quantum, compare, seed)
        require_loss(network, task, (model, loss))
        watcher = build_monitor(arms[0].model, task, batch_size, seed) if monitor else None
        output.mkdir(parents=True, exist_ok=True)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise common.fail(error) from None
    total = sum(p.numel() for p in network.parameters())
    title = f"{model} on {data}"
    facts: dict[str, Any] = {"parameters": total, "classes": images.classes}
    facts |= surroundings(next(network.parameters()))
    report = TrainReport(console, output, json, title, settings, facts)
    common.say(console, f"{title}: {total:,} parameters, {images.classes} classes, seed {seed}")
    try:
        with common.progress_bar(console) as progress:
            train_arms(progress, arms, task, report, watcher)
        report.complete = True
    except KeyboardInterrupt:
        console.print("interrupted: what was measured so far is kept")
        raise typer.Exit(130) from None
    except (DivergenceError, GraphError, torch.OutOfMemoryError, ValueError, OSError) as error:
        raise common.fail(error) from None
    finally:
        report.write(arms[0].model, watcher)
