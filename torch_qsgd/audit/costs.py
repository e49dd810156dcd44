"""The ledger of the window that an audit has measured."""

from __future__ import annotations

import math
from dataclasses import replace

from torch_qsgd.audit.row_sparsity import mean_nonzeros
from torch_qsgd.errors import SizeError
from torch_qsgd.report.content import Report
from torch_qsgd.resources import Ledger, ScalingCurve, WindowSize, ledger, scaling
from torch_qsgd.resources.physical import PhysicalUnavailable, physical_of


def audited_ledger(report: Report) -> tuple[Ledger, list[ScalingCurve], list[str]]:
    """What the measured window would cost, and how that grows.

    What was not measured takes the ledger's own assumption, which its lines name.

    Args:
        report: with the measurements made so far; settings as of :class:`.plan.Plan`.

    Returns:
        The ledger; its totals over n, T and the density; and notes, such as why there is no
        physical estimate.

    Raises:
        ValueError: where pruning was not measured, so that no size is known.

    Cost: some tens of milliseconds.
    """
    size = window_size(report)
    found = ledger(size)
    notes = []
    try:
        size = replace(size, physical=physical_of(found).for_ledger())
        found = ledger(size)
    except (PhysicalUnavailable, SizeError, ValueError) as error:
        notes.append(f"There is no physical estimate: {error}")
    regime = report.conditioning.regime if report.conditioning is not None else "T²"
    curves = [scaling(size, over, regime=regime) for over in ("active", "steps", "density")]
    return found, curves, notes


def window_size(report: Report) -> WindowSize:
    """The window's numbers as measured.

    Raises:
        ValueError: where pruning was not measured.
    """
    pruning, settings, facts = report.pruning, report.settings, report.facts
    if pruning is None:
        raise ValueError("how many weights are active was not measured")
    size = WindowSize(
        parameters=pruning.parameters,
        active=pruning.active,
        steps=settings["window"],
        order=settings["order"],
        solver_error=settings["solver_error"],
        readout_error=settings["readout_error"],
        batches=min(settings["window"], int(facts.get("batches of a window", settings["window"]))),
        flops=_known(facts.get("classical operations")),
        bytes=_known(facts.get("classical bytes moved")),
    )
    if (system := report.conditioning) is not None:
        size = replace(
            size,
            kappa=max(system.kappa_order[-1], math.nextafter(1, 2)),
            norm=max(1.0, system.largest[-1]),
        )
    if (rows := report.rows) is not None:
        change = settings["lr"] * rows.largest
        size = replace(
            size,
            row_nonzeros=min(max(mean_nonzeros(rows)[0], 1.0), pruning.active + 1.0),
            largest_entry=1 + change,
            largest_change=change or None,
        )
    if (transfer := report.transfer) is not None and transfer.probability > 0:
        size = replace(
            size, final_probability=transfer.final, level_one_probability=transfer.level_one
        )
    return size


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None
