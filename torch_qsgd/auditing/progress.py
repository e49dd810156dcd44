"""How far an audit has come."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from torch_qsgd.auditing.run import Tick

#: A bar in a terminal or none; or what is told the part, steps done in it, and their number.
Progress = bool | Callable[[str, int, int], object]


@contextlib.contextmanager
def shown(progress: Progress, parts: Sequence[str]) -> Iterator[Callable[[str], Tick]]:
    """Yield a function that gives each part its tick.

    Args:
        progress: as of :func:`torch_qsgd.auditing.audit`.
        parts: names, in order.
    """
    if callable(progress):

        def told(part: str) -> Tick:
            return lambda done, total: progress(part, done, total)

        yield told
        return
    console = Console(stderr=True)
    with Bar(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not progress or not console.is_terminal,
    ) as bar:
        task = bar.add_task("audit", total=None)

        def of(part: str) -> Tick:
            bar.reset(task, description=f"{parts.index(part) + 1}/{len(parts)} {part}", total=None)
            return lambda done, total: bar.update(task, completed=done, total=total)

        yield of
