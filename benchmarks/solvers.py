"""What each linear solver takes, and how far off it is, against the size of the system.

On one thread, best: those of BLAS and of Aer hold each other up. What is compared takes turns; the
figures are medians, and medians of ratios, with the range beside them. Three questions:

1. Carleman systems of 2^4 to 2^13 unknowns: emulators, circuits and SciPy. All but the exact ones
   aim at a relative error near 1e-3: QSVT by its ε, HHL by 8 clock qubits at κ < 10, SciPy's
   iterations by a residual of ε/κ, with κ given. Every run begins afresh, so that a quantum
   solver's time includes measuring κ, ‖ℒ‖ and its own error.
2. HHL on symmetric systems: does the emulator take under 1 % of the circuit's time at 2^10?
   ``Circuit`` refuses that size; here its circuit is built and run nevertheless, in 12 GB.
3. Phases by our solver, pyqsp and qsppack: are we 50 times as fast as pyqsp at degree 541? All are
   for Im⟨0|U|0⟩ in one convention, so that one product of 2×2 matrices checks each.

    OMP_NUM_THREADS=1 python benchmarks/solvers.py [--quick] --output FILE
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import psutil
import scipy.sparse as sparse
import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.sparse.linalg import LinearOperator, gmres, lsqr, splu

from torch_qsgd.carleman.explicit import CarlemanSystem
from torch_qsgd.carleman.polynomial import PolynomialMap
from torch_qsgd.linear_system import LinearSystem, Vector
from torch_qsgd.solvers import HHL, QSVT, Circuit, Exact, Solver
from torch_qsgd.solvers.circuit_program import amplitudes
from torch_qsgd.solvers.hhl_circuit import hhl_program
from torch_qsgd.solvers.inverse_polynomial import inverse_polynomial
from torch_qsgd.solvers.phases import qsp_value, symmetric_phases

Row = dict[str, Any]
Phases = Callable[[Vector], Vector]
EPSILON, CLOCK_QUBITS = 1e-3, 8
#: Dimension n, block rows T + 1 and order N: just under 2^4, 2^5, ..., 2^13 unknowns.
SYSTEMS = [(1, 8, 2), (1, 8, 4), (2, 12, 2), (2, 14, 3), (3, 28, 2)]
SYSTEMS += [(4, 36, 2), (4, 30, 3), (5, 37, 3), (5, 74, 3), (6, 98, 3)]
#: Degrees 93, 541, 1153, 3785, 13817 and 36973.
POLYNOMIALS = [("absolute", kappa) for kappa in (10, 50, 100, 300, 1000)] + [("cks", 1000)]
REFERENCE, OURS, PYQSP = "SciPy splu", "torch_qsgd", "pyqsp"
#: Okabe and Ito's colours, with a marker.
LOOKS = {
    REFERENCE: ("#666666", "X"),
    "SciPy gmres": ("#E69F00", "v"),
    "SciPy lsqr": ("#009E73", "^"),
    "exact": ("#000000", "*"),
    "qsvt": ("#0072B2", "o"),
    "qsvt, matrix-free": ("#56B4E9", "D"),
    "hhl": ("#D55E00", "s"),
}
LOOKS |= {OURS: LOOKS["exact"], PYQSP: LOOKS["hhl"], "qsppack NLFT": LOOKS["qsvt"]}
LOOKS |= {"qsppack Newton": LOOKS["SciPy lsqr"], "qsppack FPI": LOOKS["SciPy gmres"]}


@dataclass(frozen=True)
class Effort:
    """How much to measure: turns, seconds for each solver of a case, and the largest cases."""

    rounds: int
    patience: float
    systems: int
    hhl_unknowns: int
    circuit_qubits: int
    longest_phases: float


FULL, QUICK = Effort(5, 12.0, 10, 2048, 10, 90.0), Effort(3, 2.0, 8, 1024, 7, 20.0)


def turns(steps: Mapping[str, Callable[[], Any]], effort: Effort) -> dict[str, Any]:
    """Seconds of each step, taken in turns, and what its first run returned.

    That run warms up, and counts only if it took a second. Who used up the patience sits out.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    found: dict[str, Any] = {}
    for turn in range(effort.rounds + 1):
        for name, step in steps.items():
            if sum(times[name]) < effort.patience:
                start = time.perf_counter()
                found.setdefault(name, step())
                seconds = time.perf_counter() - start
                if turn or seconds > 1:
                    times[name].append(seconds)
    return {name: (times[name], found[name]) for name in steps}


def ratios(these: list[float], those: list[float]) -> list[float]:
    return [a / b for a, b in zip(these, those, strict=False)]


def distance(found: Vector, exact: Vector) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@dataclass(frozen=True)
class Case:
    """A system, matrix-free with nothing computed yet, and as a matrix, with all known of it."""

    carleman: CarlemanSystem
    matrix: sparse.csr_array
    known: LinearSystem


#: Vector, queries of the block encoding (products, where classical), success probability.
Answer = tuple[Vector, int, float | None]


def carleman_case(n: int, rows: int, order: int) -> Case:
    """A contracting quadratic map, with eigenvalues of its linear part from 0.2 to 0.8."""
    generator = np.random.default_rng(n)
    basis = np.linalg.qr(generator.standard_normal((n, n)))[0]
    linear = (basis * np.linspace(0.8, 0.2, n)) @ basis.T
    quadratic, constant = generator.standard_normal((n, n**2)), generator.standard_normal(n)
    quadratic *= 0.1 / np.linalg.norm(quadratic, 2)
    step = PolynomialMap(0.1 * constant / np.linalg.norm(constant), linear, quadratic)
    form: Row = {"order": order, "closure": "standard", "basis": "monomial"}
    carleman = CarlemanSystem(step, rows - 1, start=np.full(n, 0.3 / np.sqrt(n)), **form)
    # A copy builds the matrix, and keeps it to itself.
    matrix = copy.copy(carleman).matrix
    return Case(carleman, matrix, LinearSystem(matrix, carleman.rhs))


def quantum(solver: Solver, case: Case, matrix_free: bool = False) -> Answer:
    system: LinearSystem = copy.copy(case.carleman)
    if not matrix_free:
        system = LinearSystem(case.matrix, case.known.rhs)
    solution = solver.solve(system)
    return solution.vector, solution.queries, solution.success_probability


def iterative(method: Callable[..., Any], options: Row, case: Case) -> Answer:
    """SciPy's iteration to a residual of ε/κ, which promises an error of ε."""
    products = []

    def product(matrix: Any, vector: Vector) -> Any:
        products.append(matrix)
        return matrix @ vector

    forth, back = partial(product, case.matrix), partial(product, case.matrix.T)
    operator = LinearOperator(case.matrix.shape, matvec=forth, rmatvec=back, dtype=np.float64)
    tolerance = {"btol" if method is lsqr else "rtol": EPSILON / case.known.condition_number}
    return method(operator, case.known.rhs, **tolerance, **options)[0], len(products), None


def solvers_for(case: Case, effort: Effort) -> dict[str, Callable[[], Answer]]:
    hhl, qsvt = Circuit("hhl", clock_qubits=CLOCK_QUBITS), Circuit("qsvt", epsilon=EPSILON)
    largest = {"hhl": effort.hhl_unknowns, "hhl circuit": hhl.largest, "qsvt circuit": qsvt.largest}
    solvers: dict[str, Callable[[Case], Answer]] = {
        REFERENCE: lambda case: (splu(case.matrix.tocsc()).solve(case.known.rhs), 0, None),
        "SciPy gmres": partial(iterative, gmres, {"restart": 50}),
        "SciPy lsqr": partial(iterative, lsqr, {"atol": 0.0, "conlim": 0.0}),
        "exact": partial(quantum, Exact(), matrix_free=True),
        "qsvt": partial(quantum, QSVT(EPSILON)),
        "qsvt, matrix-free": partial(quantum, QSVT(EPSILON), matrix_free=True),
        "qsvt circuit": partial(quantum, qsvt),
        "hhl": partial(quantum, HHL(CLOCK_QUBITS)),
        "hhl circuit": partial(quantum, hhl),
    }
    size = case.carleman.size
    return {n: partial(run, case) for n, run in solvers.items() if size <= largest.get(n, size)}


def compare_solvers(shape: tuple[int, int, int], effort: Effort) -> list[Row]:
    case, rows = carleman_case(*shape), []
    about = {"unknowns": case.known.size, "kappa": case.known.condition_number}
    about |= dict(zip(("dimension", "block_rows", "order"), shape, strict=True))
    measured = turns(solvers_for(case, effort), effort)
    for name, (seconds, (vector, queries, success)) in measured.items():
        row: Row = {"solver": name, **about, "seconds": seconds}
        row["ratios_to_splu"] = ratios(seconds, measured[REFERENCE][0])
        row["error"] = distance(vector, case.known.solution)
        rows.append(row | {"queries": queries, "success_probability": success})
    return rows


def compare_hhl(qubits: int, effort: Effort) -> list[Row]:
    """One symmetric system with eigenvalues from 1/10 to 1."""
    size, generator = 2**qubits, np.random.default_rng(qubits)
    basis = np.linalg.qr(generator.standard_normal((size, size)))[0]
    matrix = (basis * np.linspace(0.1, 1, size)) @ basis.T
    matrix, rhs = (matrix + matrix.T) / 2, generator.standard_normal(size)
    system, solver = LinearSystem(matrix, rhs), HHL(CLOCK_QUBITS)

    def circuit() -> Vector:
        program = hhl_program(LinearSystem(matrix, rhs), solver)
        return np.asarray(np.real(program.factor * amplitudes(program)[0]))

    both = {"hhl circuit": circuit, "hhl": lambda: solver.solve(LinearSystem(matrix, rhs)).vector}
    measured, rows = turns(both, effort), []
    (gates, by_gates), (emulated, vector) = measured.values()
    # Where the circuit has run once, each run of the emulator is compared with it.
    shares = ratios(emulated, gates * len(emulated) if len(gates) == 1 else gates)
    for name, (seconds, found) in measured.items():
        row: Row = {"solver": name, "unknowns": size, "seconds": seconds}
        row["percent_of_circuit"] = [100 * r for r in shares] if name == "hhl" else [100.0]
        row["error"] = distance(found, system.solution)
        rows.append(row | {"emulated_minus_circuit": distance(by_gates, vector)})
    return rows


def by_pyqsp(package: Any, coefficients: Vector) -> Vector:
    series = np.column_stack([np.zeros_like(coefficients), coefficients]).ravel()
    find = partial(package.QuantumSignalProcessingPhases, method="sym_qsp", chebyshev_basis=True)
    with contextlib.redirect_stdout(io.StringIO()):
        return np.asarray(find(series)[0])


def by_qsppack(package: Any, coefficients: Vector, method: str) -> Vector:
    options: Row = {"method": method, "targetPre": False, "print": 0}
    if method == "NLFT":  # its default of 256 points is too few; from 16 × degree on it is exact
        options["N"] = 2 ** (64 * coefficients.size).bit_length()
    return np.asarray(package.solve(coefficients, 1, options)[0])


def packages() -> dict[str, Phases]:
    """How each installed package finds phases."""
    ways: dict[str, Phases] = {OURS: partial(symmetric_phases, parity=1)}
    with contextlib.suppress(ImportError):
        ways[PYQSP] = partial(by_pyqsp, importlib.import_module("pyqsp.angle_sequence"))
    with contextlib.suppress(ImportError):
        package = importlib.import_module("qsppack.solver")
        for method in ("NLFT", "Newton", "FPI"):
            ways[f"qsppack {method}"] = partial(by_qsppack, package, method=method)
    return ways


def compare_phases(
    ways: dict[str, Phases], lower: list[Row], what: tuple[str, float], effort: Effort
) -> list[Row]:
    """Leaves out what the time at the degree below, times the square, predicts to take too long."""
    polynomial = inverse_polynomial(*what, EPSILON)
    coefficients = polynomial.coefficients / polynomial.normalization
    steps = {name: partial(way, coefficients) for name, way in ways.items()}
    for name in list(steps) if lower else []:
        before = [r for r in lower if r["package"] == name and r["degree"] == lower[-1]["degree"]]
        growth = (polynomial.degree / lower[-1]["degree"]) ** 2
        if not before or growth * median(before[0]["seconds"]) > effort.longest_phases:
            del steps[name]
    measured, rows = turns(steps, effort), []
    about = {"kind": what[0], "kappa": what[1]}
    x = np.cos(np.linspace(0, np.pi, 201))
    values = polynomial(x) / polynomial.normalization
    for name, (seconds, phases) in measured.items():
        row: Row = {"package": name, **about, "degree": polynomial.degree, "seconds": seconds}
        row["ratios_to_ours"] = ratios(seconds, measured[OURS][0])
        rows.append(row | {"misfit": float(abs(qsp_value(phases, x).imag - values).max())})
    return rows


def verdicts(log: Row) -> list[Row]:
    largest = log["circuits"][-1]
    percent, size = largest["percent_of_circuit"], largest["unknowns"]
    aim = f"emulated HHL in under 1 % of its circuit's time, at {size} unknowns (aim: at 1024)"
    found: list[Row] = [{"aim": aim, "held": median(percent) < 1, "figure": f"{cell(percent)} %"}]
    aim = "phases at degree 541 at least 50 times as fast as by pyqsp"
    rows = [r for r in log["phases"] if (r["package"], r["degree"]) == (PYQSP, 541)]
    if not rows:
        return [*found, {"aim": aim, "held": None, "figure": "not measured"}]
    times = rows[0]["ratios_to_ours"]
    return [*found, {"aim": aim, "held": median(times) >= 50, "figure": f"{cell(times)} times"}]


def cell(value: Any) -> str:
    if isinstance(value, list):
        return f"{cell(median(value))} ({cell(min(value))} to {cell(max(value))})"
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return "" if value is None else str(value)


def table(title: str, rows: list[Row], names: str) -> Table:
    """Rows with these entries; of lists the median, with least and most."""
    shown = Table(*names.replace("_", " ").split("|"), title=title, title_justify="left")
    for row in rows:
        shown.add_row(*(cell(row[name]) for name in names.split("|")))
    return shown


def draw(log: Row, path: Path) -> None:
    figure = Figure(figsize=(16, 6.2), layout="constrained")
    panels = figure.subplots(1, 3)
    gates = [row for row in log["circuits"] if row["solver"] == "hhl circuit"]
    sizes, aim = [r["unknowns"] for r in gates], [median(r["seconds"]) / 100 for r in gates]
    panels[1].plot(sizes, aim, color="#666666", linestyle="-.", label="1 % of the circuit")
    curves(panels[0], log["solvers"], "solver", "unknowns", "Carleman systems, κ = 7 to 9")
    curves(panels[1], log["circuits"], "solver", "unknowns", "HHL, symmetric systems, κ = 10")
    curves(panels[2], log["phases"], "package", "degree", "Phases of polynomials near 1/x")
    figure.suptitle(log["title"], fontsize=9)
    figure.savefig(path, dpi=130)


def curves(axes: Axes, rows: list[Row], key: str, size: str, title: str) -> None:
    """Medians, with bars from least to most."""
    for name in dict.fromkeys(row[key] for row in rows):
        mine = [row for row in rows if row[key] == name]
        middle = np.array([median(row["seconds"]) for row in mine])
        bars = np.abs([[f(row["seconds"]) for row in mine] for f in (min, max)] - middle)
        colour, marker = LOOKS[name.removesuffix(" circuit")]
        hollow, dotted = name.endswith("circuit"), name.startswith("SciPy")
        look: Row = {"color": colour, "marker": marker, "label": name, "linewidth": 1.3}
        look["linestyle"] = "--" if hollow else ":" if dotted else "-"
        look["markerfacecolor"] = "white" if hollow else colour
        axes.errorbar([row[size] for row in mine], middle, bars, capsize=2, **look)
    axes.set(yscale="log", xlabel=size, ylabel="seconds: median, least and most", title=title)
    axes.set_xscale("log", base=2 if size == "unknowns" else 10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))


def circumstances() -> Row:
    versions = {"python": platform.python_version()}
    for name in ("numpy", "scipy", "torch", "qiskit", "qiskit-aer", PYQSP, "qsppack"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    revision, here = ["git", "rev-parse", "--short", "HEAD"], Path(__file__).parent
    commit = subprocess.run(revision, cwd=here, capture_output=True, text=True).stdout.strip()
    machine = f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    machine += f", load {os.getloadavg()[0]:.1f} before"
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return {"title": f"{machine}; {listed}", "versions": versions, "commit": commit}


def measure(effort: Effort) -> Row:
    log: Row = {"solvers": [], "phases": [], "circuits": []}
    # The circuit's dense gates, their inverses and Aer's copies take 12 GB at 10 qubits.
    memory = psutil.virtual_memory().available / 2**30
    sizes = [q for q in range(3, effort.circuit_qubits + 1) if memory > 13 * 4.0 ** (q - 10)]
    jobs: list[tuple[str, Any]] = [("solvers", s) for s in SYSTEMS[: effort.systems]]
    jobs += [("phases", p) for p in POLYNOMIALS] + [("circuits", q) for q in sizes]
    phases = partial(compare_phases, packages(), log["phases"])
    compare: Row = {"solvers": compare_solvers, "phases": phases, "circuits": compare_hhl}
    for kind, what in track(jobs, "timing", console=Console(stderr=True), transient=True):
        log[kind] += compare[kind](what, effort)
    return log


def report(log: Row) -> None:
    console = Console()
    names = "unknowns|kappa|solver|seconds|ratios_to_splu|error|queries|success_probability"
    console.print(table("Carleman systems", log["solvers"], names))
    names = "unknowns|solver|seconds|percent_of_circuit|error|emulated_minus_circuit"
    console.print(table("HHL, symmetric systems", log["circuits"], names))
    names = "degree|package|seconds|ratios_to_ours|misfit"
    phases = table("phases of polynomials near 1/x", log["phases"], names)
    for package in sorted({PYQSP, "qsppack"} - set(log["versions"])):
        phases.add_row("", f"{package} is not installed: pip install {package}")
    console.print(phases)
    for row in log["verdicts"]:
        held = {True: "held", False: "missed", None: "open"}[row["held"]]
        console.print(f"{held}: {row['aim']}: {row['figure']}", highlight=False, soft_wrap=True)
    console.print(f"{log['title']}; {log['took_seconds']:.0f} s", highlight=False, soft_wrap=True)


def main(
    quick: Annotated[bool, typer.Option(help="Smaller systems, fewer turns.")] = False,
    output: Annotated[Path | None, typer.Option(help="JSON to write, a PNG beside it.")] = None,
) -> None:
    """Print what linear solvers and phase finding take, and whether two aims are held."""
    start = time.perf_counter()
    log = circumstances() | {"quick": quick, "epsilon": EPSILON, "clock_qubits": CLOCK_QUBITS}
    log |= measure(QUICK if quick else FULL)
    log["verdicts"] = verdicts(log)
    log |= {"took_seconds": time.perf_counter() - start, "load_after": os.getloadavg()[0]}
    report(log)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(log, indent=1) + "\n")
        draw(log, output.with_suffix(".png"))


if __name__ == "__main__":
    typer.run(main)
