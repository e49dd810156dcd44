"""Query counts against the table they were taken from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from torch_qsgd.linear_system import LinearSystem
from torch_qsgd.solvers import HHL
from torch_qsgd.solvers.inverse_polynomial import inverse_polynomial
from torch_qsgd.solvers.queries import (
    ADIABATIC_PROVEN,
    amplification_rounds,
    discrete_adiabatic,
    hhl,
    jennings,
    jennings_success,
    shortcut,
    shortcut_known_norm,
)

KAPPAS = (10, 50, 100, 1000)


def degree(kind: str) -> Callable[[float, float], float]:
    return lambda kappa, epsilon: inverse_polynomial(kind, kappa, epsilon).degree


@pytest.mark.parametrize(
    ("count", "column"),
    [
        (jennings, "2.4e3 1.1e4 2.3e4 2.7e5"),
        (shortcut, "670 3.3e3 6.6e3 6.4e4"),
        (shortcut_known_norm, "80 397 795 8.0e3"),
        (discrete_adiabatic, "94 472 944 9.4e3"),
        (degree("absolute"), "93 541 1153 13817"),
        (degree("relative"), "75 379 761 7601"),
        (degree("cks"), "239 1417 3033 36973"),
    ],
    ids=["jennings", "shortcut", "known", "adiabatic", "absolute", "relative", "cks"],
)
def test_the_table(count: Callable[[float, float], float], column: str) -> None:
    for kappa, entry in zip(KAPPAS, column.split(), strict=True):
        digits, _, exponent = entry.partition("e")
        last = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
        # Half of the last digit, and a little: 79.476 has become 80 by way of 79.5.
        assert abs(count(kappa, 1e-3) - float(entry)) < 0.53 * last


def test_the_check_values_of_jennings() -> None:
    assert jennings(50, 1e-3, 2) == pytest.approx(19825.72, abs=0.005)
    assert jennings(1000, 1e-6) == pytest.approx(281028.09, abs=0.005)
    assert jennings_success(0.5) == pytest.approx(0.2895)


def test_the_proven_constant_of_the_walk() -> None:
    assert discrete_adiabatic(100, 1e-3, ADIABATIC_PROVEN) == pytest.approx(
        2305 * 100 + 100 * math.log(2000)
    )


def test_hhl_is_the_emulators_own_count() -> None:
    system = LinearSystem([[2.0, 1.0], [1.0, 3.0]], [1.0, -1.0])
    for qubits in (1, 5, 10):
        assert hhl(qubits) == HHL(qubits).solve(system).queries == 2 * (2**qubits - 1)


@pytest.mark.parametrize("probability", [1e-9, 1e-4, 0.01, 0.1, 0.3, 0.7, 0.99, 1.0])
def test_amplification_reaches_near_one(probability: float) -> None:
    rounds = amplification_rounds(probability)
    angle = math.asin(math.sqrt(probability))
    reached = math.sin((2 * rounds + 1) * angle) ** 2
    # The angle ends within one of a right one: Brassard et al., theorem 3.
    assert reached >= max(1 - probability, probability) - 1e-12
    assert rounds == math.floor(math.pi / (4 * angle))


BAD: list[Any] = [None, "a", [1.0], 2j, True, math.nan, math.inf, 0, -1]


@pytest.mark.parametrize("value", BAD, ids=repr)
def test_bad_input(value: Any) -> None:
    for count in (jennings, shortcut, shortcut_known_norm, discrete_adiabatic):
        with pytest.raises(ValueError, match="kappa must be"):
            count(value, 1e-3)
        with pytest.raises(ValueError, match="epsilon must be"):
            count(10, value)
    with pytest.raises(ValueError, match="subnormalization must be"):
        jennings(10, 1e-3, value)
    with pytest.raises(ValueError, match="constant must be"):
        discrete_adiabatic(10, 1e-3, value)
    with pytest.raises(ValueError, match="epsilon must be"):
        jennings_success(value)
    with pytest.raises(ValueError, match="clock_qubits must be"):
        hhl(value)
    with pytest.raises(ValueError, match="probability must be"):
        amplification_rounds(value)
    with pytest.raises(ValueError, match="probability must be"):
        amplification_rounds(1.5)
