from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sparse

from tests.solvers.test_qsvt import random_system
from torch_qsgd.errors import SizeError
from torch_qsgd.linear_system import LinearSystem
from torch_qsgd.solvers.qsvt import QSVT

pytest.importorskip("qiskit_aer")

from torch_qsgd.solvers import ConditionWarning
from torch_qsgd.solvers.circuit_program import amplitudes
from torch_qsgd.solvers.qsvt_circuit import qsvt_program


def check(system: LinearSystem, solver: QSVT) -> None:
    """The circuit, run by Aer, returns what the emulator does."""
    expected = solver.solve(system)
    program = qsvt_program(system, solver)
    state, probability = amplitudes(program)
    found = program.factor * state[program.offset : program.offset + program.size]
    overlap = abs(np.vdot(found, expected.vector)) / (np.linalg.norm(found) * expected.scale)
    assert overlap**2 == pytest.approx(1, abs=1e-10)
    assert probability == pytest.approx(expected.success_probability, rel=1e-9)
    # Scale, sign and phase too, and nothing in the padding.
    np.testing.assert_allclose(found, expected.vector, rtol=0, atol=1e-10 * expected.scale)
    np.testing.assert_allclose(state[program.size :], 0, atol=1e-10)
    assert program.queries == expected.queries


@pytest.mark.parametrize("kind", ["relative", "absolute", "cks"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 8, 13])
def test_circuit_equals_emulator(size: int, kind: str) -> None:
    check(random_system(size, kappa=6, seed=size), QSVT(1e-2, kind))


@pytest.mark.parametrize(
    ("size", "kappa", "epsilon"), [(5, 50, 1e-3), (16, 10, 1e-9), (50, 20, 1e-3), (8, 300, 1e-2)]
)
def test_hard_and_large_systems(size: int, kappa: float, epsilon: float) -> None:
    check(random_system(size, kappa, seed=size), QSVT(epsilon))


@pytest.mark.parametrize("epsilon", [0.5, 0.2, 0.1, 0.05])
def test_sign_for_either_remainder_of_the_degree(epsilon: float) -> None:
    check(random_system(4, kappa=3, seed=11), QSVT(epsilon))


def test_both_remainders_were_met() -> None:
    system = random_system(4, kappa=3, seed=11)
    degrees = {QSVT(epsilon).solve(system).queries % 4 for epsilon in (0.5, 0.2, 0.1, 0.05)}
    assert degrees == {1, 3}


def test_subnormalization_and_given_kappa() -> None:
    check(random_system(5, kappa=4, seed=12), QSVT(1e-2, kappa=30, subnormalization=10.0))


def test_negative_rhs_and_sparse_matrix() -> None:
    """Forward substitution: x = −(1, 2, 4, 8, 16)."""
    matrix = sparse.diags_array([np.ones(5), np.full(4, -2.0)], offsets=[0, -1], format="csr")
    system = LinearSystem(matrix, [-1.0, 0.0, 0.0, 0.0, 0.0])
    solver = QSVT(1e-8, subnormalization=3.5)
    check(system, solver)
    program = qsvt_program(system, solver)
    found = (program.factor * amplitudes(program)[0][: program.size]).real
    np.testing.assert_allclose(found, [-1, -2, -4, -8, -16], atol=1e-6)


def test_orthogonal_matrix() -> None:
    check(random_system(4, kappa=1, seed=13), QSVT(1e-3))


def test_gates() -> None:
    system = random_system(5, kappa=4, seed=14)
    program = qsvt_program(system, QSVT(1e-2))
    counts = program.circuit.count_ops()
    assert program.circuit.num_qubits == math.ceil(math.log2(5)) + 2
    assert program.circuit.num_clbits == 0
    # One block encoding or its inverse a query, one pair of phases around each.
    assert counts["unitary"] == program.queries
    assert counts["rzz"] == program.queries + 1
    assert set(counts) <= {"unitary", "rzz", "h", "ry", "ucry"}
    assert program.postselect == {3: 0, 4: 0}
    assert program.system == (0, 1, 2)


def test_small_kappa_warns_and_agrees() -> None:
    with pytest.warns(ConditionWarning):
        check(random_system(4, kappa=9, seed=15), QSVT(1e-2, kappa=3))


def test_too_large_a_system() -> None:
    system = LinearSystem(sparse.eye_array(513), np.ones(513))
    with pytest.raises(SizeError, match="`qsvt` solver"):
        qsvt_program(system, QSVT())
