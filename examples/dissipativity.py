"""Windows that end while training still is dissipative: the monitor beside fixed lengths.

A small convolutional network learns real images of digits in windows of at most 100 steps: once
as long as that, once ended by the monitor, once in short windows of a length found by trial.

    python examples/dissipativity.py                a quarter of a minute
    python examples/dissipativity.py --output DIR   where the picture and the history go
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from torch_qsgd import DivergenceError, QuantumSGD
from torch_qsgd.data import load_data
from torch_qsgd.hessian import DissipativityMonitor
from torch_qsgd.training import evaluate

STEPS, RATE = 220, 0.05


def train(window: int, watched: bool) -> tuple[list[str], DissipativityMonitor | None]:
    """One run from the same weights and batches: its row of the table, and its monitor."""
    torch.manual_seed(0)
    data = load_data("digits", batch_size=64, seed=0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(8, 16, 3, padding=1, stride=2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(256, data.classes),
    )
    stream = itertools.chain.from_iterable(itertools.repeat(data.train))
    batches = list(itertools.islice(stream, STEPS))
    opt = QuantumSGD(model.parameters(), lr=RATE, density=0.5, window=window, order=1)
    monitor = DissipativityMonitor(opt, model, F.cross_entropy, batches[0]) if watched else None
    outcome = ""
    try:
        for images, labels in batches:
            opt.zero_grad()
            with opt.recording():
                F.cross_entropy(model(images), labels).backward()
            opt.step()
        if opt.phase == "window":
            opt.download()
    except DivergenceError:
        outcome = "diverged"
    loss, accuracy = evaluate(model, F.cross_entropy, data.validation, torch.device("cpu"))
    lengths = [w.steps for w in opt.windows]
    mean = sum(lengths) / len(lengths) if lengths else 0.0
    cost = f"{monitor.products:,} products, {100 * monitor.share:.0f} %" if monitor else ""
    classical = f"{opt.total_steps - sum(lengths)}"
    row = [
        f"{len(lengths)}",
        f"{mean:.0f}",
        classical,
        outcome or f"{loss:.3g}",
        f"{100 * accuracy:.1f} %",
    ]
    return [*row, cost], monitor


def main(
    output: Annotated[Path, typer.Option(help="Folder of the picture and the history.")] = Path(
        "runs"
    ),
) -> None:
    """Train three times and compare."""
    output.mkdir(parents=True, exist_ok=True)
    table = Table(title=f"{STEPS} steps on digits, order 1, learning rate {RATE}, half the weights")
    columns = ("windows", "number", "mean steps", "classical steps", "loss (nats)", "accuracy")
    for column in (*columns, "monitor's cost"):
        table.add_column(column, justify="left" if column == "windows" else "right")
    for name, window, watched in (
        ("100 steps", 100, False),
        ("at most 100, monitored", 100, True),
        ("12 steps", 12, False),
    ):
        row, monitor = train(window, watched)
        table.add_row(name, *row)
        if monitor is not None:
            monitor.history.plot(output / "dissipativity.png", title="Digits, monitored windows")
            monitor.history.save(output / "dissipativity.json")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
