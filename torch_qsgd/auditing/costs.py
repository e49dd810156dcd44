"""The ledger of the window that an audit has measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch_qsgd.auditing.homogeneous import homogeneous_ends
from torch_qsgd.auditing.row_sparsity import largest_row
from torch_qsgd.errors import SizeError
from torch_qsgd.hessian.dynamics import Dynamics
from torch_qsgd.hessian.spectrum import Spectrum
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

    Cost: κ for thirteen T up to 10⁴, a second or a few.
    """
    size = window_size(report)
    found = ledger(size)
    notes = []
    try:
        size = replace(size, physical=physical_of(found).for_ledger())
        found = ledger(size)
    except (PhysicalUnavailable, SizeError, ValueError) as error:
        notes.append(f"There is no physical estimate: {error}")
    system = system_of(report)
    curves = [scaling(size, over, system_of=system) for over in ("active", "steps", "density")]
    return found, curves, notes


def system_of(report: Report) -> Callable[[int], tuple[float, float]] | None:
    """κ and ‖ℒ‖ of the homogeneous form for any T, from what a report has measured.

    Returns:
        A function of T; ``None`` where there is no spectrum.

    Source: :func:`torch_qsgd.auditing.homogeneous.homogeneous_ends`.
    """
    measured = _spectrum(report)
    if measured is None:
        return None
    spectrum, dynamics = measured

    def system(steps: int) -> tuple[float, float]:
        largest, smallest = homogeneous_ends(
            spectrum, dynamics, steps, report.settings["order"], truncation=report.truncation
        )
        kappa = largest / smallest if smallest > 0 else math.inf
        return kappa, largest

    return system


def _spectrum(report: Report) -> tuple[Spectrum, Dynamics] | None:
    """The first spectrum, and how a step treats it."""
    records = report.monitor.records if report.monitor is not None else []
    return next(((r.spectrum, r.dynamics) for r in records if r.spectrum is not None), None)


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
    origin: dict[str, str] = {}
    if (system := system_of(report)) is not None:
        kappa, norm = system(size.steps)
        if math.isfinite(norm):
            size = replace(size, norm=max(norm, 1.0))
        size = replace(size, kappa=max(kappa, math.nextafter(1, 2)))
        origin["kappa"] = "estimated for the homogeneous form, by single modes of the spectrum"
    if (rows := report.rows) is not None:
        change = settings["lr"] * rows.largest
        size = replace(
            size,
            row_nonzeros=float(min(max(largest_row(rows), 1), pruning.active + 1)),
            largest_entry=1 + change,
            largest_change=change or None,
            change_norm=_change_norm(report),
        )
        probed = f"the largest of {rows.rows} rows probed, a lower bound"
        origin |= {"row_nonzeros": probed, "largest_change": f"η max|H_ij|, {probed}"}
        origin["change_norm"] = "η‖H‖_F, from the spectrum's second moment"
    if (transfer := report.transfer) is not None and transfer.probability > 0:
        size = replace(
            size, final_probability=transfer.final, level_one_probability=transfer.level_one
        )
    return replace(size, origin=origin)


def _change_norm(report: Report) -> float | None:
    """‖A − 1‖_F = η‖H‖_F without momentum, from the mean of λ² over all eigenvalues."""
    measured = _spectrum(report)
    if measured is None:
        return None
    spectrum, dynamics = measured
    square = spectrum.dimension * float(spectrum.moments(2)[1])
    return _known(dynamics.lr * math.sqrt(square)) if square >= 0 else None


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None
