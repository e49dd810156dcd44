"""HHL as a Qiskit circuit."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from qiskit import QuantumCircuit
from qiskit.circuit.library import QFTGate, UCRYGate, UnitaryGate

from torch_qsgd.linear_system import LinearSystem, Matrix, Vector, length, normalized
from torch_qsgd.solvers.circuit_program import Program, prepared
from torch_qsgd.solvers.hhl import HHL, Clock


def system_qubits(system: LinearSystem) -> int:
    """Qubits that hold the padded, and where needed dilated, right-hand side.

    Example:
        >>> system_qubits(LinearSystem([[2.0, 1.0], [0.0, 3.0]], [1.0, 1.0]))
        2
    """
    padding = max(1, (system.size - 1).bit_length())
    return padding if system.is_symmetric else padding + 1


def hermitian(system: LinearSystem) -> tuple[Matrix, Vector, int]:
    r"""The symmetric matrix the circuit is made for.

    ℒ is padded to a power of two by ‖ℒ‖·I, which lies inside the spectrum and is never reached,
    then put into [[0, ℒ], [ℒᵀ, 0]] where it is not symmetric.

    Returns:
        The matrix, of shape (2^n, 2^n) and norm 1; the right-hand side as a unit vector, of shape
        (2^n,); where in that register the solution begins.
    """
    dilated = not system.is_symmetric
    size = 2 ** (system_qubits(system) - dilated)
    matrix = system.norm * np.eye(size)
    matrix[: system.size, : system.size] = system.dense()
    rhs = np.zeros(size)
    rhs[: system.size] = system.rhs
    if dilated:
        zero = np.zeros_like(matrix)
        matrix = np.block([[zero, matrix], [matrix.T, zero]])
        rhs = np.concatenate([rhs, np.zeros(size)])
    return matrix / system.norm, normalized(rhs)[0], size if dilated else 0


def controlled(unitary: NDArray[np.complex128]) -> UnitaryGate:
    """A unitary controlled by one more qubit, its most significant one.

    As a block-diagonal matrix: ``UnitaryGate.control`` would synthesise gates from the dense
    matrix, which takes a hundred times as long.
    """
    return UnitaryGate(scipy.linalg.block_diag(np.eye(len(unitary)), unitary), check_input=False)


def phase_estimation(matrix: Matrix, clock: Clock) -> QuantumCircuit:
    r"""Phase estimation of :math:`e^{2πi\,span\,M}`, the clock's window included.

    Args:
        matrix: M, symmetric, of shape (2^n, 2^n), with its spectrum in [−1, 1].
        clock: the register, of t qubits, above the system's n.

    Returns:
        A circuit on n + t qubits; t dense gates on n + 1 qubits, besides the Fourier transform.
    """
    system = len(matrix).bit_length() - 1
    register = list(range(system, system + clock.qubits))
    circuit = QuantumCircuit(system + clock.qubits)
    circuit.compose(window(clock), register, inplace=True)
    power = scipy.linalg.expm(2j * np.pi * clock.span * matrix)
    for qubit in register:
        circuit.append(controlled(power), [*range(system), qubit])
        power = power @ power
    circuit.append(QFTGate(clock.qubits).inverse(), register)
    return circuit


def window(clock: Clock) -> QuantumCircuit:
    """The clock's initial state, from gates that can be inverted."""
    if clock.window != "uniform":
        return prepared(clock.amplitudes())
    circuit = QuantumCircuit(clock.qubits)
    circuit.h(range(clock.qubits))
    return circuit


def hhl_program(system: LinearSystem, solver: HHL) -> Program:
    r"""The whole circuit: b, phase estimation, rotation, phase estimation undone.

    Qubits, from the least significant: n for the system, t for the clock, one ancilla. The
    ancilla must be found in 1 and the clock in 0; then :math:`x = ‖b‖/(C‖ℒ‖)` times the system's
    amplitudes.

    Args:
        system: ℒ and b, with D unknowns: n = ⌈log₂ D⌉, and one more where ℒ is not symmetric.
        solver: the clock and C.

    Raises:
        SingularSystemError: where there is no inverse.

    Warns:
        ConditionWarning: where the solver's κ is less than the system's.

    Cost: 2t dense gates on n + 1 qubits stand for 2(2^t − 1) queries; the rotation is 2^t angles,
    which dominate past t = 11.

    Source: [Harrow2009hhl]_ in ``hhl.py``.

    Example:
        >>> program = hhl_program(LinearSystem([[2.0, 0.0], [0.0, 1.0]], [1.0, 1.0]), HHL(3))
        >>> program.circuit.num_qubits, program.postselect
        (5, {4: 1, 1: 0, 2: 0, 3: 0})
    """
    constant = solver.constant(system.condition_number)
    matrix, state, offset = hermitian(system)
    clock = solver.clock
    qubits = len(state).bit_length() - 1
    register = list(range(qubits, qubits + clock.qubits))
    ancilla = qubits + clock.qubits

    circuit = QuantumCircuit(ancilla + 1)
    circuit.compose(prepared(state), range(qubits), inplace=True)
    estimation = phase_estimation(matrix, clock)
    circuit.compose(estimation, range(ancilla), inplace=True)
    angles = 2 * np.arcsin(clock.sines(constant))
    circuit.append(UCRYGate(angles.tolist()), [ancilla, *register])
    circuit.compose(estimation.inverse(), range(ancilla), inplace=True)
    return Program(
        circuit=circuit,
        system=tuple(range(qubits)),
        postselect={ancilla: 1, **dict.fromkeys(register, 0)},
        factor=complex(length(system.rhs) / system.norm / constant),
        offset=offset,
        size=system.size,
        queries=solver.queries,
    )
