r"""What can be proven of the truncation error of a real network's window.

The bounds of :mod:`torch_qsgd.carleman.bounds` need the norms of the update map only:
:math:`\|G_0\| = \max_t \|\eta g_t\|`, measured; :math:`\|G_1\| = \max |1 - \eta\lambda|`, from
both ends of the spectrum and their residual bounds, on the spectrum's batches;
:math:`\|G_2\| = \frac{\eta}{2} \|\nabla^3 L\|`, of which a power iteration gives a lower bound.
They prove something where the loss is a polynomial of degree 2, for then :math:`G_2 = 0` and
nothing is left out. Elsewhere they say how large a bound would be at least; and that a bound is
large, or a certificate missing, refutes nothing, for both are sufficient only.
"""

from __future__ import annotations

import math

from torch_qsgd.auditing.plan import Plan
from torch_qsgd.auditing.thresholds import Thresholds
from torch_qsgd.carleman import (
    Certificate,
    NoCertificate,
    PolynomialMap,
    certificate,
    homogeneous_bound,
)
from torch_qsgd.report.content import Report
from torch_qsgd.report.findings import Finding, Verdict
from torch_qsgd.report.numbers import number

_WHAT, _QUANTITY = "small learning rate", "proven bound of the window error"


def map_norms(report: Report) -> tuple[float, float, float] | None:
    """‖G_0‖, ‖G_1‖ and ‖G_2‖ as measured; ``None`` where one of them is not known."""
    records = report.monitor.records if report.monitor is not None else []
    spectra = [(r.spectrum, r.dynamics) for r in records if r.spectrum is not None]
    found = report.truncation
    if not spectra or found is None or math.isnan(found.cubic):
        return None
    spectrum, dynamics = spectra[0]
    ends = [
        spectrum.lambda_min - spectrum.lambda_min_bound,
        spectrum.lambda_max + spectrum.lambda_max_bound,
    ]
    if not all(map(math.isfinite, [*ends, found.forcing, found.cubic])):
        return None
    return found.forcing, float(dynamics.multipliers(ends).max()), found.cubic


def window_certificate(
    norms: tuple[float, float, float], steps: int, order: int
) -> Certificate | NoCertificate:
    """The certificate of a map with these norms; it depends on nothing else.

    Example:
        >>> window_certificate((0.01, 0.8, 0.1), steps=20, order=4).bound(4) < 1e-4
        True
    """
    forcing, linear, quadratic = norms
    step = PolynomialMap([forcing], [[linear]], [[quadratic]])
    return certificate(step, steps, order=order)


def certified(report: Report, plan: Plan, limits: Thresholds) -> Finding:
    """The bound at the audit's order, of the homogeneous form, relative to the displacement."""
    norms, found = map_norms(report), report.truncation

    def finding(value: float, verdict: Verdict, sentence: str) -> Finding:
        return Finding(_WHAT, _QUANTITY, value, "", "≤", limits.window_error, verdict, sentence)

    if norms is None or found is None:
        why = "The norms of the update map were not measured."
        return finding(math.nan, "cannot tell", why)
    if plan.momentum:
        why = "The bound is of steps without momentum."
        return finding(math.nan, "cannot tell", why)
    forcing, linear, quadratic = norms
    step = PolynomialMap([forcing], [[linear]], [[quadratic]])
    moved = math.sqrt(max(sum(map(sum, found.grams[-1])), 0.0)) if found.grams else 0.0
    bound = homogeneous_bound(step, plan.window, plan.order)
    value = bound / moved if moved else math.inf
    listed = ", ".join(
        f"‖G_{q}‖ {relation} {number(norm)}"
        for q, (relation, norm) in enumerate(zip("=≈≥", norms, strict=True))
    )
    proof = window_certificate(norms, plan.window, plan.order)
    closure = (
        f"the standard closure's certificate has q = {number(proof.q)}, ρ = {number(proof.rho)}"
        if proof
        else f"the standard closure has {proof}"
    )
    if found.kinks or found.smooth_degree != 2:
        why = "the loss has kinks" if found.kinks else "the loss is no quadratic polynomial"
        return finding(
            value,
            "cannot tell",
            f"No proof, for {why}; with {listed} a bound would be at least this, and "
            f"{closure.rstrip('.')}.",
        )
    verdict: Verdict = "holds" if value <= limits.window_error else "cannot tell"
    return finding(
        value,
        verdict,
        f"The loss is quadratic, so that each batch's map is affine; with {listed}, {closure}.",
    )
