"""What solvers are not to be given is refused in the words of a user, one table a module."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sparse
import torch

from torch_qsgd.errors import SingularSystemError
from torch_qsgd.linear_system import LinearSystem
from torch_qsgd.solvers import HHL, QSVT, Circuit, Exact, JetWindow, Noise
from torch_qsgd.solvers.circuit_program import prepared
from torch_qsgd.solvers.inverse_polynomial import inverse_polynomial
from torch_qsgd.solvers.phases import qsp_value, symmetric_phases

#: What no number is, and what no flag, name or count is.
NO_NUMBERS: list[Any] = ["a", [1.0], 2j, True, math.nan, math.inf, 10**400, np.ones(2)]
NO_NAMES: list[Any] = [None, 1, [1], ["sine"], True, b"hhl", ""]
NO_COUNTS: list[Any] = [None, "3", [3], 3.0, 3j, True, math.nan, math.inf]

OPTIONS = [
    (QSVT, "epsilon", [*NO_NUMBERS, None, 0, 1, -0.1, 1e-16]),
    (QSVT, "kind", NO_NAMES),
    (QSVT, "kappa", [*NO_NUMBERS, 1, 0]),
    (QSVT, "subnormalization", [*NO_NUMBERS, 0, -1.0]),
    (HHL, "clock_qubits", [*NO_COUNTS, 0, 21]),
    (HHL, "window", NO_NAMES),
    (HHL, "guard_band", [None, "a", 1, 0.45, []]),
    (HHL, "kappa", [*NO_NUMBERS, 1, 0]),
    (Noise, "epsilon", [*NO_NUMBERS, None, 0, 1]),
    (Noise, "placement", NO_NAMES),
    (Circuit, "algorithm", NO_NAMES),
    (Circuit, "clock_qubits", [*NO_COUNTS, 13]),
    (Circuit, "shots", NO_COUNTS[1:]),
]


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [(kind, option, value) for kind, option, values in OPTIONS for value in values],
    ids=repr,
)
def test_options_of_solvers(kind: Any, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{option}.*got"):
        kind(**{option: value})


def test_numbers_of_numpy_are_numbers() -> None:
    assert QSVT(np.float32(0.1), kappa=np.int64(3)).kappa == 3
    assert HHL(np.int64(3), guard_band=np.bool_(True)).clock.span == 0.45
    assert Circuit(shots=np.int32(10)).shots == 10
    assert Noise(np.float64(0.1)).epsilon == 0.1


@pytest.mark.parametrize("solver", [Exact(), HHL(3), QSVT(), Noise(), Circuit()], ids=str)
def test_systems_and_generators(solver: Any) -> None:
    for given in (None, "system", [[1.0]], np.eye(2), 3):
        with pytest.raises(TypeError, match="takes a LinearSystem or a JetWindow, got"):
            solver.solve(given)
    system = LinearSystem(np.eye(2), [1.0, 1.0])
    for given in (3, 0, "seed", np.random.default_rng(0)):
        with pytest.raises(TypeError, match=r"generator must be a torch\.Generator"):
            solver.solve(system, given)


JET = [torch.ones(2)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], 1), "one jet of one tensor"),
        (([[]], [], 1), "one jet of one tensor"),
        (([JET, []], [], 1), "jets must have the same number"),
        (([JET], [JET, JET * 2], 1), "velocities must have the same number"),
        (([JET], [], -1), "steps"),
        (([JET], [], 1.5), "steps"),
        (([JET], [], 1, (), -1), "idle"),
        (([JET], [JET], 1, [None]), "for each of 2 tensors"),
    ],
)
def test_windows(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JetWindow(*arguments)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        *[(inverse_polynomial, (kind, 10, 0.1), "kind") for kind in NO_NAMES],
        *[
            (inverse_polynomial, ("cks", kappa, 0.1), "kappa must be")
            for kappa in [*NO_NUMBERS, None]
        ],
        *[
            (inverse_polynomial, ("cks", 10, epsilon), "epsilon must be")
            for epsilon in [*NO_NUMBERS, None, 1e-16]
        ],
        *[
            (inverse_polynomial("cks", 3, 0.1), (x,), "^x ")
            for x in (None, "a", 1j, math.nan, 1.01, [0.1, -2])
        ],
        *[
            (symmetric_phases, (c, 1), "coefficients")
            for c in (None, "a", ["a"], [None], [[0.1], [0.1, 0.2]], 0.1, [True, 1j])
        ],
        *[(symmetric_phases, ([0.1], p), "parity") for p in (None, "odd", 2, True, [1], 1.0)],
        *[(qsp_value, (p, 0.1), "phases") for p in (None, [], 0.1, "a", [1j], [math.nan])],
        *[(qsp_value, ([0.1], x), "^x ") for x in (None, "a", 1j, math.nan, 1.01)],
        *[(prepared, (v,), "the vector") for v in (None, "ab", [1j, 0], ["a", "b"], [0.0, 0.0])],
    ],
    ids=repr,
)
def test_functions(function: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        function(*arguments)


def test_singular_system_too_large_for_a_dense_decomposition() -> None:
    diagonal = np.r_[0.0, np.ones(599)]
    system = LinearSystem(sparse.diags_array(diagonal), np.ones(600))
    with pytest.raises(SingularSystemError, match="singular, or too ill-conditioned"):
        QSVT(0.1).solve(system)
