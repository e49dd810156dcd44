"""Findings about sizes: sparsity, upload, download; and about derivatives."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch_qsgd.audit.judging import finding
from torch_qsgd.audit.plan import Plan
from torch_qsgd.audit.row_sparsity import mean_nonzeros
from torch_qsgd.audit.thresholds import Thresholds, polylogarithmic
from torch_qsgd.report.content import Report
from torch_qsgd.report.findings import Finding
from torch_qsgd.report.numbers import number, share, whole


def sparse_parameters(report: Report, plan: Plan, limits: Thresholds) -> Iterator[Finding]:
    """Of pruning: the density, and what it costs, over all and for the worst tensor."""
    what, found = "sparse parameters", report.pruning
    if found is None:
        for quantity in ("density", "accuracy lost by pruning"):
            threshold = limits.density if quantity == "density" else limits.accuracy_lost
            yield finding(what, quantity, math.nan, "", "≤", threshold, "")
        return
    yield finding(
        what,
        "density",
        found.density,
        "",
        "≤",
        limits.density,
        f"{whole(found.active)} of {whole(found.parameters)} weights stay, with those that are "
        "never pruned.",
    )
    classes = not math.isnan(found.accuracy_dense)

    def lost(loss: float, accuracy: float) -> float:
        if classes:
            return found.accuracy_dense - accuracy
        scale = abs(found.loss_dense)
        change = loss - found.loss_dense
        return change / scale if scale else 0.0 if change <= 0 else math.inf

    quantity = "accuracy lost by pruning" if classes else "relative rise of the loss by pruning"
    yield finding(
        what,
        quantity,
        lost(found.loss, found.accuracy),
        "",
        "≤",
        limits.accuracy_lost,
        (f"From {number(found.accuracy_dense)} to {number(found.accuracy)}; " if classes else "")
        + f"loss from {number(found.loss_dense)} to {number(found.loss)}, on held-out batches, "
        "before any step is taken.",
    )
    if found.layers:
        worst = max(found.layers, key=lambda layer: lost(layer.loss, layer.accuracy))
        yield finding(
            what,
            "the same, by pruning the worst tensor alone",
            lost(worst.loss, worst.accuracy),
            "",
            "≤",
            limits.accuracy_lost,
            f"{worst.name}, of which {whole(worst.active)} of {whole(worst.weights)} weights stay.",
        )


def sparse_model(report: Report, plan: Plan, limits: Thresholds) -> Iterator[Finding]:
    """Of random rows of the Hessian: how many entries are not zero."""
    what, quantity, found = "sparse model", "non-zeros a row of the Hessian", report.rows
    if found is None:
        yield finding(what, quantity, math.nan, "entries", "≤", math.nan, "")
        return
    mean, error = mean_nonzeros(found)
    limit = polylogarithmic(found.dimension)
    held = sum(found.effective) / len(found.effective)
    yield finding(
        what,
        quantity,
        mean,
        "entries",
        "≤",
        limit,
        f"Mean of {found.rows} random rows of length {whole(found.dimension)}, beside (log₂ n)²; "
        f"{number(held)} entries hold 99 % of a row's squared length.",
        max(mean - 2 * error, 0.0),
        mean + 2 * error,
    )


def efficient_upload(report: Report, plan: Plan, limits: Thresholds) -> Iterator[Finding]:
    """Of one state preparation: gates without QRAM, memory calls with it."""
    what, found = "efficient upload", report.transfer
    names = ("gates of one upload without QRAM", "memory calls of one upload with QRAM")
    if found is None:
        for name in names:
            yield finding(what, name, math.nan, "", "≤", math.nan, "")
        return
    gates = float(found.cx + found.t_gates + found.rotations)
    flops = _classical(report)
    yield finding(
        what,
        names[0],
        gates,
        "gates",
        "≤",
        flops,
        f"Upper bound for {whole(found.active)} weights, beside the classical operations of the "
        "whole window; each run of the solver, so each copy, takes uploads of its own.",
    )
    yield finding(
        what,
        names[1],
        float(found.qram_calls),
        "calls",
        "≤",
        polylogarithmic(found.active),
        f"With a quantum memory of {whole(found.active)} cells, of which none has been built, "
        "beside (log₂ s)².",
    )


def _classical(report: Report) -> float:
    """Operations of the window on a classical computer."""
    return float(report.facts.get("classical operations", math.nan))


def efficient_download(report: Report, plan: Plan, limits: Thresholds) -> Iterator[Finding]:
    """Of the readout: the odds of one run, the copies, and what their noise does."""
    what, found = "efficient download", report.transfer
    rare = 1 / (limits.rarity * (plan.window + 1))
    if found is None:
        yield finding(what, "probability of one run's success", math.nan, "", "≥", rare, "")
        yield finding(what, "copies to read the displacement", math.nan, "", "≤", math.nan, "")
        yield finding(
            what, "change of the loss by readout", math.nan, "", "≤", limits.readout_loss, ""
        )
        return
    yield finding(
        what,
        "probability of one run's success",
        found.probability,
        "",
        "≥",
        rare,
        f"P(final time) = {number(found.final)} times P(displacement) = {number(found.level_one)}.",
    )
    trials = [t for t in found.trials if math.isclose(t.precision, plan.readout_error)]
    if not trials:
        return
    trial = trials[0]
    few = trial.copies / found.active * polylogarithmic(report_size(report))
    yield finding(
        what,
        "copies to read the displacement",
        float(trial.copies),
        "copies",
        "≤",
        few,
        f"To an error of {share(trial.precision)}; they grow with the {whole(found.active)} "
        "weights read, and only (log₂ n)² of these would be polylogarithmic.",
    )
    moved = abs(found.loss_after - found.loss_before)
    changes = [abs(loss - found.loss_after) / moved if moved else math.nan for loss in trial.losses]
    mean = sum(changes) / len(changes)
    yield finding(
        what,
        "change of the loss by readout",
        mean,
        "",
        "≤",
        limits.readout_loss,
        f"Relative to the window's own change of the held-out loss, from "
        f"{number(found.loss_before)} to {number(found.loss_after)}; mean of {len(changes)} "
        "emulated readouts.",
        min(changes),
        max(changes),
    )


def report_size(report: Report) -> int:
    """n of (log₂ n)²: all trainable weights."""
    return report.pruning.parameters if report.pruning is not None else 2


def explicit_gradients(report: Report, plan: Plan, limits: Thresholds) -> Iterator[Finding]:
    """Of the derivatives that were tried: up to which order they are right."""
    orders = {mode.order for mode in report.modes if mode.supported and mode.name.startswith("jet")}
    reached = 0
    while reached + 1 in orders:
        reached += 1
    reasons = [m.reason for m in report.modes if not m.supported and m.name.startswith("jet")]
    yield finding(
        "explicit gradients",
        "highest order with correct derivatives",
        float(reached) if report.modes else math.nan,
        "",
        "≥",
        float(plan.order),
        (
            f"Orders up to {reached} run and agree with their references."
            if reached >= plan.order
            else " ".join(reasons[:1]) or "No order is supported."
        )
        if report.modes
        else "",
    )
