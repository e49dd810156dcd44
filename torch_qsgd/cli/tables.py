"""Spectra as tables that fit 80 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from torch_qsgd.hessian import Spectrum
from torch_qsgd.hessian.masses import counted, percent, percent_range

KINDS = {"hessian": "Hessian", "ggn": "Gauss–Newton matrix"}

#: A bound above this share of the eigenvalue's size is worth a note.
_WIDE = 0.01
#: Fewer converged eigenvalues than this are.
_FEW = 2

#: Steps t at which the error proxy is shown, beside its minimum.
_TIMES = (1, 10, 100, 1000)


def _number(value: float) -> str:
    return f"{value:.5g}"


def _settled(spectrum: Spectrum) -> bool:
    """Whether the trace is exact, but for rounding."""
    return bool(spectrum.exact.all()) or spectrum.trace_error <= spectrum.resolution


def _trace_error(spectrum: Spectrum) -> str:
    return "exact" if _settled(spectrum) else _error(spectrum.trace_error)


def _bound_note(value: float, bound: float, resolution: float) -> str:
    wide = bound > max(_WIDE * abs(value), 2 * resolution)  # no step helps against rounding
    return "residual bound; wide: raise --steps" if wide else "residual bound"


def _converged_note(spectrum: Spectrum) -> str:
    if spectrum.exact.all():
        return "all eigenvalues, found one by one"
    few = int(spectrum.exact.sum()) < _FEW
    return "found one by one; few: raise --steps" if few else "eigenvalues found one by one"


def negative_mass(spectrum: Spectrum) -> dict[str, float]:
    """The share of negative eigenvalues and its limits, as plain numbers."""
    low, high = spectrum.negative_mass_range
    return {"estimate": spectrum.negative_mass, "low": low, "high": high}


def _error(value: float) -> str:
    return "unknown" if math.isinf(value) else f"{value:.1e}"


def spectrum_table(spectrum: Spectrum, samples: int) -> Table:
    """One spectrum: a row a quantity, with its error and what the error is."""
    table = Table(title=f"Spectrum of the {KINDS[spectrum.kind]}", title_justify="left")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_column("±", justify="right")
    table.add_column("note")
    rows = [
        ("coordinates n", f"{spectrum.dimension:,}", "", "active weights"),
        ("samples", f"{samples:,}", "", "training images"),
        (
            "λ_max",
            _number(spectrum.lambda_max),
            _error(spectrum.lambda_max_bound),
            _bound_note(spectrum.lambda_max, spectrum.lambda_max_bound, spectrum.resolution),
        ),
        (
            "λ_min",
            _number(spectrum.lambda_min),
            _error(spectrum.lambda_min_bound),
            _bound_note(spectrum.lambda_min, spectrum.lambda_min_bound, spectrum.resolution),
        ),
        (
            "trace",
            _number(spectrum.trace),
            _trace_error(spectrum),
            "but for rounding" if _settled(spectrum) else "standard error",
        ),
        (
            "negative mass",
            f"{percent(spectrum.negative_mass)} %",
            "",
            f"{percent_range(spectrum.negative_mass_range)}; share of λ < "
            f"{-spectrum.resolution:.0e}",
        ),
        ("converged", f"{spectrum.exact.sum():,}", "", _converged_note(spectrum)),
        ("effective rank", f"{spectrum.effective_rank:,.1f}", "", "exponential of entropy"),
        ("products", f"{spectrum.products:,}", "", _runs(spectrum)),
        ("seconds", f"{spectrum.seconds:.1f}", "", ""),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _runs(spectrum: Spectrum) -> str:
    return f"{counted(spectrum.probes, 'probe')} × {counted(spectrum.steps, 'step')}"


def layers_table(spectra: Mapping[str, Spectrum], lr: float | None) -> Table:
    """A row a layer; with a learning rate, also its best window."""
    kind = KINDS[next(iter(spectra.values())).kind]
    table = Table(title=f"Spectrum of the {kind}, a diagonal block a layer", title_justify="left")
    if lr is not None and not all(spectrum.exact.all() for spectrum in spectra.values()):
        table.caption, table.caption_justify = "t*: best window, from few coarse nodes", "left"
    table.add_column("layer", overflow="fold")
    names = ("n", "λ_max", "λ_min", "trace", "± s.e.", "λ < 0, %")
    for name in (*names, *(["t*"] if lr is not None else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for layer, spectrum in spectra.items():
        cells = [
            layer,
            f"{spectrum.dimension:,}",
            f"{spectrum.lambda_max:.3g}",
            f"{spectrum.lambda_min:.2g}",
            f"{spectrum.trace:.3g}",
            _trace_error(spectrum),
            "–".join(dict.fromkeys(map(percent, spectrum.negative_mass_range))),
        ]
        if lr is not None:
            cells.append(_steps(spectrum.best_window(lr)))
        table.add_row(*cells)
    return table


def _steps(window: float) -> str:
    return "∞" if math.isinf(window) else f"{window:,}" if window < 1e6 else f"{window:.1e}"


def descent(spectrum: Spectrum, lr: float) -> dict[str, Any]:
    """What gradient descent at a learning rate makes of a spectrum, as plain numbers.

    Infinities stay; JSON has ``null`` for them.
    """
    factors = spectrum.multipliers(lr)
    resolved = np.abs(spectrum.nodes) > spectrum.resolution
    negative = resolved & (spectrum.nodes < 0)
    beyond = spectrum.nodes > 2 / lr
    best = spectrum.best_window(lr)
    times = sorted({*_TIMES, *([best] if not math.isinf(best) else [])})
    proxies = [(t, spectrum.error_proxy(lr, t)) for t in times]
    return {
        "lr": lr,
        "stability_limit": 2 / lr,
        "lambda_max_over_limit": spectrum.lambda_max * lr / 2,
        "amplified_mass": float(spectrum.weights[negative | beyond].sum()),
        "amplified_mass_negative": float(spectrum.weights[negative].sum()),
        "amplified_mass_beyond_limit": float(spectrum.weights[beyond].sum()),
        "largest_multiplier": float(factors.max()),
        "best_window": best,
        "error_proxy": [
            {"steps": t, "total": p.total, "positive": p.positive, "negative": p.negative}
            for t, p in proxies
        ],
    }


def descent_tables(found: Mapping[str, Any], coarse: bool) -> list[Table]:
    """:func:`descent`'s numbers, whether of ``coarse`` nodes, and the error proxy over time."""
    ratio, best = found["lambda_max_over_limit"], found["best_window"]
    verdict = "below 1: stiff modes shrink" if ratio < 1 else "1 or more: stiff modes grow"
    table = Table(title=f"Gradient descent at η = {found['lr']:g}", title_justify="left")
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_column("meaning")
    table.add_row("2/η", _number(found["stability_limit"]), "largest λ that does not diverge")
    table.add_row("λ_max / (2/η)", f"{ratio:.3g}", verdict)
    table.add_row(
        "|1 − ηλ| over 1",
        f"{percent(found['amplified_mass'])} %",
        f"{percent(found['amplified_mass_negative'])} % negative, "
        f"{percent(found['amplified_mass_beyond_limit'])} % beyond 2/η",
    )
    table.add_row(
        "largest |1 − ηλ|", f"{found['largest_multiplier']:.6g}", "growth of its mode a step"
    )
    table.add_row(
        "best window t*",
        _steps(best),
        ("P(t) never rises" if math.isinf(best) else "P(t) is least")
        + "; from few coarse nodes" * coarse,
    )
    proxy = Table(title="Error proxy P(t) = Σ w |1 − ηλ|^t", title_justify="left")
    for name in ("steps t", "P(t)", "positive modes", "negative modes"):
        proxy.add_column(name, justify="right")
    for row in found["error_proxy"]:
        mark = " (t*)" if row["steps"] == best else ""
        cells = (f"{row[part]:.4g}" for part in ("total", "positive", "negative"))
        proxy.add_row(f"{_steps(row['steps'])}{mark}", *cells)
    return [table, proxy]


def eigenpairs_table(rows: list[dict[str, Any]]) -> Table:
    """A row an eigenvalue, with its residual and where its vector is largest."""
    table = Table(title="Extreme eigenvalues", title_justify="left")
    table.add_column("eigenvalue", justify="right")
    table.add_column("residual", justify="right")
    table.add_column("heaviest weights", overflow="fold")
    table.add_column("share", justify="right")
    for row in rows:
        table.add_row(
            _number(row["value"]),
            _error(row["residual"]),
            row["heaviest"] if row["converged"] else f"{row['heaviest']} (not converged)",
            f"{row['heaviest_share']:.0%}",
        )
    return table
