r"""The quantum singular value transformation of ``QSVT`` as a Qiskit circuit.

Three registers, least significant qubit first:

- n system qubits, which hold b and then x;
- one block-encoding ancilla, whose :math:`|0\rangle` marks the block
  :math:`A = \mathcal{L}^T/\alpha` of the orthogonal dilation
  :math:`\begin{pmatrix} A & \sqrt{1 - AA^T} \\ \sqrt{1 - A^TA} & -A^T \end{pmatrix}`;
- one sign ancilla in :math:`|+\rangle`, which runs the phases as they are and negated at once.

For each singular value σ the dilation and its transpose act as the reflection
R = [[σ, √(1−σ²)], [√(1−σ²), −σ]], and W(σ) = i e^{−iπZ/4} R e^{−iπZ/4}; so the phases ψ of
:mod:`~torch_qsgd.solvers.phases` become φ = ψ − π/2, at both ends ψ − π/4, up to i^d. The dilation
being real, negated phases give the complex conjugate, and their mean the real part of
(−i)^d ⟨0|U|0⟩: the polynomial itself, up to the sign (−1)^((d−1)/2). [Gilyen2019]_

.. [Gilyen2019] A. Gilyén, Y. Su, G. H. Low and N. Wiebe, Quantum singular value transformation and
   beyond, arXiv:1806.01838.
"""

from __future__ import annotations

import math

import numpy as np
from qiskit import QuantumCircuit
from qiskit.circuit.library import UnitaryGate

from torch_qsgd.errors import SizeError
from torch_qsgd.linear_system import LinearSystem, Matrix, length
from torch_qsgd.solvers.circuit_program import Program, prepared
from torch_qsgd.solvers.phases import symmetric_phases
from torch_qsgd.solvers.qsvt import QSVT

#: More unknowns than this are refused: each of the degree's gates is a dense matrix twice as wide.
MOST_UNKNOWNS = 2**9


def qsvt_program(system: LinearSystem, solver: QSVT) -> Program:
    r"""The circuit that ``solver`` emulates, for this system.

    A system whose size D is no power of two is padded by an identity block, whose singular values
    lie within [σ_min/α, 1] already; b is zero there, and so is the solution.

    Args:
        system: :math:`\mathcal{L} x = b` with D unknowns; ℒ need not be symmetric.
        solver: its ε, kind of polynomial, κ and α.

    Returns:
        A program on ⌈log₂ D⌉ + 2 qubits (three at least), whose queries are the polynomial's
        degree.

    Raises:
        SizeError: above 512 unknowns.
        ValueError, SingularSystemError, PhaseError: as ``solver.encoding`` and
            ``symmetric_phases`` do.

    Warns:
        ConditionWarning: where the solver's κ is less than α/σ_min(ℒ).

    Cost: degree gates on ⌈log₂ D⌉ + 1 qubits, each a dense matrix; O(D³) for the dilation.

    Source: arXiv:1806.01838; the polynomials and phases as in their modules.

    Example:
        >>> from torch_qsgd.solvers.circuit_program import amplitudes
        >>> system = LinearSystem([[2.0, 0.0], [1.0, -1.0]], [2.0, 3.0])  # x = (1, -2)
        >>> program = qsvt_program(system, QSVT(epsilon=1e-6))
        >>> state, probability = amplitudes(program)
        >>> (program.factor * state[: program.size]).real.round(4)
        array([ 1., -2.])
    """
    if system.size > MOST_UNKNOWNS:
        raise SizeError(
            f"{system.size:,} unknowns are more than the {MOST_UNKNOWNS} a circuit is built for: "
            "use the `qsvt` solver, which emulates the same circuit by products"
        )
    alpha, polynomial = solver.encoding(system)
    phases = symmetric_phases(polynomial.coefficients / polynomial.normalization, parity=1)
    qubits = max(1, (system.size - 1).bit_length())
    block = np.eye(2**qubits)
    block[: system.size, : system.size] = system.dense().T / alpha
    dilation = _dilation(block)
    forward, backward = UnitaryGate(dilation, label="U"), UnitaryGate(dilation.T, label="U†")

    register = tuple(range(qubits))
    block_ancilla, sign_ancilla = qubits, qubits + 1
    circuit = QuantumCircuit(qubits + 2)
    rhs = np.zeros(2**qubits)
    rhs[: system.size] = system.rhs
    circuit.compose(prepared(rhs), register, inplace=True)
    circuit.h(sign_ancilla)
    shifted = phases - math.pi / 2
    shifted[[0, -1]] += math.pi / 4
    for k, phase in enumerate(shifted[::-1]):
        # exp(iφ Z⊗Z): e^{iφZ} on the block ancilla, with φ negated where the sign ancilla is 1.
        circuit.rzz(-2 * phase, block_ancilla, sign_ancilla)
        if k < polynomial.degree:
            circuit.append(backward if k % 2 else forward, [*register, block_ancilla])
    circuit.h(sign_ancilla)

    sign = -1 if polynomial.degree % 4 == 3 else 1
    return Program(
        circuit=circuit,
        system=register,
        postselect={block_ancilla: 0, sign_ancilla: 0},
        factor=complex(sign * polynomial.normalization * (length(system.rhs) / alpha)),
        offset=0,
        size=system.size,
        queries=polynomial.degree,
    )


def _dilation(block: Matrix) -> Matrix:
    """The orthogonal matrix of the module's text, for a block of norm 1 at most."""
    left, values, right = np.linalg.svd(block)
    # Rounding may leave a singular value above 1.
    values = np.minimum(values, 1)
    complement = np.sqrt((1 - values) * (1 + values))
    corner = (left * values) @ right
    return np.block(
        [
            [corner, (left * complement) @ left.T],
            [(right.T * complement) @ right, -corner.T],
        ]
    )
