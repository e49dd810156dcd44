"""Tables of one window: what was measured of it, and what it would cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch_qsgd.report.figures import evenly
from torch_qsgd.report.figures_ledger import SIZES
from torch_qsgd.report.measurements import (
    Conditioning,
    DerivativeMode,
    Pruning,
    RowSparsity,
    Transfer,
    Truncation,
)
from torch_qsgd.report.numbers import number
from torch_qsgd.report.tables import Cell, Table, loss, percent, table
from torch_qsgd.resources import Ledger, ScalingCurve

_MOST = 100  # rows of a curve


def truncation(found: Truncation) -> Table:
    """A row an order: error at the end, and loss there."""
    rows: list[list[Any]] = [
        [f"order {o.order}", o.errors[-1] if o.errors else math.nan, loss(o.loss)]
        for o in found.orders
    ]
    floor = found.floor[-1] if found.floor else math.nan
    rows.append(["kink floor", floor, math.nan])
    rows.append(["rounding, estimated", found.rounding, math.nan])
    rows.append(["true SGD", 0.0, loss(found.loss_true)])
    rows.append(["at the anchor", math.nan, loss(found.loss_anchor)])
    columns = ("window", f"relative error after {number(found.steps)} steps", "held-out loss")
    kinks = f"Kinked operations: {', '.join(found.kinks)}." if found.kinks else ""
    return table("truncation-table", "Where the window ends", columns, rows, note=kinks)


def conditioning(found: Conditioning) -> Table:
    """A row a number of steps."""
    columns = ["steps T", "σ_max", "σ_min", "κ, order 1", f"κ, order {found.order}"]
    values = [found.steps, found.largest, found.smallest, found.kappa, found.kappa_order]
    note = "Of the standard form's diagonal blocks, which know neither constant nor gradient."
    if found.kappa_homogeneous:
        columns.append(f"κ, homogeneous, order {found.order}")
        values.append(found.kappa_homogeneous)
        note += " The homogeneous form's κ, which the ledger takes, is estimated."
    rows = list(zip(*values, strict=True))
    title = "Singular values and κ"
    return table("conditioning-table", title, columns, rows, note=note, folded=True)


def pruning(found: Pruning) -> Table:
    """A row a tensor, and the whole model's."""
    rows: list[list[Any]] = [
        [
            "whole model",
            found.parameters,
            found.active,
            percent(found.density),
            math.nan,
            loss(found.loss),
            percent(found.accuracy),
        ],
        [
            "not pruned",
            found.parameters,
            found.parameters,
            percent(1.0),
            0.0,
            loss(found.loss_dense),
            percent(found.accuracy_dense),
        ],
    ]
    for layer in found.layers:
        rows.append(
            [
                layer.name,
                layer.weights,
                layer.active,
                percent(layer.active / layer.weights),
                percent(layer.norm_removed),
                loss(layer.loss),
                percent(layer.accuracy),
            ]
        )
    columns = (
        "pruned part",
        "weights",
        "that stay",
        "density (%)",
        "squared length removed (%)",
        "held-out loss",
        "held-out accuracy (%)",
    )
    return table("pruning-table", "Pruning, by tensor", columns, rows, folded=True)


def rows(found: RowSparsity) -> Table:
    """What the probed rows come to."""

    def spread(counts: list[int]) -> list[Any]:
        if not counts:
            return [math.nan] * 3
        ordered = sorted(counts)
        return [ordered[0], ordered[len(ordered) // 2], ordered[-1]]

    lines = [
        ["non-zeros", *spread(found.nonzeros)],
        ["entries too small to be told from rounding", *spread(found.unresolved)],
        ["entries with 99 % of the squared length", *spread(found.effective)],
    ]
    columns = ("of a row", "least", "median", "most")
    note = (
        f"{number(found.rows)} random rows of length {number(found.dimension)}; the largest entry "
        f"met is {number(found.largest)} loss / weight². The others may have more entries, and "
        "larger ones."
    )
    return table("rows-table", "Rows of the Hessian", columns, lines, note=note)


def transfer(found: Transfer) -> Table:
    """Gates, calls and probabilities of one upload and one download."""
    lines: list[list[Any]] = [
        ["weights to load and to read", found.active, ""],
        ["qubits of their register", found.qubits, "qubits"],
        ["two-qubit gates of one upload, without QRAM", found.cx, "CX gates"],
        ["T gates of one upload, without QRAM", found.t_gates, "T gates"],
        ["rotations of one upload, without QRAM", found.rotations, "gates"],
        ["memory calls of one upload, with QRAM", found.qram_calls, "calls"],
        ["probability of the final time", found.final, ""],
        ["probability of the displacement, there", found.level_one, ""],
        ["probability of one run's success", found.probability, ""],
        ["rescaling γ", found.rescaling, "weight"],
        ["held-out loss at the anchor", loss(found.loss_before), ""],
        ["held-out loss after an exact readout", loss(found.loss_after), ""],
    ]
    return table("transfer", "Upload and download", ("quantity", "value", "unit"), lines)


def trials(found: Transfer) -> Table:
    """A row a precision of the readout."""
    lines = []
    for trial in sorted(found.trials, key=lambda t: -t.precision):
        errors = trial.errors or [math.nan]
        losses = trial.losses or [math.nan]
        lines.append(
            [
                percent(trial.precision),
                trial.copies,
                trial.guaranteed,
                percent(sum(errors) / len(errors)),
                loss(sum(losses) / len(losses)),
                loss(min(losses)),
                loss(max(losses)),
            ]
        )
    columns = (
        "error asked for (% of ‖u‖)",
        "copies used",
        "copies guaranteed",
        "mean error made (%)",
        "mean loss",
        "least loss",
        "largest loss",
    )
    return table("trials", "Emulated readouts", columns, lines)


def modes(found: Sequence[DerivativeMode]) -> Table:
    """A row a way to differentiate."""
    lines = [
        [
            mode.name,
            mode.order,
            Cell("supported", look="holds")
            if mode.supported
            else Cell("not supported", "", "breaks"),
            mode.error,
            mode.reason,
        ]
        for mode in found
    ]
    columns = ("way to differentiate", "order", "supported", "relative difference", "remark")
    return table("modes", "Derivatives", columns, lines, stacked=True)


# ---- The ledger --------------------------------------------------------------------------------


def ledger(found: Ledger) -> Table:
    """All lines, with formula and source."""
    lines = [
        [e.quantity, e.group, e.value, e.unit, e.tag, e.formula, e.source] for e in found.entries
    ]
    columns = ("quantity", "group", "value", "unit", "kind", "formula", "source")
    return table(
        "ledger-table",
        "The ledger, line by line",
        columns,
        lines,
        note=found.assumptions,
        folded=True,
        stacked=True,
    )


def scaling(curves: Sequence[ScalingCurve], found: Ledger | None) -> Table:
    """A row a size of a curve; the ledger knows its entries' names."""
    words = {entry.key: entry.quantity for entry in found.entries} if found else {}
    lines = []
    for curve in curves:
        for i in evenly(len(curve.values), _MOST):
            key = curve.dominant[i] if curve.dominant else ""
            totals = (curve.t_gates[i], curve.t_gates_qram[i], curve.flops[i])
            lines.append([SIZES.get(curve.over, curve.over), curve.values[i], *totals])
            lines[-1].append(words.get(key, key))
    columns = ("over", "size", "T gates, QROAM", "T gates, QRAM", "FLOPs", "dominated by")
    return table("scaling-table", "Scaling", columns, lines, folded=True)
