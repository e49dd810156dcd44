"""Findings about the dynamics: dissipation, truncation, conditioning."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch_qsgd.audit.certificates import certified
from torch_qsgd.audit.judging import finding
from torch_qsgd.audit.plan import Plan
from torch_qsgd.audit.thresholds import Thresholds
from torch_qsgd.hessian.history import SpectrumRecord
from torch_qsgd.report.content import Report
from torch_qsgd.report.findings import Finding
from torch_qsgd.report.numbers import number


def _measured_spectra(report: Report) -> list[SpectrumRecord]:
    records = report.monitor.records if report.monitor is not None else []
    return [record for record in records if record.spectrum is not None]


def _growth(record: SpectrumRecord, steps: int, eigenvalue: float) -> float:
    """The factor of a mode's size after a window."""
    factor = float(record.dynamics.multipliers([eigenvalue])[0])
    try:
        return max(factor, 0.0) ** steps
    except OverflowError:
        return math.inf


def dissipative_dynamics(report: Report, plan: Plan, limits: Thresholds) -> Iterator[Finding]:
    """Of the spectra: negative mass, the ends, t*, and the worst growth along the run."""
    what, steps = "dissipative dynamics", plan.window
    records = _measured_spectra(report)
    if not records:
        for quantity, unit, relation, threshold in (
            ("share of negative eigenvalues", "", "≤", limits.negative_mass),
            ("growth of the most negative mode in a window", "×", "≤", limits.growth),
            ("largest eigenvalue over the stability bound", "", "≤", 1.0),
            ("best window t*", "steps", "≥", float(steps)),
        ):
            yield finding(what, quantity, math.nan, unit, relation, threshold, "")  # type: ignore[arg-type]
        return
    first = records[0]
    spectrum, dynamics = first.spectrum, first.dynamics
    assert spectrum is not None
    low, high = spectrum.negative_mass_range
    yield finding(
        what,
        "share of negative eigenvalues",
        spectrum.negative_mass,
        "",
        "≤",
        limits.negative_mass,
        "Their modes grow in a window of SGD instead of being damped; where nodes lie near zero, "
        "quadrature knows a range only.",
        low,
        high,
    )
    least, bound = spectrum.lambda_min, spectrum.lambda_min_bound
    grown = [_growth(first, steps, min(least + side * bound, 0.0)) for side in (1, 0, -1)]
    yield finding(
        what,
        "growth of the most negative mode in a window",
        max(grown[1], 1.0),
        "×",
        "≤",
        limits.growth,
        f"λ_min = {number(least)}, so {steps} steps multiply that mode, and every error along it, "
        f"by {number(max(grown[1], 1.0))}.",
        max(grown[0], 1.0),
        max(grown[2], 1.0),
    )
    stable = dynamics.largest_stable
    ratio, wide = spectrum.lambda_max / stable, spectrum.lambda_max_bound / stable
    yield finding(
        what,
        "largest eigenvalue over the stability bound",
        ratio,
        "",
        "≤",
        1.0,
        f"λ_max = {number(spectrum.lambda_max)}, and a step amplifies above {number(stable)}"
        + (" = 2/η." if not dynamics.momentum else ", by learning rate and momentum."),
        ratio - wide,
        ratio + wide,
    )
    best = first.best_window
    yield finding(
        what,
        "best window t*",
        float(best),
        "steps",
        "≥",
        float(steps),
        "The error proxy P(t) "
        + (
            "never rises."
            if math.isinf(best)
            else f"is least after {number(float(best))} steps; P({steps}) = "
            f"{number(first.error_proxy(steps))}."
        ),
    )
    if len(records) > 1:
        worst = max(
            _growth(r, steps, min(r.spectrum.lambda_min, 0.0)) for r in records if r.spectrum
        )
        yield finding(
            what,
            "largest such growth at any upload of the run",
            max(worst, 1.0),
            "×",
            "≤",
            limits.growth,
            f"Over {len(records)} uploads of a training run; the last one after "
            f"{records[-1].step} steps.",
        )


def small_learning_rate(report: Report, plan: Plan, limits: Thresholds) -> Iterator[Finding]:
    """Of the window beside true SGD: each order's error, the certificate, the kink floor."""
    what, found = "small learning rate", report.truncation
    for order in range(1, plan.order + 1):
        measured = [o for o in found.orders if o.order == order] if found is not None else []
        errors = measured[0].errors if measured else []
        early = found is not None and found.steps < plan.window
        value = math.inf if early else errors[-1] if errors else math.nan
        sentence = ""
        if found is not None and early:
            sentence = (
                f"The series, or SGD itself, overflowed after {found.steps} of {plan.window} steps."
            )
        elif errors:
            sentence = (
                f"After {found.steps if found else 0} steps, ‖u_N − u‖/‖u‖ against true SGD from "
                "the same anchor on the same batches."
            )
        yield finding(
            what, f"window error at order {order}", value, "", "≤", limits.window_error, sentence
        )
    yield certified(report, plan, limits)
    if found is None or found.floor is None:
        reason = (
            f"These operations cannot be held on their piece: {', '.join(found.unfrozen)}."
            if found is not None and found.unfrozen
            else ""
        )
        yield finding(what, "kink floor", math.nan, "", "≤", limits.kink_floor, reason)
        return
    kinks = ", ".join(found.kinks)
    floor = found.floor[-1] if found.floor else math.nan
    if found.kinks and found.steps < plan.window:
        floor = math.nan
    yield finding(
        what,
        "kink floor",
        floor,
        "",
        "≤",
        limits.kink_floor,
        f"The part of the window error that no order removes, by the kinks of {kinks}."
        if found.kinks
        else "No kinked operation was met: the Taylor series may converge to SGD.",
    )


def well_conditioned_system(report: Report, plan: Plan, limits: Thresholds) -> Iterator[Finding]:
    """Of the system's singular values: how κ grows with T, and how large it is."""
    what, found = "well-conditioned system", report.conditioning
    limit = 2.0 * (plan.window + 1)
    if found is None:
        yield finding(what, "growth exponent of κ in T", math.nan, "", "≤", limits.exponent, "")
        yield finding(what, "κ of the window's system", math.nan, "", "≤", limit, "")
        return
    spread = 2 * found.exponent_error
    yield finding(
        what,
        "growth exponent of κ in T",
        found.exponent,
        "",
        "≤",
        limits.exponent,
        {
            "T": "κ saturates, as for fully dissipative dynamics: cost grows as T.",
            "T²": "κ grows with T, as for almost dissipative dynamics: cost grows as T².",
        }.get(found.regime, "A mode grows: κ, and with it the cost, is exponential in T."),
        found.exponent - spread,
        found.exponent + spread,
    )
    for order, kappa in ((1, found.kappa[-1]), (found.order, found.kappa_order[-1])):
        if order == 1 or found.order > 1:
            yield finding(
                what,
                f"κ of the window's system at order {order}",
                kappa,
                "",
                "≤",
                limit,
                f"After {found.steps[-1]} steps; where no mode grows it is at most 2(T + 1).",
            )
