"""What one window step costs, in plain gradient evaluations, for each way to hand derivatives in.

One network, one batch, one process. Every way takes turns with the plain gradient, so that a
drifting machine moves both; the figure is the median of the ratios, with the range beside it.

    python benchmarks/step_cost.py            ResNet-18 for 32×32 images, batch 32
    python benchmarks/step_cost.py --small    a quick look
"""

from __future__ import annotations

import ctypes
import json
import platform
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import torch.nn.functional as F
import torchvision
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from torch_qsgd import QuantumSGD
from torch_qsgd.derivatives import higher_derivatives
from torch_qsgd.models import ResNet, ResNetConfig

Step = Callable[[], Any]
Batch = tuple[Tensor, Tensor]


def network(small: bool) -> nn.Module:
    if small:
        return ResNet(100, ResNetConfig(width=16, depth=8))
    model: nn.Module = torchvision.models.resnet18(num_classes=100)
    # The stem for 32×32 images: no stride, no pooling.
    model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    return model


def optimizer(model: nn.Module, order: int) -> QuantumSGD:
    """An optimizer in the middle of a window that does not end."""
    return QuantumSGD(
        model.parameters(),
        lr=1e-6,
        density=0.1,
        order=order,
        window=10**9,
        pruning="magnitude-layerwise",
        model=model,
        loss_fn=F.cross_entropy,
    )


def by_recording(model: nn.Module, opt: QuantumSGD, x: Tensor, y: Tensor) -> None:
    opt.zero_grad()
    with opt.recording():
        F.cross_entropy(model(x), y).backward()
    opt.step()


def by_closure(model: nn.Module, opt: QuantumSGD, x: Tensor, y: Tensor) -> None:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    opt.step(closure)


def by_batch(model: nn.Module, opt: QuantumSGD, x: Tensor, y: Tensor) -> None:
    opt.step(x, y)


WAYS = {
    "with opt.recording()": by_recording,
    "opt.step(closure)": by_closure,
    "opt.step(x, y)": by_batch,
}


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()


def window_steps(small: bool, x: Tensor, y: Tensor) -> dict[str, Step]:
    """Each way at each order, two steps into a window, so that every term is there."""
    steps: dict[str, Step] = {}
    for order in (1, 2, 3):
        for name, way in WAYS.items():
            torch.manual_seed(0)
            model = network(small).to(x.device)
            opt = optimizer(model, order)
            for _ in range(2):
                way(model, opt, x, y)
            steps[f"order {order}, {name}"] = lambda w=way, m=model, o=opt: w(m, o, x, y)  # type: ignore[misc]
    return steps


def optimizer_steps(small: bool, x: Tensor, y: Tensor) -> tuple[Step, Step]:
    """``step()`` alone: torch.optim.SGD (foreach), and QuantumSGD without quantum features."""
    models = [network(small).to(x.device) for _ in range(2)]
    for model in models:
        gradient(model, x, y)
    theirs = torch.optim.SGD(models[0].parameters(), lr=1e-6, momentum=0.9, foreach=True)
    ours = QuantumSGD(models[1].parameters(), lr=1e-6, momentum=0.9, window=0, density=1)
    return theirs.step, ours.step


def seconds(step: Step, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratios(step: Step, against: Step, rounds: int, device: torch.device) -> list[float]:
    """One warm-up of each, then turns."""
    step()
    against()
    return [seconds(step, device) / seconds(against, device) for _ in range(rounds)]


def return_freed_memory() -> None:
    """Have glibc hand freed blocks back at once, so that resident memory is what is in use.

    It slows a step down, so it comes after the timing.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
        largest_kept_block = -3  # M_MMAP_THRESHOLD
        libc.mallopt(largest_kept_block, 65536)
        libc.malloc_trim(0)


def peak_mb(step: Step, device: torch.device) -> float:
    """Most memory held during the step beyond what was held before it, in MB.

    On a GPU as its allocator counts it; on a CPU as resident memory of the process, read every
    2 ms.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    return_freed_memory()
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        step()
    finally:
        done.set()
        watcher.join()
    return float(peak - before) / 2**20


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def main(
    small: Annotated[bool, typer.Option(help="A small network, few rounds.")] = False,
    rounds: Annotated[int, typer.Option(help="Turns of each way.")] = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print the cost of a window step at order 1, 2 and 3, as a ratio to one plain gradient."""
    where = torch.device(device)
    generator = torch.Generator().manual_seed(0)
    batch = 8 if small else 32
    x = torch.randn(batch, 3, 32, 32, generator=generator).to(where)
    y = torch.randint(100, (batch,), generator=generator).to(where)
    model = network(small).to(where)

    def plain() -> None:
        gradient(model, x, y)

    def composed() -> None:
        with higher_derivatives():
            gradient(model, x, y)

    measured: list[dict[str, Any]] = []
    cases = {"gradient, composed operations": composed, **window_steps(small, x, y)}
    for name, step in track(cases.items(), "timing", transient=True):
        found = ratios(step, plain, 2 if small else rounds, where)
        measured.append({"case": name, "ratios": found})
    theirs, ours = optimizer_steps(small, x, y)
    found = ratios(ours, theirs, 40 * rounds, where)
    base = peak_mb(plain, where)
    for row in track(measured, "memory", transient=True):
        row["peak_mb"] = peak_mb(cases[row["case"]], where)
    parameters = sum(p.numel() for p in model.parameters())
    title = (
        f"{'small ResNet' if small else 'ResNet-18'}, {parameters:,} parameters, batch {batch}; "
        f"torch {torch.__version__}, {machine(where)}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("one step")
    for column in ("gradients", "least", "most", "peak MB"):
        table.add_column(column, justify="right")
    table.add_row("gradient", "1.00", "", "", f"{base:.0f}")
    for row in measured:
        values = row["ratios"]
        table.add_row(
            row["case"],
            f"{statistics.median(values):.2f}",
            f"{min(values):.2f}",
            f"{max(values):.2f}",
            f"{row['peak_mb']:.0f}",
        )
    console = Console()
    console.print(table)
    quartiles = statistics.quantiles(found, n=4)
    console.print(
        "step() with quantum features off, as a ratio to torch.optim.SGD(foreach=True): "
        f"median {quartiles[1]:.3f}, quartiles {quartiles[0]:.3f} to {quartiles[2]:.3f}",
        highlight=False,
        soft_wrap=True,
    )
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        plain_sgd = {"case": "step() against torch.optim.SGD(foreach=True)", "ratios": found}
        log = {"title": title, "gradient_peak_mb": base, "steps": measured, "sgd": plain_sgd}
        output.write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
