"""What ``hessian.py`` found: tables, aims beside figures, and a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from hessian_networks import CASES, SPECTRA
from hessian_peers import (
    BACKPACK,
    BLOCKED,
    CHECKED,
    CURVLINOPS,
    CURVLINOPS_BOUNDS,
    EIGENTHINGS,
    FORWARD,
    GRADIENT,
    KEEPING,
    KEPT,
    OURS,
    PYHESSIAN,
    REBUILT,
    UNKEPT,
)
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]
Cell = Callable[[Row], str]
#: Okabe and Ito's colours, with a marker.
LOOKS = {
    OURS: ("#000000", "*"),
    CHECKED: ("#000000", "."),
    UNKEPT: ("#000000", "2"),
    KEPT: ("#0072B2", "o"),
    BLOCKED: ("#0072B2", "|"),
    REBUILT: ("#56B4E9", "D"),
    FORWARD: ("#009E73", "^"),
    EIGENTHINGS: ("#D55E00", "s"),
    CURVLINOPS: ("#CC79A7", "v"),
    CURVLINOPS_BOUNDS: ("#CC79A7", "1"),
    PYHESSIAN: ("#E69F00", "X"),
    BACKPACK: ("#666666", "P"),
}


def verdicts(parts: Row, small: bool) -> list[Row]:
    """Each aim, the figure beside it, and whether it is held; nothing where nothing was run.

    On tiny networks the aims, which are for real ones, stay open.
    """
    found: list[Row] = []
    products = [r for name in ("product", "channels-last") for r in rows_of(parts, name)]

    def say(part: str, aim: str, figure: str, held: bool | None) -> None:
        held = None if small else held
        found.append({"part": part, "aim": aim, "figure": figure, "held": held})

    def value(rows: list[Row], method: str, key: str) -> float | None:
        values = [row[key] for row in rows if row["method"] == method and key in row]
        return None if not values else float(np.median(values[0]))

    for case in CASES:
        rows = [row for row in products if row["case"] == case.name]
        ours = value(rows, OURS, "ratios")
        if rows and case.aim is not None:
            aim = f"{case.name}: at most {case.aim} gradients"
            say("product", aim, number(ours), None if ours is None else ours <= case.aim)
    for part in SPECTRA:
        rows = rows_of(parts, part)
        for method, least in ((EIGENTHINGS, 2.0), (CURVLINOPS, 2.0), (KEPT, 1.4)):
            if rows:
                factor = value(rows, method, "times_ours")
                aim = f"at least {least} times as fast as {method}"
                say(part, aim, number(factor), None if factor is None else factor >= least)
    for name, rows in grouped(rows_of(parts, "memory"), "case").items():
        peaks = {row["method"]: row["peak_mb"] for row in rows if "peak_mb" in row}
        all_others = [m for m in peaks if m != GRADIENT and not m.startswith(OURS)]
        keeping = [method for method in all_others if method in KEEPING]
        for method, kind, others in (
            (OURS, "other", all_others),
            (OURS, "other that keeps its graph", keeping),
            (UNKEPT, "other", all_others),
        ):
            if method in peaks and others:
                leanest = min(others, key=lambda m: peaks[m])
                aim = f"{name}: {method} with no more memory than the leanest {kind}"
                figure = f"{peaks[method]:.0f} MB against {peaks[leanest]:.0f} ({leanest})"
                say("memory", aim, figure, peaks[method] <= peaks[leanest])
    for key, rows in grouped(rows_of(parts, "accuracy"), "network", "steps").items():
        means = {r["method"]: np.mean(r["wasserstein"]) for r in rows if "wasserstein" in r}
        rivals = {m: float(x) for m, x in means.items() if m != OURS}
        if OURS in means and rivals:
            best = min(rivals, key=lambda m: rivals[m])
            share = float(means[OURS]) / rivals[best]
            aim = f"{key}: Wasserstein-1 at most half the best other's"
            say("accuracy", aim, f"{share:.2f} of that of {best}", share <= 0.5)
    return found


def rows_of(parts: Row, name: str) -> list[Row]:
    rows: list[Row] = parts.get(name, {}).get("rows", [])
    return rows


def number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"


def grouped(rows: list[Row], *keys: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(", ".join(str(row[key]) for key in keys), []).append(row)
    return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, with quartiles."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else ""
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def mean_and_deviation(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2g} ± {np.std(values, ddof=1):.1g}"


def table_of(rows: list[Row], title: str, group: str, columns: dict[str, Cell]) -> Table:
    """A section for each group, a line for each method; what failed says why."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(group, min_width=2 + max(len(row["method"]) for row in rows))
    for name in columns:
        table.add_column(name, justify="right")
    failed: dict[str, None] = {}
    for name, members in grouped(rows, *group.split(", ")).items():
        table.add_section()
        table.add_row(name, style="bold")
        for row in members:
            if "error" not in row:
                cells = [cell(row) for cell in columns.values()]
            elif row["error"] == "not installed":
                cells = [row["error"]]
            else:
                cells = ["failed"]
                failed[f"{row['method']} failed: {row['error']}"] = None
            table.add_row("  " + row["method"], *cells)
    table.caption, table.caption_justify = "\n".join(failed), "left"
    return table


def product_table(rows: list[Row]) -> Table:
    columns: dict[str, Cell] = {
        "gradients": lambda row: spread(row["ratios"]),
        "in same layout": lambda row: spread(row["ratios_same_layout"]),
        "off plain by": lambda row: f"{row['difference']:.0e}" if "difference" in row else "",
    }
    if not any(row.get("ratios_same_layout") for row in rows):
        del columns["in same layout"]
    return table_of(rows, "One Hessian-vector product, CPU time", "case", columns)


def spectrum_table(rows: list[Row]) -> Table:
    columns: dict[str, Cell] = {
        "CPU seconds": lambda row: spread(row["seconds"], 1),
        "times ours": lambda row: spread(row.get("times_ours", [])),
        "products": lambda row: str(row["products"]),
        "λ_min": lambda row: f"{row['lambda_min']:.5g}",
        "λ_max": lambda row: f"{row['lambda_max']:.5g}",
    }
    return table_of(rows, f"A {rows[0]['steps']}-step spectrum, end to end", "network", columns)


def memory_table(rows: list[Row]) -> Table:
    columns: dict[str, Cell] = {"peak MB": lambda row: f"{row['peak_mb']:.0f}"}
    return table_of(rows, "Memory of one product with all that leads to it", "case", columns)


def accuracy_table(rows: list[Row]) -> Table:
    title = (
        "Error against a dense spectrum, mean ± standard deviation over seeds\n"
        "(Wasserstein-1 in mean |λ|; extreme eigenvalues relative)"
    )
    columns: dict[str, Cell] = {
        "Wasserstein-1": lambda row: mean_and_deviation(row["wasserstein"]),
        "λ_min": lambda row: mean_and_deviation(row["error_min"]),
        "λ_max": lambda row: mean_and_deviation(row["error_max"]),
        "products": lambda row: str(row["products"]),
    }
    return table_of(rows, title, "network, steps", columns)


TABLES = {
    "product": product_table,
    "channels-last": product_table,
    "memory": memory_table,
    "accuracy": accuracy_table,
}


def report(log: Row, chosen: Sequence[str]) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    for name in chosen:
        part = log["parts"][name]
        console.print(TABLES.get(name, spectrum_table)(part["rows"]))
        listed = ", ".join(f"{package} {found}" for package, found in part["versions"].items())
        about = f"{part['machine']}, load {part['load_before']:.1f} before; {listed}"
        about += f"; {part['took_seconds']:.0f} s"
        console.print(about, highlight=False, soft_wrap=True)
    if log["small"]:
        console.print("Tiny networks under the names of those they stand for: no aim is judged.")
    aims = Table("part", "aim", "figure", "", title="Aims", title_justify="left")
    for row in log["verdicts"]:
        held = {True: "held", False: "MISSED", None: "open"}[row["held"]]
        aims.add_row(row["part"], row["aim"], row["figure"], held)
    console.print(aims)


def dots(axes: Axes, rows: list[Row], key: str, value: str, middle: Any, bars: Any) -> None:
    """One line for each group, one mark for each method, its spread as a bar."""
    groups = list(dict.fromkeys(row[key] for row in rows))
    methods = [m for m in LOOKS if any(row["method"] == m and value in row for row in rows)]
    for i, method in enumerate(methods):
        colour, marker = LOOKS[method]
        for row in rows:
            if row["method"] != method or value not in row:
                continue
            values = np.atleast_1d(row[value])
            centre = middle(values)
            ends = np.abs(np.array(bars(values)) - centre)[:, None]
            # Methods side by side, so that none hides another.
            place = groups.index(row[key]) + 0.6 * ((i + 0.5) / len(methods) - 0.5)
            size = 11 if marker == "*" else 7
            look: Row = {"color": colour, "marker": marker, "markersize": size, "capsize": 2}
            axes.errorbar(centre, place, xerr=ends, linestyle="none", **look)
    axes.set_yticks(range(len(groups)), groups)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    for edge in range(1, len(groups)):
        axes.axhline(edge - 0.5, color="#CCCCCC", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)


def quartiles(values: Any) -> Any:
    return np.quantile(values, [0.25, 0.75])


def deviations(values: Any) -> Any:
    """One standard deviation either way; none below zero, where the axis is logarithmic."""
    error = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return max(np.mean(values) - error, values.min()), np.mean(values) + error


def draw(log: Row, path: Path) -> None:
    """The four parts, each where it has been run."""
    figure = Figure(figsize=(15, 10), layout="constrained")
    FigureCanvasAgg(figure)
    product, spectrum, memory, accuracy = figure.subplots(2, 2).flat
    parts = {name: part["rows"] for name, part in log["parts"].items()}
    measured = [*parts.get("product", []), *parts.get("channels-last", [])]
    measured = [row for row in measured if row["method"] != GRADIENT]
    dots(product, measured, "case", "ratios", median, quartiles)
    cases = list(dict.fromkeys(row["case"] for row in measured))
    for i, case in enumerate(cases):
        aims = [row["aim"] for row in measured if row["case"] == case and row["aim"]]
        if aims:
            label = "aim" if i == 0 else None
            product.vlines(aims[0], i - 0.42, i + 0.42, "#000000", linestyles=":", label=label)
    product.set(title="One Hessian-vector product", xlabel="gradients in NCHW, CPU time")
    rows = [row for name in SPECTRA for row in parts.get(name, [])]
    dots(spectrum, rows, "network", "seconds", median, lambda v: (v.min(), v.max()))
    steps = rows[0]["steps"] if rows else 100
    spectrum.set(title=f"A {steps}-step spectrum, from the network to nodes and weights")
    spectrum.set(xlabel="CPU seconds, one thread")
    rows = [row for row in parts.get("memory", []) if row["method"] != GRADIENT]
    dots(memory, rows, "case", "peak_mb", median, quartiles)
    memory.set(title="Peak memory of one product with all that leads to it", xlabel="MB")
    rows = [
        {**row, "network": f"{row['network']}\n{row['steps']} products"}
        for row in parts.get("accuracy", [])
    ]
    dots(accuracy, rows, "network", "wasserstein", np.mean, deviations)
    accuracy.set(title="Error of the spectrum at equal products")
    accuracy.set_xlabel("Wasserstein-1 distance to the dense spectrum, in mean |λ|")
    for axes in (spectrum, accuracy):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    for axes in (product, memory):
        axes.set_xlim(left=0, right=1.03 * axes.get_xlim()[1])
    shown = {row["method"] for found in parts.values() for row in found if "error" not in row}
    for method in [m for m in LOOKS if m in shown]:
        colour, marker = LOOKS[method]
        size = 11 if marker == "*" else 7
        look: Row = {"color": colour, "marker": marker, "markersize": size}
        memory.plot([], [], linestyle="none", label=method, **look)
    figure.legend(loc="outside lower center", ncols=5)
    machine = next(iter(log["parts"].values()))["machine"]
    figure.suptitle(f"Hessians: cost and accuracy; {machine}", fontsize=10)
    figure.savefig(path, dpi=130)
