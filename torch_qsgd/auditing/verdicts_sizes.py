"""Findings about sizes: sparsity, upload, download; and about derivatives."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch_qsgd.auditing.judging import finding
from torch_qsgd.auditing.plan import Plan
from torch_qsgd.auditing.row_sparsity import largest_row, unseen_share
from torch_qsgd.auditing.thresholds import Thresholds, polylogarithmic
from torch_qsgd.report.content import Report
from torch_qsgd.report.findings import Finding
from torch_qsgd.report.numbers import number, share, whole

#: Share of rows that may be fuller than the fullest one met, and be overlooked.
_RARE = 0.05


def sparse_parameters(report: Report, plan: Plan, limits: Thresholds) -> Iterator[Finding]:
    """Of pruning: the density, and what it costs, over all and for the worst tensor."""
    what, found = "sparse parameters", report.pruning
    if found is None:
        yield finding(what, "density", math.nan, "", "≤", limits.density, "")
        lost_by = "accuracy lost by pruning"
        yield finding(what, lost_by, math.nan, "", "≤", limits.accuracy_lost, "")
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
    empty = [layer.name for layer in found.layers if not layer.active]
    yield finding(
        what,
        "tensors that pruning leaves empty",
        float(len(empty)),
        "",
        "≤",
        0.0,
        f"Without {', '.join(empty)} the network is cut, and its Hessian holds zeros."
        if empty
        else "Every tensor keeps weights.",
    )
    if found.layers:
        worst = max(found.layers, key=lambda layer: lost(layer.loss, layer.accuracy))
        yield finding(
            what,
            f"{quantity}, of the worst tensor alone",
            lost(worst.loss, worst.accuracy),
            "",
            "≤",
            limits.accuracy_lost,
            f"{worst.name}, of which {whole(worst.active)} of {whole(worst.weights)} weights stay.",
        )


def sparse_model(report: Report, plan: Plan, limits: Thresholds) -> Iterator[Finding]:
    """Of random rows of the Hessian: how many entries are not zero in the fullest."""
    what, quantity, found = "sparse model", "non-zeros in a row of the Hessian", report.rows
    if found is None:
        yield finding(what, quantity, math.nan, "entries", "≤", math.nan, "")
        return
    most, unseen = largest_row(found), unseen_share(found)
    pairs = zip(found.nonzeros, found.unresolved, strict=True)
    fullest = max(known + unresolved for known, unresolved in pairs)
    held = sum(found.effective) / len(found.effective)
    if not fullest:
        why = "All rows probed are zero: the loss does not feel these weights."
        yield finding(
            what, quantity, math.nan, "entries", "≤", polylogarithmic(found.dimension), why
        )
        return
    yield finding(
        what,
        quantity,
        float(most),
        "entries",
        "≤",
        polylogarithmic(found.dimension),
        f"The fullest of {found.rows} random rows of length {whole(found.dimension)}, beside "
        f"(log₂ n)²; with 95 % confidence at most {share(unseen)} of all rows are fuller. "
        f"{number(held)} entries hold 99 % of a row's squared length on average.",
        float(most),
        float(fullest if unseen <= _RARE else found.dimension),
    )


def efficient_upload(report: Report, plan: Plan, limits: Thresholds) -> Iterator[Finding]:
    """Of state preparation, for all runs of a window: gates without QRAM, memory calls with it."""
    what, found, ledger = "efficient upload", report.transfer, report.ledger
    flops = float(report.facts.get("classical operations", math.nan))
    names = ("gates of all uploads without QRAM", "memory calls of all uploads with QRAM")
    units = ("gates", "calls")
    if found is None or ledger is None:
        for name, unit in zip(names, units, strict=True):
            yield finding(what, name, math.nan, unit, "≤", flops, "")
        return
    gates = float(found.cx + found.t_gates + found.rotations)
    uploads = ledger["runs"] * ledger["copies"]
    beside = "beside the classical operations of the whole window."
    yield finding(
        what,
        names[0],
        gates * uploads,
        units[0],
        "≤",
        flops,
        f"One upload of {whole(found.active)} weights takes {number(gates)} gates at most, and "
        f"each of {number(uploads)} runs of the solver has its own; {beside}",
    )
    yield finding(
        what,
        names[1],
        found.qram_calls * uploads,
        units[1],
        "≤",
        flops,
        f"{number(found.qram_calls)} calls an upload of a quantum memory of "
        f"{whole(found.active)} cells, of which none has been built; {beside}",
    )


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
        f"To an error of {share(trial.precision)}. They grow with the {whole(found.active)} "
        "weights read, whatever the model; the limit is what (log₂ n)² weights would take.",
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
