r"""Physical qubits and wall time of one copy: one run that ends in one measurement.

The Azure Quantum resource estimator [Beverland2022]_, in the optional package ``qdk``, lays Q
logical qubits out as

.. math:: Q' = 2Q + \lceil \sqrt{8Q} \rceil + 1

tiles of a surface code, runs one T gate a logical cycle, and feeds them from T factories. The
layout depends on two error rates only, half of the error budget for each: :math:`\epsilon / 2Q'M`
a tile and cycle, :math:`\epsilon / 2M` a T state, with M T gates. So M gates within a budget
:math:`\epsilon` need the same computer as :math:`M/s` gates within :math:`\epsilon/s`, for s times
as long; give or take one T factory, as whole numbers divide. That matters because the estimator
counts in 64-bit integers and does not look whether they overflow: above about 10¹⁵ T gates its run
time is too short, where :math:`Q'M` passes 2⁶⁴ its code distance is too small, and at some sizes it
does not return. Here it is asked about M/s gates only, with s such that none of this can happen.

.. [Beverland2022] M. E. Beverland et al., Assessing requirements to scale to practical quantum
   advantage, arXiv:2211.07629.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, isqrt
from typing import Any

from torch_qsgd.checks import require_integer, require_number
from torch_qsgd.errors import SizeError
from torch_qsgd.resources.ledger import Ledger

#: Logical qubits of the largest computer that is estimated.
MOST_QUBITS = 10**12
#: T gates, and tiles times T gates, that the estimator is asked about; both far from 2^63, for a
#: cycle takes up to 2·10⁴ ns, and a factory's run up to about 10⁶ ns.
_MOST_GATES, _MOST_VOLUME = 10**12, 10**18
#: What the estimator wants to be told; all but qubits and T gates are zero here.
_COUNTS = (
    "numQubits",
    "tCount",
    "rotationCount",
    "rotationDepth",
    "cczCount",
    "ccixCount",
    "measurementCount",
)
#: Any of these variables, where set, is the user's word on telemetry.
_TELEMETRY = ("QDK_PYTHON_TELEMETRY", "QSHARP_PYTHON_TELEMETRY")


class PhysicalUnavailable(ImportError):
    """The optional package ``qdk``, which makes physical estimates, is not installed."""


@dataclass(frozen=True)
class PhysicalCost:
    """The computer that runs one copy, and how long it takes.

    Attributes:
        physical_qubits: of tiles and T factories.
        seconds: of wall time.
        code_distance: of the surface code.
        tiles: Q', logical qubits with those that route between them.
        factories: T factories that work at once.
        cycle_seconds: one logical cycle, which one T gate takes.
        error_budget: the probability that the run fails, and nobody sees it.
    """

    physical_qubits: int
    seconds: float
    code_distance: int
    tiles: int
    factories: int
    cycle_seconds: float
    error_budget: float

    def for_ledger(self) -> dict[str, float]:
        """What :class:`.WindowSize` takes as ``physical``."""
        return {
            "physical_qubits": float(self.physical_qubits),
            "seconds_per_copy": self.seconds,
            "error_budget": self.error_budget,
        }


def physical_cost(t_gates: float, logical_qubits: int, error_budget: float = 1 / 3) -> PhysicalCost:
    """Physical qubits and wall time of one run that ends in one measurement.

    The estimator's default computer is meant: gates of 50 ns, measurements of 100 ns, errors of
    1e-3 each, the surface code at a distance of 50 at most, as many T factories as keep up. Such a
    computer does not exist yet.

    Args:
        t_gates: M of the run, above 0; rounded up to a whole number.
        logical_qubits: Q, from 1 to 10¹², without those that route.
        error_budget: probability that the run fails, in (0, 1).

    Raises:
        PhysicalUnavailable: without ``qdk``; an ``ImportError``.
        ValueError: for a number out of its range.
        SizeError: where no code up to distance 50, or no T factory, keeps the errors low enough.

    Cost: a few milliseconds, and a tenth of a second for the first import of ``qdk``, which then
    sends no telemetry, unless a variable ``QDK_PYTHON_TELEMETRY`` asks for it.

    Source: [Beverland2022]_, as in ``qdk.estimator``; that M and ε may be divided by the same
    number is ours.

    Example:
        >>> cost = physical_cost(1e10, 120)
        >>> f"{cost.physical_qubits:.0e} qubits for {cost.seconds / 86400:.0f} days"
        '8e+05 qubits for 1 days'
    """
    t_gates = require_number("t_gates", t_gates, 0)
    qubits = require_integer("logical_qubits", logical_qubits, 1, MOST_QUBITS)
    budget = require_number("error_budget", error_budget, 0, 1)
    estimator = _estimator()
    tiles = 2 * qubits + isqrt(8 * qubits - 1) + 2  # ⌈√k⌉ = ⌊√(k−1)⌋ + 1
    gates = min(ceil(t_gates), _MOST_GATES, _MOST_VOLUME // tiles)
    scale = max(t_gates / gates, 1.0)
    counts = dict.fromkeys(_COUNTS, 0) | {"numQubits": qubits, "tCount": gates}
    try:
        found = estimator.LogicalCounts(counts).estimate({"errorBudget": budget / scale})
    except estimator.EstimatorError as error:
        raise SizeError(
            f"no code of distance up to 50, or no T factory, keeps {t_gates:.3g} T gates on "
            f"{qubits:,} logical qubits within an error budget of {budget:.3g}: this is beyond the "
            "resource estimator; allow a larger error_budget, or fewer T gates"
        ) from error
    counted, breakdown = found["physicalCounts"], found["physicalCounts"]["breakdown"]
    cycle = found["logicalQubit"]["logicalCycleTime"] * 1e-9
    return PhysicalCost(
        physical_qubits=int(counted["physicalQubits"]),
        seconds=breakdown["logicalDepth"] * scale * cycle,
        code_distance=int(found["logicalQubit"]["codeDistance"]),
        tiles=int(breakdown["algorithmicLogicalQubits"]),
        factories=int(breakdown["numTfactories"]),
        cycle_seconds=cycle,
        error_budget=budget,
    )


def physical_of(ledger: Ledger, error_budget: float | None = None) -> PhysicalCost:
    """Physical qubits and wall time of one copy, by a ledger's own T gates and logical qubits.

    A copy that failed unseen is read like a good one. A share of them shifts the probabilities that
    the readout estimates by that share, and so the displacement by up to its square root: the
    budget is δ² at most, and not the estimator's own 1/3.

    Args:
        ledger: made by :func:`torch_qsgd.resources.ledger`; its lines with tables in QROAM.
        error_budget: as of :func:`physical_cost`; by default δ², of the ledger's readout error.

    Raises:
        PhysicalUnavailable: without ``qdk``; an ``ImportError``.
        SizeError: as :func:`physical_cost`, and where a line is infinite or beyond 10¹² qubits.

    Cost: as of :func:`physical_cost`.

    Example:
        >>> from torch_qsgd.resources import WindowSize, ledger
        >>> found = ledger(WindowSize(parameters=10**6, active=10**5, steps=10))
        >>> physical_of(found).for_ledger().keys()
        dict_keys(['physical_qubits', 'seconds_per_copy', 'error_budget'])
    """
    gates, qubits = ledger["copy_qroam"], ledger["logical_qubits"]
    if not (gates <= sys.float_info.max and qubits <= MOST_QUBITS):
        raise SizeError(
            f"one copy takes {gates:.3g} T gates on {qubits:.3g} logical qubits, and the resource "
            f"estimator is asked about finite numbers and {MOST_QUBITS:.0e} qubits at most"
        )
    if error_budget is None:
        error_budget = max(float(ledger.window["readout_error"]) ** 2, sys.float_info.min)
    return physical_cost(gates, round(qubits), error_budget)


def require_qdk() -> None:
    """Say how to install ``qdk`` where it is missing.

    Raises:
        PhysicalUnavailable: where it is.
    """
    if importlib.util.find_spec("qdk") is None:
        raise PhysicalUnavailable(
            "a physical estimate needs qdk, which is not installed: "
            'pip install "torch_qsgd[physical]"'
        )


def _estimator() -> Any:
    require_qdk()
    with _silent():
        from qdk import estimator
    return estimator


@contextmanager
def _silent() -> Iterator[None]:
    """A first import of ``qdk`` asks these variables whether to report to its makers."""
    if "qdk" in sys.modules or any(name in os.environ for name in _TELEMETRY):
        yield
        return
    os.environ.update(dict.fromkeys(_TELEMETRY, "none"))
    try:
        yield
    finally:
        for name in _TELEMETRY:
            del os.environ[name]
