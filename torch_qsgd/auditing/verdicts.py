"""From measurements to findings: each with its threshold, verdict and one plain sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch_qsgd.auditing.plan import Plan
from torch_qsgd.auditing.thresholds import Thresholds
from torch_qsgd.auditing.verdicts_dynamics import (
    dissipative_dynamics,
    small_learning_rate,
    well_conditioned_system,
)
from torch_qsgd.auditing.verdicts_sizes import (
    efficient_download,
    efficient_upload,
    explicit_gradients,
    sparse_model,
    sparse_parameters,
)
from torch_qsgd.report.content import Report
from torch_qsgd.report.findings import Finding

#: One an assumption, in the order of ``ASSUMPTIONS``.
_JUDGES: tuple[Callable[[Report, Plan, Thresholds], Iterator[Finding]], ...] = (
    dissipative_dynamics,
    small_learning_rate,
    sparse_parameters,
    sparse_model,
    well_conditioned_system,
    efficient_upload,
    efficient_download,
    explicit_gradients,
)


def findings(report: Report, plan: Plan, limits: Thresholds) -> list[Finding]:
    """All findings that a report's measurements allow; the others cannot tell.

    Args:
        report: with the measurements made so far.
        plan: what was asked for.
        limits: the thresholds.

    Returns:
        In the order of :data:`torch_qsgd.report.findings.ASSUMPTIONS`.

    Cost: none to speak of.
    """
    return [finding for judge in _JUDGES for finding in judge(report, plan, limits)]
