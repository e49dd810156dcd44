"""``torch-qsgd audit``: the paper's assumptions, each measured on a model; HTML, Markdown, JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from torch_qsgd.auditing import AuditReport, audit
from torch_qsgd.auditing.plan import Plan
from torch_qsgd.cli import common
from torch_qsgd.cli.task import load_task
from torch_qsgd.cli.train_arms import dense_start
from torch_qsgd.cli.verdict_table import verdict_tables
from torch_qsgd.training import endless

#: With --quick, where not given: images a batch, and their side in pixels.
_QUICK_BATCH, _QUICK_SIDE, _BATCH = 8, 32, 64


def audit_command(
    context: typer.Context,
    data: common.Data,
    lr: Annotated[float, typer.Option(help="Learning rate.")],
    model: common.Model = "resnet",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights: a state_dict file, as train's model.pt; random unless given."),
    ] = None,
    width: common.Width = None,
    depth: common.Depth = None,
    activation: common.Activation = None,
    norm: common.Norm = None,
    loss: common.Loss = "cross-entropy",
    density: Annotated[float, typer.Option(help="Share of prunable weights kept.")] = 0.1,
    pruning: Annotated[str, typer.Option(help="How masks are chosen.")] = "magnitude",
    window: Annotated[
        int | None, typer.Option(help="Steps in a window, T: 100, or 15 with --quick.")
    ] = None,
    order: Annotated[int, typer.Option(help="Highest truncation order, N.")] = 2,
    classical_steps: Annotated[int, typer.Option(help="Dense steps between windows.")] = 10,
    windows: Annotated[
        int | None, typer.Option(help="Windows of the training run: 3, or 2 with --quick.")
    ] = None,
    momentum: Annotated[float, typer.Option(help="Momentum.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.0,
    warmup: Annotated[
        int,
        typer.Option(min=0, help="Dense SGD steps before the audit, where there are no weights."),
    ] = 0,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a batch: 64, or 8 with --quick.")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Side in pixels: the images' own, or 32 with --quick."),
    ] = None,
    lanczos_steps: Annotated[
        int | None, typer.Option(help="Lanczos steps a probe: 40, or 12 with --quick.")
    ] = None,
    probes: Annotated[int | None, typer.Option(help="Random probes: 2.")] = None,
    rows: Annotated[
        int | None, typer.Option(help="Rows of the Hessian to probe: 60, or 6 with --quick.")
    ] = None,
    solver_error: Annotated[float, typer.Option(help="Error of the quantum solver.")] = 1e-3,
    readout_error: Annotated[
        float, typer.Option(help="Relative error of the displacement that is read.")
    ] = 0.1,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smaller numbers wherever an option is not given.")
    ] = False,
    device: common.Device = "cpu",
    workers: common.Workers = 0,
    seed: Annotated[
        int, typer.Option(help="Of images, probes, and weights without a checkpoint.")
    ] = 0,
    json: common.Json = False,
    output: Annotated[
        Path, typer.Option(help="Folder for audit.html, audit.md and audit.json.")
    ] = Path("runs/audit"),
) -> None:
    """Measure which of the paper's assumptions hold for a model, and what a window would cost.

    Each finding has a value, a threshold (our definition) and a verdict: holds,
    breaks, or cannot tell. The ledger counts what a quantum computer would need
    for one window of SGD steps, and what a classical one does. No advantage is
    claimed. Ctrl-C leaves the report of what was measured so far.

    Example: torch-qsgd audit --data digits --lr 0.02 --width 16 --depth 8
    --activation silu --checkpoint runs/train/model.pt
    """
    console = Console(stderr=json)  # so that stdout holds nothing but the JSON
    given = context.params
    try:
        _check(given)
        torch.manual_seed(seed)
        images, loss_fn, network = load_task(given)
        network = network.to(common.usable_device(device)).train()
        output.mkdir(parents=True, exist_ok=True)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise common.fail(error) from None
    weights = "random weights" if checkpoint is None else str(checkpoint)
    weights += f" and {warmup} dense steps" if warmup else ""
    title = f"{model} on {data}, {weights}"
    common.say(console, f"{title}: {sum(p.numel() for p in network.parameters()):,} parameters")
    kept: list[AuditReport] = []
    skipped = ("json", "output", "workers", "data", "model")
    chosen = {k: v for k, v in given.items() if k not in (*skipped, *Plan.__annotations__)}
    chosen = {k: str(v) if isinstance(v, Path) else v for k, v in chosen.items() if v is not None}
    options = {name: given[name] for name in _audit_options(given)}
    try:
        with common.progress_bar(console) as bar:
            sgd = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
            dense_start(bar, network, loss_fn, endless(images.train), sgd, warmup)
        network.zero_grad()
        with _bar(console) as show, common.interrupts() as heed:

            def keep(report: AuditReport) -> None:
                """After each part, so that not even a crash loses what was measured."""
                kept[:] = [report]
                report.settings = {**chosen, **report.settings}
                report.save(output / "audit.json")
                heed()

            def progress(part: str, done: int, total: int) -> None:
                show(part, done, total)
                heed()

            audit(
                network,
                loss_fn,
                images.train,
                validation=images.validation,
                title=title,
                progress=progress,
                on_part=keep,
                **options,
            )
    except KeyboardInterrupt:
        console.print("interrupted: what was measured so far is kept")
        raise typer.Exit(130) from None
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise common.fail(error) from None
    finally:
        if kept:
            _write(console, kept[0], output, json)


def _audit_options(given: dict[str, Any]) -> list[str]:
    return [name for name in (*Plan.__annotations__, "quick") if name in given]


def _check(given: dict[str, Any]) -> None:
    """Refuse wrong options before anything is read, and fill in what --quick leaves open."""
    quick = given["quick"]
    if given["batch_size"] is None:
        given["batch_size"] = _QUICK_BATCH if quick else _BATCH
    if quick and given["image_size"] is None and given["data"] != "digits":
        given["image_size"] = _QUICK_SIDE
    plan = dict.fromkeys(Plan.__annotations__)
    Plan.of(quick, **{**plan, **{k: given[k] for k in plan if k in given}})


@contextmanager
def _bar(console: Console) -> Iterator[Any]:
    """A bar of the part that is being measured."""
    with common.progress_bar(console) as progress:
        tasks: dict[str, Any] = {}

        def show(part: str, done: int, total: int) -> None:
            if part not in tasks:
                for old in tasks.values():
                    progress.remove_task(old)
                tasks.clear()
                tasks[part] = progress.add_task(part, total=total)
            progress.update(tasks[part], completed=done, total=total)

        yield show


def _write(console: Console, report: AuditReport, output: Path, as_json: bool) -> None:
    paths = report.write(output, "audit")
    if as_json:
        print(common.as_json(report.to_json()))
    else:
        for table in verdict_tables(report):
            console.print(table)
        if report.ledger is not None:
            common.say(console, report.ledger.sentence)
    for note in report.notes:
        common.say(console, f"note: {note}")
    for path in paths:
        common.say(console, f"{path.suffix[1:]}: {path}")
