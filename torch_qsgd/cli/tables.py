"""Spectra as tables that fit 80 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from torch_qsgd.hessian import Spectrum

KINDS = {"hessian": "Hessian", "ggn": "Gauss–Newton matrix"}

#: Steps t at which the error proxy is shown, beside its minimum.
_TIMES = (1, 10, 100, 1000)


def _number(value: float) -> str:
    return f"{value:.5g}"


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
            "residual bound",
        ),
        (
            "λ_min",
            _number(spectrum.lambda_min),
            _error(spectrum.lambda_min_bound),
            "residual bound",
        ),
        ("trace", _number(spectrum.trace), _error(spectrum.trace_error), "standard error"),
        (
            "negative mass",
            f"{spectrum.negative_mass:.2%}",
            "",
            f"share of λ < {-spectrum.resolution:.0e}",
        ),
        ("effective rank", f"{spectrum.effective_rank:,.1f}", "", "exponential of entropy"),
        ("products", f"{spectrum.products:,}", "", _runs(spectrum)),
        ("seconds", f"{spectrum.seconds:.1f}", "", ""),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _runs(spectrum: Spectrum) -> str:
    probes = "probe" if spectrum.probes == 1 else "probes"
    return f"{spectrum.probes} {probes} × {spectrum.steps} steps"


def layers_table(spectra: Mapping[str, Spectrum], lr: float | None) -> Table:
    """A row a layer; with a learning rate, also its best window."""
    kind = KINDS[next(iter(spectra.values())).kind]
    table = Table(title=f"Spectrum of the {kind}, a diagonal block a layer", title_justify="left")
    table.add_column("layer", overflow="fold")
    names = ("n", "λ_max", "λ_min", "trace", "± s.e.", "λ < 0")
    for name in (*names, *(["t*"] if lr is not None else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for layer, spectrum in spectra.items():
        cells = [
            layer,
            f"{spectrum.dimension:,}",
            f"{spectrum.lambda_max:.3g}",
            f"{spectrum.lambda_min:.2g}",
            f"{spectrum.trace:.3g}",
            _error(spectrum.trace_error),
            f"{spectrum.negative_mass:.1%}",
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


def descent_tables(found: Mapping[str, Any]) -> list[Table]:
    """:func:`descent`'s numbers, and the error proxy over time."""
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
        f"{found['amplified_mass']:.2%}",
        f"{found['amplified_mass_negative']:.2%} negative, "
        f"{found['amplified_mass_beyond_limit']:.2%} beyond 2/η",
    )
    table.add_row(
        "largest |1 − ηλ|", f"{found['largest_multiplier']:.6g}", "growth of its mode a step"
    )
    table.add_row(
        "best window t*",
        _steps(best),
        "P(t) never rises" if math.isinf(best) else "steps at which P(t) is least",
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
