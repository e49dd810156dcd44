"""Whom to trust: the error of a Hessian-vector product, for each layer, mode and library.

Each library multiplies the same vector, in float64, and is compared with a network of primitives
(``layer_cases.py``), as ‖found − reference‖ / ‖reference‖. Each is used as its documentation says
and at its defaults; one that takes a single loss has no answer for several batches. A second table
says what a product leaves behind in the model and in memory.

    python benchmarks/correctness.py [--output FILE]

The libraries compared with are optional; what does not install or run is listed with its reason.
PyHessian switches a model to eval mode and gives that mode's Hessian; its release on PyPI
multiplies, but its density() fails on current PyTorch.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import importlib
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from layer_cases import CASES, Attention, Case, randn
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_qsgd.hessian.operator import HessianOperator

Row = dict[str, Any]
#: Model, case, and vector by parameter, to the product by parameter.
Product = Callable[[nn.Module, Case, list[Tensor]], Sequence[Tensor]]
#: An error up to the first is rounding; one beyond the second is wrong.
EXACT, WRONG = 1e-10, 1e-6
MODES, ATTENDING = ("train", "eval"), (Attention, nn.TransformerEncoderLayer)
PACKAGES = ("curvlinops-for-pytorch", "hessian-eigenthings", "PyHessian", "backpack-for-pytorch")
#: How often to construct and drop, on how many rows of data, and the MB kept each time beyond
#: which memory leaks; one graph takes about 3 MB.
CONSTRUCTIONS, ROWS, LEAK = 20, 20_000, 0.5


class SingleLossError(Exception):
    """The library takes one loss; several batches are the user's to weight."""


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def split(vector: Tensor, model: nn.Module) -> list[Tensor]:
    parameters = list(model.parameters())
    parts = vector.split([p.numel() for p in parameters])
    return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]


def direction(model: nn.Module) -> list[Tensor]:
    return split(randn(sum(p.numel() for p in model.parameters()), seed=1), model)


def only_batch(case: Case) -> tuple[Tensor, Tensor]:
    if len(case.batches) > 1:
        raise SingleLossError
    return case.batches[0]


def by_torch_qsgd(kind: str) -> Product:
    def product(model: nn.Module, case: Case, v: list[Tensor]) -> list[Tensor]:
        with HessianOperator(model, case.loss, list(case.batches), kind=kind) as operator:
            return [operator @ flat(v)]

    return product


def by_autograd(model: nn.Module, case: Case, v: list[Tensor]) -> Sequence[Tensor]:
    (x, y), parameters = only_batch(case), list(model.parameters())
    gradient = torch.autograd.grad(case.loss(model(x), y), parameters, create_graph=True)
    return torch.autograd.grad(gradient, parameters, v)


def by_function(rule: Callable[[Any, Any, Any], Any]) -> Product:
    """A way of ``torch.func`` on the loss as a function of the parameters."""

    def product(model: nn.Module, case: Case, v: list[Tensor]) -> list[Tensor]:
        x, y = only_batch(case)
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        buffers = dict(model.named_buffers())

        def loss(values: dict[str, Tensor]) -> Tensor:
            outputs = torch.func.functional_call(model, (values, buffers), (x,))
            found: Tensor = case.loss(outputs, y)
            return found

        return list(rule(loss, parameters, dict(zip(parameters, v, strict=True))).values())

    return product


def forward_over_reverse(loss: Any, p: Any, v: Any) -> Any:
    return torch.func.jvp(torch.func.grad(loss), (p,), (v,))[1]


def reverse_over_forward(loss: Any, p: Any, v: Any) -> Any:
    return torch.func.grad(lambda q: torch.func.jvp(loss, (q,), (v,))[1])(p)


def whole_hessian(loss: Any, p: Any, v: Any) -> Any:
    blocks = torch.func.hessian(loss)(p)
    return {i: sum(torch.tensordot(blocks[i][j], v[j], v[j].dim()) for j in p) for i in p}


def by_curvlinops(name: str) -> Product:
    def product(model: nn.Module, case: Case, v: list[Tensor]) -> list[Tensor]:
        operator = getattr(importlib.import_module("curvlinops"), name)
        parameters = list(model.parameters())
        return [operator(model, case.loss, parameters, list(case.batches)) @ flat(v)]

    return product


def by_hessian_eigenthings(kind: str) -> Product:
    def product(model: nn.Module, case: Case, v: list[Tensor]) -> list[Tensor]:
        operators = importlib.import_module("hessian_eigenthings.operators")
        losses = importlib.import_module("hessian_eigenthings.loss_fns")
        batches = list(case.batches)
        if kind == "ggn":
            parts = losses.supervised_forward, losses.supervised_loss_of_output(case.loss)
            return [operators.GGNOperator(model, batches, *parts) @ flat(v)]
        loss = losses.supervised_loss(case.loss)
        return [operators.HessianOperator(model, batches, loss) @ flat(v)]

    return product


def by_pyhessian(model: nn.Module, case: Case, v: list[Tensor]) -> Any:
    package, utils = map(importlib.import_module, ("pyhessian", "pyhessian.utils"))
    if len(case.batches) > 1:
        whole = package.hessian(model, case.loss, dataloader=case.batches, cuda=False)
        return whole.dataloader_hv_product(v)[1]
    whole = package.hessian(model, case.loss, data=case.batches[0], cuda=False)
    return utils.hessian_vector_product(whole.gradsH, whole.params, v)


def by_backpack(kind: str) -> Product:
    def product(model: nn.Module, case: Case, v: list[Tensor]) -> Any:
        part = importlib.import_module(
            f"backpack.hessianfree.{'ggnvp' if kind == 'ggn' else 'hvp'}"
        )
        x, y = only_batch(case)
        outputs = model(x)
        loss = case.loss(outputs, y)
        if kind == "ggn":
            return part.ggn_vector_product(loss, outputs, model, v)
        return part.hessian_vector_product(loss, list(model.parameters()), v)

    return product


#: Of each kind, by library.
LIBRARIES: dict[str, dict[str, Product]] = {
    "hessian": {
        "torch_qsgd": by_torch_qsgd("hessian"),
        "autograd: reverse over reverse": by_autograd,
        "torch.func: forward over reverse": by_function(forward_over_reverse),
        "torch.func: reverse over forward": by_function(reverse_over_forward),
        "torch.func: hessian": by_function(whole_hessian),
        "curvlinops": by_curvlinops("HessianLinearOperator"),
        "hessian-eigenthings": by_hessian_eigenthings("hessian"),
        "PyHessian": by_pyhessian,
        "BackPACK": by_backpack("hessian"),
    },
    "ggn": {
        "torch_qsgd": by_torch_qsgd("ggn"),
        "curvlinops": by_curvlinops("GGNLinearOperator"),
        "hessian-eigenthings": by_hessian_eigenthings("ggn"),
        "BackPACK": by_backpack("ggn"),
    },
}


def reference(case: Case, model: nn.Module, v: list[Tensor], kind: str) -> Tensor:
    """H v, or Jᵀ H_L J v with J row by row, by reverse mode on primitives."""
    outputs, parameters = case.reference_outputs(model), list(model.parameters())
    if kind == "hessian":
        loss = case.reference_loss(outputs)
        gradient = torch.autograd.grad(loss, parameters, create_graph=True)
        return flat(torch.autograd.grad(gradient, parameters, v))
    values = torch.cat([y.flatten() for y in outputs])
    rows = [torch.autograd.grad(value, parameters, retain_graph=True) for value in values]
    jacobian = torch.stack([flat(row) for row in rows])
    leaves = [y.detach().requires_grad_() for y in outputs]
    slopes = torch.autograd.grad(case.reference_loss(leaves), leaves, create_graph=True)
    moved = (jacobian @ flat(v)).split([y.numel() for y in outputs])
    along = [part.view(y.shape) for part, y in zip(moved, outputs, strict=True)]
    return jacobian.T @ flat(torch.autograd.grad(slopes, leaves, along))


def attempt(product: Product, case: Case, training: bool, kind: str) -> Row:
    """The error of one product, or why there is none."""
    model = case.model(training)
    v = direction(model)
    wanted = reference(case, model, v, kind)
    try:
        found = flat(product(model, case, v))
    except SingleLossError:
        return {"error": None, "message": None}
    except Exception as error:
        message = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        return {"error": None, "message": message}
    return {"error": float((found - wanted).norm() / wanted.norm()), "message": None}


def compare(name: str, kind: str) -> list[Row]:
    """A case in both modes; with attention, also with the backend chosen that has derivatives."""
    case, rows = CASES[name], []
    ways: dict[str, Any] = {name: contextlib.nullcontext}
    if any(isinstance(m, ATTENDING) for m in case.model(False).modules()):
        ways[f"{name}, MATH"] = partial(sdpa_kernel, SDPBackend.MATH)
    for label, way in ways.items():
        with way():
            for mode, (library, product) in itertools.product(MODES, LIBRARIES[kind].items()):
                about = {"case": label, "mode": mode, "kind": kind, "library": library}
                rows.append(about | attempt(product, case, mode == "train", kind))
    return rows


def resident_mb() -> float:
    """Of this process, once what is unreachable has been freed and handed back."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # where the C library is not glibc
        ctypes.CDLL(None).malloc_trim(0)
    return float(psutil.Process().memory_info().rss) / 2**20


def left_behind(product: Product) -> Row:
    """What a product changes: running statistics where there are some, the rest on a plain network.

    The memory is what is kept of a construction with one product, dropped again.
    """
    case, found = CASES["batch norm 1d"], {}
    model = case.model(True)
    before = copy.deepcopy(model.state_dict())
    try:
        product(model, case, direction(model))
        same = [torch.equal(before[k], now) for k, now in model.state_dict().items()]
        found["running statistics"] = "as before" if all(same) else "changed"
    except Exception:
        found["running statistics"] = "raises"
    data = randn(ROWS, 4, seed=1), torch.arange(ROWS) % 3
    case = Case(CASES["linear, tanh"].layers, [data], nn.CrossEntropyLoss())
    model, state = case.model(True), torch.get_rng_state()
    v = direction(model)
    product(model, case, v)
    changed = {
        "random state": not torch.equal(state, torch.get_rng_state()),
        "training flag": any(not m.training for m in model.modules()),
        ".grad": any(p.grad is not None for p in model.parameters()),
    }
    found |= {what: "changed" if it else "as before" for what, it in changed.items()}
    start = resident_mb()
    for _ in range(CONSTRUCTIONS):
        product(model, case, v)
    return {**found, "MB kept": max(0.0, resident_mb() - start) / CONSTRUCTIONS}


def verdict(row: Row) -> str:
    if row["error"] is None:
        missing = str(row["message"]).startswith(("ModuleNotFoundError", "ImportError"))
        return "absent" if missing else "raises" if row["message"] else "n/a"
    return "exact" if row["error"] <= EXACT else "wrong" if row["error"] > WRONG else "near"


def cell(rows: list[Row], notes: dict[str, str]) -> Text:
    """The worst of these, with a mark that needs no colour."""
    worst = max(rows, key=lambda row: row["error"] or 0.0)
    if (what := verdict(worst)) in ("raises", "absent"):
        letter = notes.setdefault(worst["message"], chr(ord("a") + len(notes)))
        return Text(f"{what} {letter}", "yellow")
    if what == "n/a":
        return Text(what, "dim")
    error = worst["error"]
    shown = f"{error:.0e}" if error < 1e-3 else f"{100 * error:.{1 if error < 0.1 else 0}f} %"
    mark, style = {"exact": "✓ green", "near": "≈ yellow", "wrong": "✗ red"}[what].split()
    return Text(f"{mark} {shown}", style)


def errors_table(title: str, rows: list[Row], notes: dict[str, str]) -> Table:
    """One line a case, or one a mode where a library differs between them."""
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    table = Table(title=title, title_justify="left")
    table.add_column("layer", no_wrap=True)
    table.add_column("mode")
    for library in libraries:
        table.add_column(library, no_wrap=":" not in library)
    for name in dict.fromkeys(row["case"] for row in rows):
        by_mode = {m: [r for r in rows if (r["case"], r["mode"]) == (name, m)] for m in MODES}
        verdicts = [[(verdict(r), r["message"]) for r in of_mode] for of_mode in by_mode.values()]
        if verdicts[0] == verdicts[1]:
            by_mode = {"both": [row for of_mode in by_mode.values() for row in of_mode]}
        for mode, of_mode in by_mode.items():
            cells = [cell([r for r in of_mode if r["library"] == k], notes) for k in libraries]
            table.add_row(name, mode, *cells)
    totals = {k: [verdict(r) for r in rows if r["library"] == k] for k in libraries}
    table.add_section()
    for word in ("exact", "wrong", "raises"):
        counts = [str(totals[k].count(word)) for k in libraries]
        table.add_row(f"{word}, of {len(rows) // len(libraries)}", "", *counts)
    return table


def left_table(rows: list[Row]) -> Table:
    title = f"What a product changes, and memory it keeps (mean of {CONSTRUCTIONS})"
    table = Table(*rows[0], title=title, title_justify="left")
    marks = {"as before": "✓ as before", "changed": "✗ changed"}
    for row in rows:
        kept = row["MB kept"]
        cells = [marks.get(v, v) for v in row.values() if isinstance(v, str)]
        table.add_row(*cells, f"{'✓' if kept <= LEAK else '✗'} {kept:.1f}")
    return table


def nested(rows: list[Row]) -> Row:
    """An error, or the reason for none, by kind, case, mode and library."""
    found: Row = {}
    for row in rows:
        of_case = found.setdefault(row["kind"], {}).setdefault(row["case"], {})
        of_case.setdefault(row["mode"], {})[row["library"]] = row["message"] or row["error"]
    return found


def circumstances() -> Row:
    versions = {"python": platform.python_version()}
    for name in ("torch", "torch_qsgd", *PACKAGES):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    revision, here = ["git", "rev-parse", "--short", "HEAD"], Path(__file__).parent
    commit = subprocess.run(revision, cwd=here, capture_output=True, text=True).stdout.strip()
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    machine = f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return {"title": f"{machine}; {listed}", "versions": versions, "commit": commit}


def main(
    only: Annotated[str, typer.Option(help="Cases whose name contains this.")] = "",
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print errors of products by layer, mode and library, and what a product leaves behind."""
    start, log = time.perf_counter(), circumstances()
    warnings.simplefilter("ignore")  # of peers, about PyTorch's version
    names = [name for name in CASES if only in name]
    jobs = list(itertools.product(LIBRARIES, names))
    log["errors"] = []
    for kind, name in track(jobs, "products", console=Console(stderr=True), transient=True):
        log["errors"] += compare(name, kind)
    log["left_behind"] = []
    for library, product in LIBRARIES["hessian"].items():
        with contextlib.suppress(ImportError):
            log["left_behind"].append({"library": library, **left_behind(product)})
    log["took_seconds"] = time.perf_counter() - start
    report(log)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        log["errors"] = nested(log["errors"])
        output.write_text(json.dumps(log, indent=1, ensure_ascii=False) + "\n")


def report(log: Row) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=190)  # as wide as the tables
    notes: dict[str, str] = {}
    for kind, what in (("hessian", "Hessian"), ("ggn", "Gauss–Newton matrix")):
        rows = [row for row in log["errors"] if row["kind"] == kind]
        console.print(errors_table(f"{what} times a vector: relative error", rows, notes))
    for message, letter in notes.items():
        console.print(f"{letter}: {message}", highlight=False, markup=False, soft_wrap=True)
    console.print(left_table(log["left_behind"]))
    console.print(f"{log['title']}; {log['took_seconds']:.0f} s", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
