"""One window of a real network, solved as a quantum computer would: exact, HHL, QSVT, circuit.

A small residual network on real images of digits takes seven steps of gradient descent, written
as one linear system in a three-dimensional Krylov space. Each solver solves it; the last one runs
gate by gate on Qiskit Aer. Then the optimizer does the same by itself, with tomography.

    python examples/hhl_window.py                   a quarter of a minute; needs torch_qsgd[quantum]
    python examples/hhl_window.py --output DIR      where the picture goes
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Annotated

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from torch_qsgd import QuantumSGD
from torch_qsgd.carleman import CarlemanSystem, krylov_window
from torch_qsgd.data import load_data
from torch_qsgd.models import ResNet, ResNetConfig
from torch_qsgd.readout import Tomography
from torch_qsgd.representations import Krylov
from torch_qsgd.solvers import HHL, QSVT, Circuit, Exact, Solver

STEPS, ORDER, DIMENSION, RATE = 7, 1, 3, 0.05
#: Okabe and Ito's colours, told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73")

SOLVERS: dict[str, Solver] = {
    "exact": Exact(),
    "hhl, t = 8": HHL(clock_qubits=8),
    "hhl, t = 12": HHL(clock_qubits=12),
    "qsvt, ε = 1e-2": QSVT(epsilon=1e-2),
    "qsvt, ε = 1e-6": QSVT(epsilon=1e-6),
    "circuit hhl, t = 8": Circuit("hhl", clock_qubits=8),
    "circuit qsvt, ε = 1e-2": Circuit("qsvt", epsilon=1e-2),
    "circuit hhl, 10⁶ shots": Circuit("hhl", clock_qubits=8, shots=10**6),
}


def network_and_batch() -> tuple[nn.Module, Tensor, Tensor]:
    """A residual network after a short dense training, and one batch of digits."""
    torch.manual_seed(0)
    data = load_data("digits", batch_size=64, seed=0)
    model = ResNet(
        data.classes, ResNetConfig(depth=8, width=8, activation="silu", channels=data.channels)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(3):
        for images, labels in data.train:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    images, labels = next(iter(data.train))
    return model, images, labels


def solved(system: CarlemanSystem) -> Table:
    """A row a solver."""
    table = Table(
        title=f"{system.size} unknowns, κ = {system.condition_number:.1f}; t clock qubits",
        title_justify="left",
    )
    table.add_column("solver", no_wrap=True)
    for name in ("error of Y", "error of u", "success", "queries", "seconds"):
        table.add_column(name, justify="right")
    exact = system.displacement(system.solution)
    for name, solver in track(SOLVERS.items(), "solving", transient=True):
        began = time.perf_counter()
        solution = solver.solve(system)
        seconds = time.perf_counter() - began
        u = system.displacement(solution.vector)
        error = np.linalg.norm(u - exact) / np.linalg.norm(exact)
        table.add_row(
            name,
            f"{solution.error:.1e}",
            f"{error:.1e}",
            f"{solution.success_probability:.1e}",
            f"{solution.queries:,}",
            f"{seconds:.3f}",
        )
    return table


def plot_errors(system: CarlemanSystem, path: Path) -> None:
    """Error against clock qubits, and against the polynomial's degree."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
    clocks = range(4, 15)
    windows = (("sine", True), ("uniform", True), ("sine", False))
    for (window, guard), colour, marker in zip(windows, COLOURS, "os^", strict=True):
        errors = [
            HHL(clock_qubits=t, window=window, guard_band=guard).solve(system).error for t in clocks
        ]
        label = f"{window} window" + ("" if guard else ", no guard band")
        left.semilogy(list(clocks), errors, marker=marker, color=colour, label=label)
    left.set(xlabel="clock qubits", ylabel="‖Ŷ − Y‖ / ‖Y‖", title="HHL")
    for kind, colour, marker in zip(("relative", "absolute", "cks"), COLOURS, "os^", strict=True):
        solutions = [
            QSVT(epsilon=epsilon, kind=kind).solve(system)
            for epsilon in (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)
        ]
        right.semilogy(
            [s.queries for s in solutions],
            [s.error for s in solutions],
            marker=marker,
            color=colour,
            label=f"{kind} polynomial",
        )
    right.set(xlabel="degree = queries of the block encoding", title="QSVT")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(
        f"Solver error, one window of {STEPS} steps ({system.size} unknowns, "
        f"κ = {system.condition_number:.0f})"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(
    output: Annotated[Path, typer.Option(help="Folder of the picture.")] = Path("runs"),
) -> None:
    """Solve one window of a real network by every solver."""
    console = Console()
    model, images, labels = network_and_batch()
    total = sum(p.numel() for p in model.parameters())
    window = krylov_window(
        model, F.cross_entropy, images, labels, dimension=DIMENSION, lr=RATE, degree=ORDER
    )
    exact_step = window.system(STEPS, ORDER, rescaling=1.0)
    length = float(np.linalg.norm(exact_step.displacement(exact_step.solution)))
    system = window.system(STEPS, ORDER, rescaling=length)
    console.print(
        f"{total:,} parameters in {DIMENSION} Krylov dimensions, T = {STEPS}, N = {ORDER}: "
        f"P(final) = {system.final_probability(system.solution):.2f}, "
        f"P(u | final) = {system.level_one_probability(system.solution):.2f}",
        highlight=False,
    )
    console.print(solved(system))
    output.mkdir(parents=True, exist_ok=True)
    plot_errors(system, output / "hhl_window.png")
    console.print(f"picture: {output / 'hhl_window.png'}", highlight=False)

    before = loss(model, images, labels)
    true, trained = copy.deepcopy(model), copy.deepcopy(model)
    descend(true, torch.optim.SGD(true.parameters(), lr=RATE), images, labels)
    optimizer = QuantumSGD(
        trained.parameters(),
        lr=RATE,
        density=1,
        window=STEPS,
        order=ORDER,
        representation=Krylov(dimension=DIMENSION),
        solver=Circuit("hhl", clock_qubits=8),
        readout=Tomography(copies=10_000),
    )
    descend(trained, optimizer, images, labels)
    (record,) = optimizer.windows
    console.print(
        f"loss of the batch: {before:.4f} before, {loss(trained, images, labels):.4f} after "
        f"QuantumSGD (circuit HHL, {record.copies:,} copies read with an error of "
        f"{record.readout_error:.1%}), {loss(true, images, labels):.4f} after true SGD",
        highlight=False,
    )


def descend(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> None:
    """The window's steps, all on one batch."""
    for _ in range(STEPS):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            return loss

        optimizer.step(closure)


@torch.no_grad()
def loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Cross entropy of the batch, in nats."""
    return float(F.cross_entropy(model(images), labels))


if __name__ == "__main__":
    typer.run(main)
