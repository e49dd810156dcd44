from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from qiskit import QuantumCircuit
from qiskit.circuit.library import UnitaryGate
from qiskit.quantum_info import Operator, Statevector

from tests.solvers.test_hhl import signed, system_with
from torch_qsgd.errors import SingularSystemError
from torch_qsgd.linear_system import LinearSystem
from torch_qsgd.solvers.circuit_program import amplitudes
from torch_qsgd.solvers.hhl import HHL, WINDOWS, Clock
from torch_qsgd.solvers.hhl_circuit import (
    controlled,
    hermitian,
    hhl_program,
    phase_estimation,
    system_qubits,
)


def check_agreement(system: LinearSystem, solver: HHL, qubits: int) -> None:
    """The circuit on Aer does what the emulator says: direction, length, sign, probability."""
    program = hhl_program(system, solver)
    assert len(program.system) == qubits
    assert program.circuit.num_qubits == qubits + solver.clock.qubits + 1
    state, probability = amplitudes(program)
    emulated = solver.solve(system)
    assert probability == pytest.approx(emulated.success_probability, abs=1e-9, rel=1e-9)
    read = state[program.offset : program.offset + program.size]
    fidelity = abs(np.vdot(read, emulated.vector)) ** 2 / (
        np.vdot(read, read).real * emulated.scale**2
    )
    assert fidelity == pytest.approx(1.0, abs=1e-9)
    np.testing.assert_allclose(
        program.factor * read, emulated.vector, atol=1e-9 * emulated.scale, rtol=0
    )
    assert program.queries == emulated.queries


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("qubits", "clock"), [(2, 4), (3, 5), (3, 6), (4, 6)])
def test_circuit_equals_emulator(qubits: int, clock: int, symmetric: bool, window: str) -> None:
    size = 2**qubits if symmetric else 2 ** (qubits - 1)
    system = system_with(signed(size, 4.0, seed=qubits), symmetric, seed=clock, scale=2.5)
    check_agreement(system, HHL(clock, window), qubits)


@pytest.mark.parametrize(("size", "symmetric", "qubits"), [(5, True, 3), (3, False, 3)])
def test_padded_circuit_equals_emulator(size: int, symmetric: bool, qubits: int) -> None:
    system = system_with(signed(size, 6.0), symmetric, scale=0.1)
    check_agreement(system, HHL(5), qubits)


@pytest.mark.parametrize(
    "solver", [HHL(4, guard_band=False), HHL(5, kappa=20.0), HHL(5, "uniform", kappa=2.0), HHL(1)]
)
@pytest.mark.filterwarnings("ignore::torch_qsgd.solvers.ConditionWarning")
def test_options_mean_the_same_to_circuit_and_emulator(solver: HHL) -> None:
    check_agreement(system_with(signed(4, 5.0), symmetric=True), solver, 2)


def test_single_unknown_takes_a_qubit() -> None:
    check_agreement(LinearSystem([[-3.0]], [2.0]), HHL(4), 1)


# ---- Its parts -------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "symmetric"), [(4, True), (5, True), (4, False), (3, False)])
def test_hermitian_form_has_the_same_solution_inside_the_spectrum(
    size: int, symmetric: bool
) -> None:
    system = system_with(signed(size, 5.0), symmetric, scale=7.0)
    matrix, state, offset = hermitian(system)
    assert len(matrix) == 2 ** system_qubits(system)
    np.testing.assert_array_equal(matrix, matrix.T)
    values = np.abs(np.linalg.eigvalsh(matrix))
    assert values.max() == pytest.approx(1.0)
    assert values.min() == pytest.approx(1 / 5.0)
    solution = np.linalg.solve(matrix, state) * np.linalg.norm(system.rhs) / system.norm
    np.testing.assert_allclose(solution[offset : offset + size], system.solution, rtol=1e-10)
    rest = np.delete(solution, np.arange(offset, offset + size))
    np.testing.assert_allclose(rest, 0, atol=1e-12)


def test_block_diagonal_gate_is_the_controlled_gate() -> None:
    generator = np.random.default_rng(3).standard_normal((4, 4))
    unitary = np.linalg.qr(generator + 1j * generator.T)[0]
    ours, theirs = QuantumCircuit(3), QuantumCircuit(3)
    ours.append(controlled(unitary), [0, 1, 2])
    theirs.append(UnitaryGate(unitary).control(1), [2, 0, 1])
    np.testing.assert_allclose(Operator(ours).data, Operator(theirs).data, atol=1e-10)


@pytest.mark.parametrize(("value", "register"), [(0.625, 5), (-0.25, 14), (-1.0, 8)])
def test_phase_estimation_finds_an_eigenvalue_on_the_grid(value: float, register: int) -> None:
    """With 4 clock qubits and no guard band k/8 is exact, and the uniform window sure of it."""
    matrix = np.diag([1 / 3, value])
    circuit = QuantumCircuit(5)
    circuit.x(0)
    circuit.compose(phase_estimation(matrix, Clock(4, "uniform", 0.5)), inplace=True)
    probabilities = Statevector(circuit).probabilities(range(1, 5))
    assert probabilities[register] == pytest.approx(1.0, abs=1e-12)


def test_circuit_is_made_of_gates_that_need_no_dense_control() -> None:
    program = hhl_program(system_with(signed(4, 3.0), symmetric=True), HHL(4))
    wide = [step for step in program.circuit.data if isinstance(step.operation, UnitaryGate)]
    assert len(wide) == 2 * 4
    assert {step.operation.num_qubits for step in wide} == {3}
    assert program.postselect == {6: 1, 2: 0, 3: 0, 4: 0, 5: 0}


def test_singular_system_is_refused() -> None:
    with pytest.raises(SingularSystemError, match="singular"):
        hhl_program(LinearSystem([[1.0, 1.0], [1.0, 1.0]], [1.0, 0.0]), HHL(4))


def test_process_survives_the_inverted_window() -> None:
    """Inverting ``StatePreparation`` ends the process on Aer 0.18, without an exception."""
    script = """
import warnings
warnings.simplefilter("error", DeprecationWarning)
from torch_qsgd.linear_system import LinearSystem
from torch_qsgd.solvers.circuit_program import amplitudes
from torch_qsgd.solvers.hhl import HHL
from torch_qsgd.solvers.hhl_circuit import hhl_program
program = hhl_program(LinearSystem([[2.0, 1.0], [0.0, 1.0]], [1.0, -1.0]), HHL(5, "sine"))
state, probability = amplitudes(program)
print("probability", probability)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout.split()[1]) < 1
