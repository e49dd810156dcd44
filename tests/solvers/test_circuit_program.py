from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("qiskit_aer")

from qiskit import QuantumCircuit
from qiskit.quantum_info import Statevector

from torch_qsgd.solvers.circuit_program import Program, amplitudes, prepared


@pytest.mark.parametrize("qubits", [1, 2, 5])
@pytest.mark.parametrize("scale", [1.0, -3.0, 1e-200, 1e200])
def test_prepared_state_with_its_sign(qubits: int, scale: float) -> None:
    vector = np.random.default_rng(qubits).standard_normal(2**qubits)
    expected = np.sign(scale) * vector / np.linalg.norm(vector)
    circuit = prepared(scale * vector)
    assert set(circuit.count_ops()) <= {"ry", "ucry"}
    np.testing.assert_allclose(Statevector(circuit).data, expected, atol=1e-12)
    program = Program(circuit, tuple(range(qubits)), {}, 1.0, 0, 2**qubits, 0)
    state, probability = amplitudes(program)
    # Aer keeps the global phase, on which the solution's sign depends.
    np.testing.assert_allclose(state, expected, atol=1e-12)
    assert probability == pytest.approx(1)


def test_inverse_does_not_end_the_process() -> None:
    """As ``StatePreparation(v).inverse()`` would, on Aer 0.18."""
    script = """
from qiskit import QuantumCircuit
from torch_qsgd.solvers.circuit_program import Program, amplitudes, prepared
state = prepared([0.1, -0.4, 0.3, 0.8])
circuit = QuantumCircuit(2)
circuit.compose(state, inplace=True)
circuit.compose(state.inverse(), inplace=True)
print(abs(amplitudes(Program(circuit, (0, 1), {}, 1.0, 0, 4, 0))[0][0]))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert float(run.stdout) == pytest.approx(1)


def test_post_selection_and_order_of_qubits() -> None:
    vector = np.random.default_rng(0).standard_normal(32)
    vector /= np.linalg.norm(vector)
    program = Program(prepared(vector), (4, 0, 2), {3: 1, 1: 0}, 1.0, 0, 8, 0)
    state, probability = amplitudes(program)
    # Bits of i, least significant first, are those of qubits 4, 0 and 2.
    expected = [vector[8 + 16 * (i & 1) + 1 * (i >> 1 & 1) + 4 * (i >> 2 & 1)] for i in range(8)]
    np.testing.assert_allclose(state, expected, atol=1e-12)
    assert probability == pytest.approx(np.sum(np.square(expected)))


def test_the_program_is_left_as_it_was() -> None:
    program = Program(prepared([1.0, 2.0]), (0,), {}, 1.0, 0, 2, 0)
    before = dict(program.circuit.count_ops())
    amplitudes(program)
    assert dict(program.circuit.count_ops()) == before


@pytest.mark.parametrize(("system", "postselect"), [((0,), {}), ((0, 1), {1: 0}), ((0, 2), {})])
def test_every_qubit_must_be_named_once(
    system: tuple[int, ...], postselect: dict[int, int]
) -> None:
    with pytest.raises(ValueError, match="each of the 2 qubits once"):
        amplitudes(Program(QuantumCircuit(2), system, postselect, 1.0, 0, 2, 0))


@pytest.mark.parametrize("vector", [[], [1.0], [1.0, 2.0, 3.0]])
def test_length_must_be_a_power_of_two(vector: list[float]) -> None:
    with pytest.raises(ValueError, match="power of two"):
        prepared(vector)


@pytest.mark.parametrize("vector", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_no_state_holds_it(vector: list[float]) -> None:
    with pytest.raises(ValueError, match=r"no quantum state|NaN or infinity"):
        prepared(vector)
