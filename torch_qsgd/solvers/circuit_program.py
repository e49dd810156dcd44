"""A linear solver as a Qiskit circuit, and the statevector run that reads its solution.

Needs Qiskit and Aer (the ``quantum`` extra), so nothing imports this file but what builds circuits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from qiskit import QuantumCircuit, transpile
from qiskit.circuit.library import UCRYGate
from qiskit_aer import AerSimulator
from qiskit_aer.library import SaveStatevector

from torch_qsgd.linear_system import real_array


@dataclass(frozen=True)
class Program:
    r"""A solver's circuit and how to read the solution of :math:`\mathcal{L} x = b` from it.

    ``x = Re(factor * amplitudes[offset : offset + size])``, where the amplitudes are those of the
    system register in the branch of ``postselect``, not normalised again: their squared length is
    the success probability. ``factor`` holds scale, sign and any known global phase.

    Attributes:
        circuit: without measurements; all qubits start in :math:`|0\rangle`.
        system: the qubits that hold the solution, least significant first.
        postselect: from a qubit to the value it must have; with ``system`` it names every qubit.
        factor: from post-selected amplitudes to the solution.
        offset: where the solution starts in the system register.
        size: D, the number of unknowns.
        queries: how often one run calls ℒ.
    """

    circuit: QuantumCircuit
    system: tuple[int, ...]
    postselect: dict[int, int]
    factor: complex
    offset: int
    size: int
    queries: int


def prepared(vector: ArrayLike) -> QuantumCircuit:
    r"""A circuit that takes :math:`|0\rangle` to :math:`v / \|v\|`, by multiplexed rotations.

    From the most significant qubit on, each is turned by :math:`2\,\mathrm{atan2}` of the lengths
    of the halves of v that its values stand for, given the qubits before it; the last one by the
    entries themselves, with their signs.

    Qiskit's own ``StatePreparation`` is not used: entries some 1e-8 of the largest make it flip
    signs or fail (Qiskit 2.6), and its inverse ends the Python process on Aer 0.18. This circuit
    may be inverted and controlled.

    Args:
        vector: v, real, of shape (2**n,) with n ≥ 1.

    Raises:
        ValueError: for a length that is no power of two from 2 on, or a vector that is zero or
            not finite.

    Cost: at most 2**n − 2 ``cx`` gates and 2**n − 1 rotations.

    Source: Möttönen, Vartiainen, Bergholm and Salomaa, arXiv:quant-ph/0407010.

    Example:
        >>> prepared([3.0, 4.0]).num_qubits
        1
    """
    values = real_array("the vector", vector).ravel()
    if values.size < 2 or values.size & (values.size - 1):
        raise ValueError(f"the vector's length must be a power of two from 2 on: {values.size}")
    # Dividing by the largest entry first keeps the length from over- and underflowing.
    largest = float(np.abs(values).max())
    if not largest > 0:
        raise ValueError("the vector is zero: no quantum state holds it")
    values = values / largest
    qubits = values.size.bit_length() - 1
    circuit = QuantumCircuit(qubits)
    levels = []
    for _ in range(qubits):
        left, right = values[::2], values[1::2]
        levels.append(2 * np.arctan2(right, left))
        values = np.hypot(left, right)
    for target, angles in reversed(list(enumerate(levels))):
        if target == qubits - 1:
            circuit.ry(float(angles[0]), target)
        elif angles.any():
            circuit.append(UCRYGate(angles.tolist()), list(range(target, qubits)))
    return circuit


def amplitudes(program: Program) -> tuple[NDArray[np.complex128], float]:
    """Run the circuit on Aer's statevector simulator and post-select.

    Returns:
        The system register's amplitudes in the post-selected branch, of shape
        (2**len(program.system),), not normalised again; and the success probability, their
        squared length.

    Raises:
        ValueError: where ``system`` and ``postselect`` do not name each qubit once.
        RuntimeError: where Aer cannot run the circuit.

    Cost: the circuit's gates times 2**qubits.

    Example:
        >>> circuit = prepared([3.0, 0.0, 0.0, 4.0])
        >>> branch = Program(circuit, (0,), {1: 1}, factor=5.0, offset=0, size=2, queries=0)
        >>> state, probability = amplitudes(branch)
        >>> np.round((branch.factor * state).real, 6), round(probability, 6)
        (array([0., 4.]), 0.64)
    """
    qubits = program.circuit.num_qubits
    if sorted([*program.system, *program.postselect]) != list(range(qubits)):
        raise ValueError(
            f"system {program.system} and postselect {program.postselect} must name each of the "
            f"{qubits} qubits once"
        )
    simulator = AerSimulator(method="statevector")
    circuit = program.circuit.copy()
    circuit.append(SaveStatevector(qubits), range(qubits))
    result = simulator.run(transpile(circuit, simulator, optimization_level=0)).result()
    if not result.success:
        raise RuntimeError(f"Aer could not run the circuit: {result.status}")
    # Qubit q is axis qubits-1-q, so that flat indices have qubit 0 as least significant bit.
    state = np.asarray(result.get_statevector().data).reshape((2,) * qubits)
    index = tuple(program.postselect.get(q, slice(None)) for q in reversed(range(qubits)))
    left = [q for q in reversed(range(qubits)) if q not in program.postselect]
    order = [left.index(q) for q in reversed(program.system)]
    branch = np.ascontiguousarray(np.transpose(state[index], order)).ravel()
    return branch, float(np.linalg.norm(branch) ** 2)
