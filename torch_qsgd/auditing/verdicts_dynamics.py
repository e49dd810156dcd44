"""Findings about the dynamics: dissipation, truncation, conditioning."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from torch_qsgd.auditing.certificates import certified
from torch_qsgd.auditing.judging import finding
from torch_qsgd.auditing.plan import Plan
from torch_qsgd.auditing.thresholds import Thresholds
from torch_qsgd.hessian.history import SpectrumRecord
from torch_qsgd.report.content import Report
from torch_qsgd.report.findings import Finding
from torch_qsgd.report.numbers import number


def _measured_spectra(report: Report) -> list[SpectrumRecord]:
    records = report.monitor.records if report.monitor is not None else []
    return [record for record in records if record.spectrum is not None]


def _grown(record: SpectrumRecord, steps: int) -> tuple[float, float, float]:
    """By what a window multiplies the least mode, at least 1: low, as found, and high."""
    assert record.spectrum is not None
    least, bound = record.spectrum.lambda_min, record.spectrum.lambda_min_bound
    ends = [min(least + side * bound, 0.0) for side in (1, 0, -1)]
    with np.errstate(over="ignore"):
        low, found, high = np.maximum(record.dynamics.multipliers(ends), 1.0) ** steps
    return float(low), float(found), float(high)


def dissipative_dynamics(report: Report, plan: Plan, limits: Thresholds) -> Iterator[Finding]:
    """Of the spectra: negative mass, the ends, P(T) with t*, and the worst growth of the run."""
    what, steps = "dissipative dynamics", plan.window
    mass, growth = "share of negative eigenvalues", "growth of the most negative mode in a window"
    stiff, proxy = "largest eigenvalue over the stability bound", f"error proxy P({steps})"
    records = _measured_spectra(report)
    if not records:
        for quantity, unit, threshold in (
            (mass, "", limits.negative_mass),
            (growth, "×", limits.growth),
            (stiff, "", 1.0),
            (proxy, "", 1.0),
        ):
            yield finding(what, quantity, math.nan, unit, "≤", threshold, "")
        return
    first = records[0]
    spectrum, dynamics = first.spectrum, first.dynamics
    assert spectrum is not None
    least, bound = spectrum.lambda_min, spectrum.lambda_min_bound
    convex = least - bound > 0
    low, high = (0.0, 0.0) if convex else spectrum.negative_mass_range
    yield finding(
        what,
        mass,
        spectrum.negative_mass,
        "",
        "≤",
        limits.negative_mass,
        "None was found: the least eigenvalue met lies above zero by more than its residual bound."
        if convex
        else "Their modes grow in a window of SGD instead of being damped; where nodes lie near "
        "zero, quadrature knows a range only.",
        low,
        high,
    )
    grown = _grown(first, steps)
    yield finding(
        what,
        growth,
        grown[1],
        "×",
        "≤",
        limits.growth,
        f"λ_min = {number(least)}, so {steps} steps multiply that mode, and every error along it, "
        f"by {number(grown[1])}.",
        grown[0],
        grown[2],
    )
    stable = dynamics.largest_stable
    ratio, wide = spectrum.lambda_max / stable, spectrum.lambda_max_bound / stable
    yield finding(
        what,
        stiff,
        ratio,
        "",
        "≤",
        1.0,
        f"λ_max = {number(spectrum.lambda_max)}, and a step amplifies above {number(stable)}"
        + (" = 2/η." if not dynamics.momentum else ", by learning rate and momentum."),
        ratio - wide,
        ratio + wide,
    )
    ends = _proxy_at(first, steps, (low, high))
    best = first.best_window
    parts = dynamics.error_proxy(spectrum, steps)
    yield finding(
        what,
        proxy,
        parts.total,
        "",
        "≤",
        1.0,
        f"The mean factor of a mode's size, 1 at the start: {number(parts.positive, 4)} by modes "
        f"that are not negative and {number(parts.negative, 4)} by negative ones, as many as the "
        f"range of their share allows; P(t) {_least(best)}.",
        *ends,
    )
    if len(records) > 1:
        ranges = [_grown(record, steps) for record in records]
        worst = [max(of) for of in zip(*ranges, strict=True)]
        yield finding(
            what,
            "largest growth of a negative mode at any upload of the run",
            worst[1],
            "×",
            "≤",
            limits.growth,
            f"Over {len(records)} uploads of a training run; the last one after "
            f"{records[-1].step} steps.",
            worst[0],
            worst[2],
        )


def _least(best: float) -> str:
    """Where P is least, in words."""
    if math.isinf(best):
        return "never rises"
    return f"is least after t* = {number(float(best))} steps" if best else "rises from the start"


def _proxy_at(
    record: SpectrumRecord, steps: int, masses: tuple[float, float]
) -> tuple[float, float]:
    """The least and the largest P(t) with a share of negative modes within limits."""
    spectrum = record.spectrum
    assert spectrum is not None
    parts, mass = record.dynamics.error_proxy(spectrum, steps), spectrum.negative_mass
    # Negative modes that were not seen lie near zero, where a step multiplies by about 1.
    negative = parts.negative / mass if mass > 0 else 1.0
    others = parts.positive / (1 - mass) if mass < 1 else 1.0
    found = [share * negative + (1 - share) * others for share in (*masses, mass)]
    return min(found), max(found)


def small_learning_rate(report: Report, plan: Plan, limits: Thresholds) -> Iterator[Finding]:
    """Of the window beside true SGD: the error at order N, its proven bound, the kink floor."""
    what, found = "small learning rate", report.truncation
    quantity = f"window error at order {plan.order}"
    if found is None:
        yield finding(what, quantity, math.nan, "", "≤", limits.window_error, "")
    elif found.steps < plan.window:
        why = f"The series, or SGD itself, overflowed after {found.steps} of {plan.window} steps."
        # Without a single step, the loss or its gradient is at fault and not the rate.
        value = math.inf if found.steps else math.nan
        yield finding(what, quantity, value, "", "≤", limits.window_error, why)
    else:
        last = {measured.order: measured.errors[-1] for measured in found.orders}
        lower = ", ".join(f"{number(last[k])} at order {k}" for k in sorted(last)[:-1])
        error, rounding = last[plan.order], 2 * found.rounding
        yield finding(
            what,
            quantity,
            error,
            "",
            "≤",
            limits.window_error,
            f"‖u_N − u‖/‖u‖ after {found.steps} steps, against true SGD from the same anchor on "
            f"the same batches{f'; {lower}' if lower else ''}.",
            max(error - rounding, 0.0),
            error + rounding,
        )
    yield certified(report, plan, limits)
    yield _kink_floor(report, plan, limits)


def _kink_floor(report: Report, plan: Plan, limits: Thresholds) -> Finding:
    what, quantity, found = "small learning rate", "kink floor", report.truncation
    if found is None or found.floor is None or found.steps < plan.window:
        reason = ""
        if found is not None and found.unfrozen:
            reason = f"These cannot be held on their pieces: {', '.join(found.unfrozen)}."
        return finding(what, quantity, math.nan, "", "≤", limits.kink_floor, reason)
    return finding(
        what,
        quantity,
        found.floor[-1],
        "",
        "≤",
        limits.kink_floor,
        f"The part of the window error that no order removes, by the kinks of "
        f"{', '.join(found.kinks)}."
        if found.kinks
        else "No kinked operation was met: the Taylor series may converge to SGD.",
        max(found.floor[-1] - 2 * found.rounding, 0.0),
        found.floor[-1] + 2 * found.rounding,
    )


def well_conditioned_system(report: Report, plan: Plan, limits: Thresholds) -> Iterator[Finding]:
    """Of the system's singular values: how κ grows with T, and how large it is."""
    what, found = "well-conditioned system", report.conditioning
    exponent, size = "growth exponent of κ in T", f"κ of the window's system at order {plan.order}"
    # Steps with momentum are not normal, and products of theirs may grow before they shrink.
    limit = math.nan if plan.momentum else 2.0 * (plan.window + 1)
    if found is None:
        yield finding(what, exponent, math.nan, "", "≤", limits.exponent, "")
        yield finding(what, size, math.nan, "", "≤", limit, "")
        return
    spread = 2 * found.exponent_error
    yield finding(
        what,
        exponent,
        found.exponent,
        "",
        "≤",
        limits.exponent,
        _growth_of_kappa(found.exponent, found.regime, limits.exponent),
        found.exponent - spread,
        found.exponent + spread,
    )
    lower = f" ({number(found.kappa[-1])} at order 1)" if found.order > 1 else ""
    yield finding(
        what,
        size,
        found.kappa_order[-1],
        "",
        "≤",
        limit,
        f"Of the standard closure's diagonal blocks after {found.steps[-1]} steps{lower}"
        + (
            "; with momentum no simple limit is known."
            if plan.momentum
            else "; it is at most 2(T + 1) where no mode grows."
        ),
    )


def _growth_of_kappa(exponent: float, regime: str, linear: float) -> str:
    if math.isnan(exponent):
        return "There are too few numbers of steps to fit it."
    if regime == "exponential":
        return "A mode grows: κ, and with it the cost, is exponential in T."
    if exponent < 0.5:
        return "κ saturates, as for fully dissipative dynamics: the T regime."
    if exponent <= linear:
        return "κ grows about as T, as for almost dissipative dynamics: the T² regime."
    return "κ grows faster than T, and so faster than almost dissipative dynamics let it."
