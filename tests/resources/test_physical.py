"""Physical estimates against the estimator itself where it is right, and beyond."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_qsgd.errors import SizeError
from torch_qsgd.resources import WindowSize, ledger, physical
from torch_qsgd.resources.physical import PhysicalUnavailable, physical_cost, physical_of

DAY = 86400
estimator = pytest.importorskip("qdk.estimator", reason="needs qdk")


def asked(t_gates: int, qubits: int, budget: float = 1 / 3) -> dict[str, Any]:
    """The estimator's own answer, right while its products stay below 2^64."""
    names = ("rotationCount", "rotationDepth", "cczCount", "ccixCount", "measurementCount")
    counts = {"numQubits": qubits, "tCount": t_gates, **dict.fromkeys(names, 0)}
    return estimator.LogicalCounts(counts).estimate({"errorBudget": budget})


def assert_same(t_gates: int, qubits: int, budget: float, shared: bool = False) -> None:
    """Of a share of the gates: one factory more or less, as a whole number of runs divides."""
    theirs, ours = asked(t_gates, qubits, budget), physical_cost(t_gates, qubits, budget)
    counts = theirs["physicalCounts"]
    assert ours.code_distance == theirs["logicalQubit"]["codeDistance"]
    assert ours.tiles == counts["breakdown"]["algorithmicLogicalQubits"]
    assert abs(ours.factories - counts["breakdown"]["numTfactories"]) <= shared
    factory = theirs["tfactory"]["physicalQubits"]
    assert abs(ours.physical_qubits - counts["physicalQubits"]) <= shared * factory
    accuracy = 1e-7 if shared else 1e-12
    assert ours.seconds == pytest.approx(counts["runtime"] * 1e-9, rel=accuracy)


def test_the_reference_of_ten_billion_t_gates():
    # Another version of the estimator: 6.6e5 qubits and 2.5 days.
    cost = physical_cost(1e10, 120, error_budget=1 / 3)
    assert 3e5 < cost.physical_qubits < 1.5e6
    assert 0.5 < cost.seconds / DAY < 5
    assert cost.seconds == pytest.approx(1e10 * cost.cycle_seconds)
    assert cost.tiles == 2 * 120 + math.ceil(math.sqrt(8 * 120)) + 1


@given(
    st.floats(0, 14).map(lambda x: int(10**x)),
    st.floats(0, 4).map(lambda x: int(10**x)),
    st.floats(-4, -0.1).map(lambda x: 10**x),
)
@settings(max_examples=60, deadline=None)
def test_it_agrees_with_the_estimator_where_that_does_not_overflow(
    t_gates: int, qubits: int, budget: float
):
    assert_same(t_gates, qubits, budget)


@given(
    st.floats(10, 14).map(lambda x: int(10**x)),
    st.floats(0, 4).map(lambda x: int(10**x)),
    st.floats(-2, -0.1).map(lambda x: 10**x),
)
@settings(max_examples=60, deadline=None)
def test_a_share_of_the_gates_within_that_share_of_the_budget_needs_the_same_computer(
    t_gates: int, qubits: int, budget: float
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(physical, "_MOST_GATES", 10**9)
        assert_same(t_gates, qubits, budget, shared=True)


def test_beyond_64_bits_time_and_distance_go_on_growing():
    # Asked about 10^18 gates, the estimator says 66 thousand days: its product has overflowed.
    assert asked(10**18, 120)["physicalCounts"]["runtime"] * 1e-9 < 1e5 * DAY
    costs = [physical_cost(10.0**k, 120) for k in range(12, 23)]
    for less, more in itertools.pairwise(costs):
        assert 10 <= more.seconds / less.seconds < 12
        assert less.code_distance <= more.code_distance <= less.code_distance + 2
    assert costs[6].seconds == pytest.approx(1e18 * costs[6].cycle_seconds)
    # Nor does its distance know of 2·10^12 tiles times 10^12 gates: it is that of less than that.
    distances = [asked(10**12, 10**k)["logicalQubit"]["codeDistance"] for k in (6, 12)]
    ours = [physical_cost(1e12, 10**k).code_distance for k in (6, 9, 12)]
    assert distances[1] < ours[2]
    assert ours[0] == distances[0] < ours[1] < ours[2]


def test_sizes_at_which_the_estimator_itself_does_not_return_are_answered():
    with pytest.raises(SizeError, match="100,000,000 logical qubits"):
        physical_cost(1e18, 10**8)
    assert physical_cost(1e16, 10**8).code_distance == 47


def test_a_fraction_of_a_gate_is_a_whole_one():
    assert physical_cost(0.2, 5) == physical_cost(1, 5)
    assert physical_cost(1.5, 5) == physical_cost(2, 5)


def test_beyond_the_surface_code_is_said_so():
    for t_gates in (1e28, 1e300):
        with pytest.raises(SizeError, match=r"keeps 1e\+\d+ T gates on 120 logical .* budget of"):
            physical_cost(t_gates, 120)


def test_of_a_ledger_is_of_its_one_copy():
    found = ledger(WindowSize(parameters=10**6, active=10**5, steps=10))
    cost = physical_of(found)
    # Of 0.1² of the copies at most nobody sees that they failed.
    assert cost == physical_cost(found["copy_qroam"], int(found["logical_qubits"]), 0.1**2)
    loose = physical_of(found, 1 / 3)
    assert loose == physical_cost(found["copy_qroam"], int(found["logical_qubits"]), 1 / 3)
    assert loose.code_distance <= cost.code_distance
    assert cost.for_ledger() == {
        "physical_qubits": cost.physical_qubits,
        "seconds_per_copy": cost.seconds,
        "error_budget": 0.1**2,
    }
    size = WindowSize(parameters=10**6, active=10**5, steps=10, physical=cost.for_ledger())
    assert ledger(size)["seconds_copy"] == cost.seconds
    lines = {entry.key: entry for entry in ledger(size).entries}
    assert lines["error_budget"].value == 0.1**2
    assert "δ² = 0.01" in lines["error_budget"].formula


def test_of_an_infinite_ledger_there_is_none():
    found = ledger(WindowSize(parameters=10**6, active=10**5, steps=10, kappa=math.inf))
    with pytest.raises(SizeError, match="inf T gates"):
        physical_of(found)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 120), "t_gates must be a number above 0"),
        ((math.inf, 120), "t_gates"),
        ((math.nan, 120), "t_gates"),
        (("many", 120), "t_gates"),
        ((1e9, 0), "logical_qubits must be an integer of at least 1"),
        ((1e9, 1.5), "logical_qubits"),
        ((1e9, 10**13), "at most 1,000,000,000,000"),
        ((1e9, 120, 0), "error_budget"),
        ((1e9, 120, 1), "error_budget must be a number above 0 and below 1"),
    ],
)
def test_bad_numbers_are_refused(arguments: tuple[Any, ...], words: str):
    with pytest.raises(ValueError, match=words):
        physical_cost(*arguments)


def test_without_qdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(physical.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PhysicalUnavailable, match=r'pip install "torch_qsgd\[physical\]"'):
        physical_cost(1e9, 120)
    assert issubclass(PhysicalUnavailable, ImportError)


def test_nothing_is_sent_by_importing_qdk_and_the_environment_stays():
    script = """
import os
for name in ("QDK_PYTHON_TELEMETRY", "QSHARP_PYTHON_TELEMETRY"):
    os.environ.pop(name, None)
before = dict(os.environ)
from torch_qsgd.resources.physical import physical_cost
physical_cost(1e6, 10)
from qdk import telemetry
assert dict(os.environ) == before
assert not telemetry.TELEMETRY_ENABLED
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
