"""``torch-qsgd train``: train, and measure every window against true SGD."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from torch_qsgd.cli import common
from torch_qsgd.data import ImageData, fixed_batches, load_data
from torch_qsgd.errors import DivergenceError, GraphError
from torch_qsgd.hessian import DissipativityMonitor
from torch_qsgd.hessian.masses import counted
from torch_qsgd.models import build_model
from torch_qsgd.optim import QuantumSGD
from torch_qsgd.readout import Tomography
from torch_qsgd.training import History, WindowReport, endless, train

#: Training batches that the monitor's spectra are of.
_MONITORED = 2


@dataclass(frozen=True)
class _Arm:
    """One way to train, in a comparison."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer


class _Reporter:
    """One line a window, beside a progress bar."""

    _WIDTHS = (11, 5, 19, 12, 11, 9)

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console, self._progress = console, progress

    def header(self) -> None:
        names = ("steps", "T", "loss before → after", "error vs SGD", "‖c_N‖/‖c_1‖", "active")
        self._line(names, style="bold")

    def window(self, report: WindowReport) -> None:
        record = report.record
        self._line(
            (
                f"{report.start}–{report.stop}",
                str(record.steps),
                f"{report.before.loss:.4f} → {report.after.loss:.4f}",
                f"{report.error:.2%}",
                f"{record.jet_ratio:.2e}",
                f"{record.active:,}",
            )
        )

    def _line(self, cells: tuple[str, ...], style: str = "") -> None:
        text = "  ".join(c.rjust(w) for c, w in zip(cells, self._WIDTHS, strict=True))
        self._progress.console.print(text, style=style, highlight=False, soft_wrap=True)


def _summary(runs: list[History], seconds: dict[str, float]) -> Table:
    table = Table(title="At the end, on the validation images", title_justify="left")
    table.add_column("run")
    for name in ("active weights", "of all", "loss", "accuracy", "seconds"):
        table.add_column(name, justify="right")
    for run in runs:
        final = run.final
        table.add_row(
            run.name,
            f"{run.active:,}",
            f"{run.active / run.total:.1%}",
            f"{final.loss:.4f}",
            f"{final.accuracy:.1%}",
            f"{seconds[run.name]:.0f}",
        )
    return table


def _cap(batches: Iterable[Any], most: int | None) -> list[Any]:
    """The first so many batches, read once and kept."""
    return list(itertools.islice(batches, most))


def train_command(
    data: common.Data,
    model: common.Model = "resnet",
    width: common.Width = None,
    depth: common.Depth = None,
    activation: common.Activation = None,
    norm: common.Norm = None,
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
    output: Annotated[Path, typer.Option(help="Folder for curves, log and weights.")] = Path(
        "runs/train"
    ),
) -> None:
    """Train a network with QuantumSGD and measure every window against true SGD.

    Example: python -m torch_qsgd train --data digits --compare
    """
    console = Console()
    shape = common.model_shape(width, depth, activation, norm)
    options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
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
        network = build_model(model, images.classes, images.channels, **shape)
        network = network.to(common.usable_device(device))
        arms = _arms(
            network,
            compare,
            seed,
            options,
            {
                "density": density,
                "window": window,
                "order": order,
                "classical_steps": classical_steps,
                "pruning": pruning,
                "representation": representation,
                "solver": solver,
                "readout": None if copies is None else Tomography(copies=copies),
                "tolerance": (
                    tolerance if tolerance is not None else 0.5 if order > 1 else math.inf
                ),
            },
        )
        watcher = _monitor(arms[0].model, images, batch_size, seed) if monitor else None
        output.mkdir(parents=True, exist_ok=True)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise common.fail(error) from None
    total = sum(p.numel() for p in network.parameters())
    common.say(
        console, f"{model} on {data}: {total:,} parameters, {images.classes} classes, seed {seed}"
    )
    histories: list[History] = []
    seconds: dict[str, float] = {}
    try:
        _run(
            console,
            arms,
            images,
            warmup,
            windows,
            eval_batches,
            options,
            histories,
            seconds,
            watcher,
        )
    except KeyboardInterrupt:
        console.print("interrupted: what was measured so far is kept")
        raise typer.Exit(130) from None
    except (DivergenceError, GraphError, torch.OutOfMemoryError, ValueError, OSError) as error:
        raise common.fail(error) from None
    finally:
        if histories:
            title = f"{model} on {data}"
            _write(console, output, histories, seconds, arms[0].model, title)
            if watcher is not None and watcher.history.records:
                _write_monitor(console, output, watcher, title)


def _arms(
    network: nn.Module,
    compare: bool,
    seed: int,
    options: dict[str, Any],
    quantum: dict[str, Any],
) -> list[_Arm]:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def arm(name: str, cycle: dict[str, Any] | None) -> _Arm:
        model = copy.deepcopy(network)
        if cycle is None:
            return _Arm(name, model, torch.optim.SGD(model.parameters(), **options))
        optimizer = QuantumSGD(
            model.parameters(),
            **options,
            **cycle,
            model=model,
            loss_fn=nn.functional.cross_entropy,
            generator=generator(),
        )
        return _Arm(name, model, optimizer)

    arms = [arm("QuantumSGD", quantum)]
    if compare:
        masked = {"density": quantum["density"], "pruning": quantum["pruning"], "window": 0}
        arms += [arm("masked SGD", masked), arm("dense SGD", None)]
    return arms


def _monitor(
    model: nn.Module, images: ImageData, batch_size: int, seed: int
) -> DissipativityMonitor:
    """A monitor of the loss on a few training batches, the same at every spectrum."""
    with torch.random.fork_rng():  # which images the run draws, and how cropped, must not change
        batches = list(fixed_batches(images, batch_size, _MONITORED, seed))
    # --tolerance ends windows by their jets, and says when not to.
    return DissipativityMonitor(
        None, model, nn.functional.cross_entropy, batches, jet_ratio=None, seed=seed
    )


def _run(
    console: Console,
    arms: list[_Arm],
    images: ImageData,
    warmup: int,
    windows: int,
    eval_batches: int | None,
    options: dict[str, Any],
    histories: list[History],
    seconds: dict[str, float],
    monitor: DissipativityMonitor | None,
) -> None:
    """Train every arm from the same dense weights, on the same batches."""
    device = next(arms[0].model.parameters()).device
    few = eval_batches is not None
    validation = _cap(images.validation, eval_batches) if few else images.validation
    cycle = arms[0].optimizer.param_groups[0]
    every = max(1, cycle["window"] // 4)
    # The last download ends the run, so that the weights compared are pruned ones; windows may
    # end early, so the other arms take as many steps as the first did.
    steps = windows * (cycle["window"] + cycle["classical_steps"])
    batches = endless(images.train)
    loss_fn = nn.functional.cross_entropy
    with common.progress_bar(console) as progress:
        if warmup:
            bar = progress.add_task("dense start", total=warmup)
            first = torch.optim.SGD(arms[0].model.parameters(), **options)
            for _ in range(warmup):
                inputs, labels = (t.to(device) for t in next(batches))
                first.zero_grad()
                loss_fn(arms[0].model(inputs), labels).backward()
                first.step()
                progress.advance(bar)
            arms[0].model.zero_grad()
            progress.remove_task(bar)
        start = copy.deepcopy(arms[0].model.state_dict())
        # The order of the images, and their crops and flips: the same for every arm.
        drawn = torch.get_rng_state(), images.generator.get_state()
        for arm in arms:
            arm.model.load_state_dict(start)
            torch.set_rng_state(drawn[0])
            images.generator.set_state(drawn[1])
            reporter = _Reporter(console, progress)
            if isinstance(arm.optimizer, QuantumSGD) and arm.optimizer.param_groups[0]["window"]:
                reporter.header()
            bar = progress.add_task(arm.name, total=steps)
            history = History(arm.name)
            histories.append(history)
            began = time.perf_counter()
            if monitor is not None and arm is arms[0]:
                assert isinstance(arm.optimizer, QuantumSGD)
                monitor.attach(arm.optimizer)
            try:
                train(
                    arm.name,
                    arm.model,
                    loss_fn,
                    arm.optimizer,
                    endless(images.train),
                    validation,
                    steps=steps,
                    every=every,
                    windows=windows if arm is arms[0] else None,
                    history=history,
                    on_step=lambda step, bar=bar: progress.update(bar, completed=step),  # type: ignore[misc]
                    on_window=reporter.window,
                )
            finally:
                if monitor is not None:
                    monitor.detach()
                seconds[arm.name] = time.perf_counter() - began
            steps = history.final.step
            progress.remove_task(bar)


def _write(
    console: Console,
    output: Path,
    histories: list[History],
    seconds: dict[str, float],
    model: nn.Module,
    title: str,
) -> None:
    from torch_qsgd.report.curves import plot_curves

    measured = [h for h in histories if h.evaluations]
    if not measured:
        return
    console.print(_summary(measured, seconds))
    log = [{**h.to_json(), "seconds": seconds[h.name]} for h in measured]
    common.write_json(output / "run.json", {"title": title, "runs": log})
    plot_curves(measured, output / "curves.png", title)
    torch.save(model.state_dict(), output / "model.pt")
    common.say(
        console,
        f"curves: {output}/curves.png\nlog: {output}/run.json\nweights: {output}/model.pt",
    )


def _write_monitor(
    console: Console, output: Path, monitor: DissipativityMonitor, title: str
) -> None:
    history = monitor.history
    history.save(output / "monitor.json")
    history.plot(output / "monitor.png", title=title)
    ended = sum(span.triggered for span in history.windows)
    common.say(
        console,
        f"monitor: {output}/monitor.png, {output}/monitor.json\n"
        f"  {counted(len(history.records), 'spectrum', 'spectra')}, "
        f"{counted(history.products, 'product')}, "
        f"{history.seconds:.1f} s, {history.share:.0%} of the run; "
        f"ended {ended} of {counted(len(history.windows), 'window')}",
    )
