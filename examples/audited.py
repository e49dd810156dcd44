"""What the audited examples share: training with a progress bar, and an audit with its report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from torch_qsgd import audit
from torch_qsgd.cli.common import progress_bar, say
from torch_qsgd.cli.verdict_table import verdict_tables
from torch_qsgd.training import Batch, History, LossFunction, train


def pretrain(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterator[Batch],
    held_out: list[Batch],
    *,
    steps: int,
    lr: float,
    console: Console,
) -> History:
    """Train all weights by SGD with momentum 0.9, and evaluate before and after.

    Args:
        model: is trained in place.
        loss_fn: of outputs and targets; a mean.
        batches: without end.
        held_out: batches to evaluate on.
        steps: at least 1.
        lr: learning rate.
        console: where the progress bar is shown.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    with progress_bar(console) as progress:
        bar = progress.add_task("training", total=steps)
        history = train(
            "SGD",
            model,
            loss_fn,
            optimizer,
            batches,
            held_out,
            steps=steps,
            every=steps,
            on_step=lambda step: progress.update(bar, completed=step),
        )
    model.zero_grad()
    return history


def report_audit(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: list[Batch],
    held_out: list[Batch],
    *,
    output: Path,
    name: str,
    console: Console,
    **options: Any,
) -> None:
    """Audit a model, print the verdicts, and write the report as JSON, Markdown and HTML.

    Args:
        model, loss_fn: see :func:`torch_qsgd.audit`, as for ``options``.
        batches: that the audit's steps take.
        held_out: that it evaluates on.
        output: folder of the report.
        name: of its files.
        console: where the verdicts are shown.
    """
    found = audit(model, loss_fn, batches, validation=held_out, **options)
    paths = found.write(output, name)
    for table in verdict_tables(found):
        console.print(table)
    for note in found.notes:
        say(console, f"note: {note}")
    if found.ledger is not None:
        say(console, found.ledger.sentence)
    say(console, f"audited in {found.seconds:.0f} s")
    for path in paths:
        say(console, f"{path.suffix[1:]}: {path}")
