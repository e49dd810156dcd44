"""Windows that end while training still is dissipative: the monitor beside fixed lengths.

A small convolutional network learns real images of digits, from the same weights and on the same
batches, in windows of 4, 12, 25 and 100 steps, and in windows of at most 100 that the monitor
ends. No classical steps lie between windows, and all runs end with a download.

The monitor keeps windows from growing too long without a length to choose: it does as well as a
well-chosen fixed length, and no better, and takes more time than this small network's training.

    python examples/dissipativity.py                20 seconds
    python examples/dissipativity.py --output DIR   where the picture and the history go
"""

from __future__ import annotations

import itertools
import math
import warnings
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
    opt = QuantumSGD(
        model.parameters(), lr=RATE, density=0.5, window=window, classical_steps=0, order=1
    )
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
    if not math.isfinite(loss):
        outcome = outcome or "NaN"
    lengths = [w.steps for w in opt.windows]
    mean = sum(lengths) / len(lengths) if lengths else 0.0
    cost = [f"{monitor.products:,}", f"{100 * monitor.share:.0f} %"] if monitor else ["", ""]
    row = [f"{len(lengths)}", f"{mean:.0f}", outcome or f"{loss:#.3g}", f"{100 * accuracy:.1f} %"]
    return [*row, *cost], monitor


def main(
    output: Annotated[Path, typer.Option(help="Folder of the picture and the history.")] = Path(
        "runs"
    ),
) -> None:
    """Train with each window length, and with the monitor, and compare."""
    output.mkdir(parents=True, exist_ok=True)
    table = Table(title=f"{STEPS} steps on digits, order 1, learning rate {RATE}, half the weights")
    table.add_column("window")
    measured = ("number", "mean\nsteps", "loss\n(nats)", "accuracy")
    for column in (*measured, "monitor's\nproducts", "monitor's\nshare of time"):
        table.add_column(column, justify="right")
    for window, watched in ((4, False), (12, False), (25, False), (100, False), (100, True)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*of the time")  # the table tells it
            row, monitor = train(window, watched)
        table.add_row("monitored" if watched else f"{window} steps", *row)
        if monitor is not None:
            monitor.history.plot(output / "dissipativity.png", title="Digits, monitored windows")
            monitor.history.save(output / "dissipativity.json")
    console = Console()
    console.print(table)
    console.print(
        "The monitor matches a well-chosen fixed window, and does not beat it: it saves knowing "
        "the length."
    )


if __name__ == "__main__":
    typer.run(main)
