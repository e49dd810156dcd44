"""What a Hessian costs and how right its spectrum is: ours, plain PyTorch, and other libraries.

On one thread, in process CPU time; what is compared takes turns in one process. Parts:

* ``product``, ``channels-last``: one Hessian-vector product, as a ratio to one plain gradient,
  graph kept where a library can; construction and self-checks are left out. The gradient is in
  NCHW layout; for channels-last there is a second ratio, to the gradient in the same layout. The
  last column is the difference from plain reverse-over-reverse, in float64.
* ``spectrum``: a 100-step Lanczos density from the network to nodes and weights, construction and
  every library's own checks included. ``spectrum-large``: the same on ResNet-18.
* ``memory``: the most resident memory beyond what network, batch and vector take, during one
  product with all that leads to it, each in a process of its own.
* ``accuracy``: Wasserstein-1 distance to the dense spectrum, and errors of both ends, at equal
  products, in float64, each library by its own products.

Other libraries are left out where they are not installed:

    pip install --no-deps hessian-eigenthings==1.0.0a5 curvlinops-for-pytorch pyhessian \\
        backpack-for-pytorch; pip install einops einconv jaxtyping linear_operator tqdm unfoldNd
    OMP_NUM_THREADS=1 python benchmarks/hessian.py [--small] [--part product]
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from hessian_networks import CASES, NETWORKS, SPECTRA, Case, trained
from hessian_peers import (
    DENSITIES,
    GRADIENT,
    KEPT,
    OUR_OPTIONS,
    OURS,
    PRODUCTS,
    VARIANTS,
    Problem,
    circumstances_of,
    kept_product,
    missing,
    our_product,
    reason,
    versions,
)
from hessian_plot import draw, report, verdicts
from rich.console import Console
from rich.progress import track
from scipy.stats import wasserstein_distance
from step_cost import peak_mb
from torch import Tensor

Row = dict[str, Any]
#: In the order they are run; the last only where it is asked for.
PARTS = ("product", "channels-last", "spectrum", "memory", "accuracy", "spectrum-large")
SAME_LAYOUT = "gradient in the same layout"


@dataclass(frozen=True)
class Effort:
    """How much to measure: turns, CPU seconds for each method of a case, steps, seeds."""

    rounds: int
    patience: float
    spectrum_rounds: int
    steps: int
    budgets: tuple[int, ...]
    seeds: int


FULL, SMALL = Effort(7, 5.0, 2, 100, (50, 100), 20), Effort(3, 0.3, 1, 10, (10,), 2)


def cpu_seconds(step: Callable[[], Any]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def take_turns(
    steps: Mapping[str, Callable[[], Any]], rounds: int, patience: float, references: int
) -> dict[str, list[float]]:
    """CPU seconds of each step in each round, the order turning; references never sit out."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds if steps else 0):
        awake = [n for i, n in enumerate(names) if i < references or sum(times[n]) < patience]
        if turn and len(awake) == references:
            break
        start = turn % len(awake)
        for name in awake[start:] + awake[:start]:
            times[name].append(cpu_seconds(steps[name]))
    return times


def ratios(these: list[float], those: list[float]) -> list[float]:
    return [a / b for a, b in zip(these, those, strict=False)]


def under(method: str, step: Callable[..., Any], *arguments: Any) -> Any:
    with circumstances_of(method):
        return step(*arguments)


def in_float64(problem: Problem) -> Problem:
    """The same network on two images: there a wrong product shows, and rounding does not.

    In float32 rounding flips the signs of a few ReLUs, which is worth up to 1e-2 in any mode.
    """
    small = problem.copy()
    return Problem(small.model.double(), small.inputs[:2].double(), small.targets[:2], small.masks)


def measure_product(case: Case, effort: Effort, small: bool) -> list[Row]:
    problem = case.problem(small)
    exact, plain = in_float64(problem), replace(case, channels_last=False).problem(small)
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(problem.dimension, generator=generator)
    steps: dict[str, Callable[[], Any]] = {GRADIENT: partial(under, GRADIENT, plain.gradient)}
    if case.channels_last:
        steps[SAME_LAYOUT] = partial(under, GRADIENT, problem.gradient)
    for step in steps.values():
        step()
    references = len(steps)
    found: dict[str, Tensor] = {}
    rows: list[Row] = []
    for method, build in PRODUCTS.items():
        row: Row = {"case": case.name, "method": method, "aim": case.aim}
        rows.append(row)
        if missing(method):
            row["error"] = "not installed"
            continue
        try:
            found[method] = under(method, under(method, build, exact.copy()), v.double())
            product = under(method, build, problem.copy())
            under(method, product, v)
        except Exception as error:
            row["error"] = reason(error)
            continue
        steps[method] = partial(under, method, product, v)
    gc.collect()
    times = take_turns(steps, effort.rounds, effort.patience, references)
    for row in rows:
        if "error" not in row:
            method = row["method"]
            row["difference"] = float((found[method] - found[KEPT]).norm() / found[KEPT].norm())
            row["seconds"] = times[method]
            row["ratios"] = ratios(times[method], times[GRADIENT])
            row["ratios_same_layout"] = ratios(times[method], times.get(SAME_LAYOUT, []))
    gradient: Row = {"case": case.name, "method": GRADIENT, "seconds": times[GRADIENT]}
    gradient["ratios"] = [1.0]
    gradient["ratios_same_layout"] = ratios(times[GRADIENT], times.get(SAME_LAYOUT, []))
    return [gradient, *rows]


def measure_spectrum(case: Case, effort: Effort, small: bool, variants: bool) -> list[Row]:
    problem = case.problem(small)
    steps: dict[str, Callable[[], Any]] = {}
    rows: list[Row] = []
    found: Row = {}

    def run(method: str, count: int) -> None:
        gc.collect()
        found[method] = under(method, DENSITIES[method], problem.copy(), count, 0)

    for method in DENSITIES:
        if method in VARIANTS and not variants:
            continue
        row: Row = {"network": case.name, "method": method, "steps": effort.steps}
        rows.append(row)
        if missing(method):
            row["error"] = "not installed"
            continue
        try:
            # A rehearsal: it warms up, and shows what fails before time is spent on it.
            if method not in VARIANTS:
                run(method, 3)
        except Exception as error:
            row["error"] = reason(error)
            continue
        steps[method] = partial(run, method, effort.steps)
    once = {k: steps.pop(k) for k in VARIANTS if k in steps}
    times = take_turns(steps, effort.spectrum_rounds, np.inf, references=0)
    times |= take_turns(once, 1, np.inf, references=0)
    for row in rows:
        if "error" not in row:
            density = found[row["method"]]
            row["seconds"] = times[row["method"]]
            if OURS in times:
                row["times_ours"] = ratios(row["seconds"], times[OURS])
            row |= {"products": density.products, "lambda_min": float(density.nodes.min())}
            row["lambda_max"] = float(density.nodes.max())
    return rows


def memory_of(case: Case, method: str, small: bool) -> float:
    """In a fresh process: peak of one product and all that leads to it, in MB."""
    torch.set_num_threads(1)
    problem = case.problem(small)
    v = torch.randn(problem.dimension, generator=torch.Generator().manual_seed(1))
    # Loads and initializes PyTorch's kernels, whose memory is nobody's cost.
    problem.gradient()
    if method == GRADIENT:
        return peak_mb(lambda: problem.gradient(), v.device)
    build = {**PRODUCTS, **OUR_OPTIONS}[method]
    return peak_mb(lambda: under(method, lambda: build(problem)(v)), v.device)


def measure_memory(case: Case, method: str, small: bool) -> Row:
    row: Row = {"case": case.name, "method": method}
    if missing(method):
        return row | {"error": "not installed"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchvision", "torch_qsgd"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return row | {"peak_mb": pool.submit(memory_of, case, method, small).result()}
        except Exception as error:
            return row | {"error": reason(error)}


def measure_accuracy(name: str, effort: Effort, small: bool) -> list[Row]:
    problem = trained(name, small)
    n = problem.dimension
    identity = torch.eye(n, dtype=torch.float64)
    plain = under(KEPT, kept_product, problem.copy())
    dense = torch.stack([plain(row) for row in identity])
    # Ours is the reference only if PyTorch's own double backward gives the same matrix.
    ours = our_product(problem.copy())(identity)
    difference = float((ours - dense).abs().max() / dense.abs().max())
    eigenvalues = np.linalg.eigvalsh(((ours + ours.T) / 2).numpy())
    scale = float(np.abs(eigenvalues).mean())
    rows: list[Row] = []
    for steps in effort.budgets:
        for method, density in DENSITIES.items():
            if method in VARIANTS:
                continue
            row: Row = {"network": name, "dimension": n, "steps": steps, "method": method}
            row |= {"dense_difference": difference, "mean_abs_eigenvalue": scale}
            rows.append(row)
            if missing(method):
                row["error"] = "not installed"
                continue
            try:
                found = [
                    under(method, density, problem.copy(), steps, seed, False)
                    for seed in range(effort.seeds)
                ]
            except Exception as error:
                row["error"] = reason(error)
                continue
            row["products"] = found[0].products
            row["wasserstein"] = [
                float(wasserstein_distance(d.nodes, eigenvalues, d.weights)) / scale for d in found
            ]
            for end, exact in (("min", eigenvalues[0]), ("max", eigenvalues[-1])):
                values = [float(getattr(d.nodes, end)()) for d in found]
                row[f"error_{end}"] = [abs(x - exact) / abs(exact) for x in values]
    return rows


def circumstances() -> Row:
    revision, here = ["git", "rev-parse", "--short", "HEAD"], Path(__file__).parent
    commit = subprocess.run(revision, cwd=here, capture_output=True, text=True).stdout.strip()
    machine = f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} thread"
    listed = {"python": platform.python_version(), "torch": torch.__version__, **versions()}
    load = os.getloadavg()[0]
    return {"machine": machine, "versions": listed, "commit": commit, "load_before": load}


def measure(part: str, effort: Effort, small: bool) -> list[Row]:
    jobs: list[Callable[[], list[Row]]]
    if part in ("product", "channels-last"):
        cases = [case for case in CASES if case.channels_last == (part == "channels-last")]
        jobs = [partial(measure_product, case, effort, small) for case in cases]
    elif part in SPECTRA:
        large = part == "spectrum-large"
        effort = replace(effort, spectrum_rounds=1) if large else effort
        jobs = [partial(measure_spectrum, SPECTRA[part], effort, small, variants=not large)]
    elif part == "memory":
        methods = [GRADIENT, OURS] if small else [GRADIENT, *OUR_OPTIONS, *PRODUCTS]

        def one(case: Case, method: str) -> list[Row]:
            return [measure_memory(case, method, small)]

        jobs = [partial(one, case, m) for case in CASES[: 1 if small else 2] for m in methods]
    else:
        names = NETWORKS[-1:] if small else NETWORKS
        jobs = [partial(measure_accuracy, name, effort, small) for name in names]
    shown = track(jobs, part, console=Console(stderr=True), transient=True)
    return [row for job in shown for row in job()]


def main(
    small: Annotated[bool, typer.Option(help="A quick look on tiny networks.")] = False,
    part: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(PARTS)}.")] = None,
    output: Annotated[Path, typer.Option(help="JSON to write, a PNG beside it.")] = Path(
        "runs/hessian.json"
    ),
) -> None:
    """Measure the parts asked for (all but spectrum-large), and print each aim with its figure.

    Parts of an earlier run in the same file are kept, and drawn and judged together with new ones.
    """
    chosen = part or list(PARTS[:-1])
    for name in chosen:
        if name not in PARTS:
            raise typer.BadParameter(f"part must be one of {', '.join(PARTS)}, got {name!r}")
    torch.set_num_threads(1)
    log: Row = json.loads(output.read_text()) if output.exists() else {}
    if log.get("small") != small:
        log = {"small": small, "parts": {}}
    output.parent.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        start = time.perf_counter()
        about = circumstances()
        rows = measure(name, SMALL if small else FULL, small)
        about["took_seconds"] = time.perf_counter() - start
        log["parts"][name] = about | {"rows": rows}
        log["verdicts"] = verdicts(log["parts"], small)
        output.write_text(json.dumps(log, indent=1) + "\n")
    report(log, chosen)
    draw(log, output.with_suffix(".png"))


if __name__ == "__main__":
    typer.run(main)
