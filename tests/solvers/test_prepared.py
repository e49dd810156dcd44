"""State preparation of vectors whose entries lie far apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qiskit.quantum_info import Statevector

from torch_qsgd.linear_system import LinearSystem
from torch_qsgd.solvers import HHL, Circuit
from torch_qsgd.solvers.circuit_program import prepared


@given(qubits=st.integers(1, 5), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_entries_over_twelve_decades_keep_their_signs(qubits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = 2**qubits
    vector = rng.standard_normal(size) * 10.0 ** rng.integers(-12, 1, size)
    vector[rng.random(size) < 0.2] = 0
    if not vector.any():
        vector[0] = -1
    circuit = prepared(vector)
    expected = vector / np.linalg.norm(vector)
    np.testing.assert_allclose(Statevector(circuit).data, expected, atol=1e-10)
    back = Statevector(circuit.compose(circuit.inverse())).data
    assert abs(back[0]) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_a_circuit_agrees_with_its_emulator_where_b_has_tiny_entries(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((16, 16)) + 4 * np.eye(16)
    rhs = rng.standard_normal(16) * np.where(rng.random(16) < 0.3, 1e-7, 1)
    system = LinearSystem(matrix, rhs)
    run, emulated = Circuit("hhl", clock_qubits=5).solve(system), HHL(5).solve(system)
    np.testing.assert_allclose(run.vector, emulated.vector, atol=1e-10 * emulated.scale)
    assert run.success_probability == pytest.approx(emulated.success_probability, rel=1e-9)
