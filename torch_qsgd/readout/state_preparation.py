r"""Upload: prepare a k-sparse real vector as a quantum state, at a cost of k·log n gates.

The construction merges basis states pairwise until one is left, and runs the merges backwards
[Gleinig2021]_. A merge picks a first string :math:`x_1` by a few qubits that no other string
agrees with, then a second one :math:`x_2` that agrees with it in all of them but one, the
*target*. CNOTs from the target make the two differ there only; a rotation of the target,
controlled by the other qubits picked, moves the amplitude of :math:`x_1` into :math:`x_2`.

Every pick halves the strings still in question at least, so that a merge of k strings has at most
:math:`\lfloor \log_2(k-1) \rfloor` controls: after l picks for :math:`x_1` at most k/2ˡ strings
are left, after the next one :math:`x_1` alone; :math:`x_2` is picked among the others of these,
fewer than k/2ˡ.

The controls are gathered by Toffoli gates of relative phase [Maslov2016]_ in clean ancillas, which
end as they began, in :math:`|0\rangle`. With c ≥ 1 controls this takes c − 1 ancillas, 6(c−1) + 2
CNOTs, 8(c−1) T gates and two rotations; without ancillas, about 16c CNOTs.

.. [Gleinig2021] N. Gleinig and T. Hoefler, An efficient algorithm for sparse quantum state
   preparation, DAC 2021, doi:10.1109/DAC18074.2021.9586240.
.. [Maslov2016] D. Maslov, Advantages of using relative-phase Toffoli gates, Phys. Rev. A 93,
   022311, arXiv:1508.03273.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import atan2, hypot, pi
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torch_qsgd.checks import require_integer
from torch_qsgd.errors import SizeError
from torch_qsgd.readout.sparse_vectors import (
    Strings,
    checked_entries,
    checked_indices,
)

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

#: Beyond this, merging takes minutes; :func:`preparation_cost` answers at any size.
MOST_NONZEROS = 1 << 14


@dataclass(frozen=True)
class PreparationCost:
    """Gates of one state preparation.

    Attributes:
        qubits: log₂ of the ambient dimension, without ancillas.
        ancillas: clean ancillas, returned clean.
        nonzeros: k.
        cx: CNOT gates.
        rotations: rotations by an arbitrary angle; each costs T gates by its precision.
        single_qubit: all single-qubit gates, rotations among them.
        t_gates: T gates, without those of the rotations.
    """

    qubits: int
    ancillas: int
    nonzeros: int
    cx: int
    rotations: int
    single_qubit: int
    t_gates: int


def preparation_cost(nonzeros: int, qubits: int) -> PreparationCost:
    r"""A proven upper bound, in closed form, of the gates that prepare any k-sparse vector.

    With j strings left, a merge has at most :math:`c = \lfloor \log_2(j-1) \rfloor` controls and
    n − 1 CNOTs from its target, for n qubits:

    .. math::
        \mathrm{CX} \le (k-1)(n-1) + \sum_{j=2}^{k} \max(0,\ 6 \lfloor \log_2(j-1) \rfloor - 4)

    Random strings take 0.3 to 0.5 of it: half of their bits agree, and picks do better than halve.
    A dense vector, k = 2ⁿ, is cheaper to prepare without sparsity, with about 2ⁿ CNOTs.

    Args:
        nonzeros: k.
        qubits: n, log₂ of the ambient dimension.

    Returns:
        A bound of each count. :func:`counted_cost` has the counts themselves, for small k.

    Raises:
        ValueError: unless k and n are integers with 1 ≤ k ≤ 2ⁿ and n ≥ 1.

    Cost: log k additions.

    Example:
        Ten million weights of a hundred million:

        >>> cost = preparation_cost(10**7, qubits=27)
        >>> cost.cx, cost.ancillas
        (1499336698, 22)
    """
    qubits = require_integer("qubits", qubits, 1)
    nonzeros = require_integer("nonzeros", nonzeros, 1)
    if (nonzeros - 1).bit_length() > qubits:
        raise ValueError(f"nonzeros must be between 1 and 2^{qubits}, got {nonzeros}")
    merges = nonzeros - 1
    cx = merges * (qubits - 1)
    single = qubits + merges
    rotations = t_gates = 0
    for controls in range(merges.bit_length()):
        # As many merges as numbers j − 1 with this integer logarithm.
        count = min(2 << controls, nonzeros) - (1 << controls)
        gates = _rotation_cost(controls)
        cx += count * gates.cx
        rotations += count * gates.rotations
        single += count * (controls + gates.single_qubit)
        t_gates += count * gates.t_gates
    ancillas = max(0, merges.bit_length() - 2)
    return PreparationCost(qubits, ancillas, nonzeros, cx, rotations, single, t_gates)


def counted_cost(indices: ArrayLike, qubits: int) -> PreparationCost:
    """The gates of :func:`sparse_state_preparation`, counted on bit strings without a circuit.

    Args:
        indices: where the vector is not zero, integers of shape (k,). Its values do not matter.
        qubits: n, log₂ of the ambient dimension, at most 62.

    Returns:
        The exact counts, before any optimisation of the circuit.

    Raises:
        ValueError: for no index, one twice, or one outside of 0 … 2ⁿ − 1.
        SizeError: for k above 2¹⁴; :func:`preparation_cost` bounds the counts at any size.

    Cost: O(k² n) operations on bits; about a second at k = 4000.

    Example:
        >>> cost = counted_cost([0, 5, 6], qubits=3)
        >>> cost.cx, cost.rotations, preparation_cost(3, qubits=3).cx
        (4, 3, 6)
    """
    strings = checked_indices(indices, qubits)
    _check_size(strings.size)
    nonzeros = strings.size
    ancillas = cx = rotations = single = t_gates = 0
    for merge in _merges(strings, qubits):
        controls = len(merge.controls)
        gates = _rotation_cost(controls)
        ancillas = max(ancillas, controls - 1)
        cx += merge.flipped.bit_count() + gates.cx
        rotations += gates.rotations
        single += merge.before.bit_count() + merge.after.bit_count() + gates.single_qubit
        t_gates += gates.t_gates
    single += int(strings[0]).bit_count()
    return PreparationCost(qubits, ancillas, nonzeros, cx, rotations, single, t_gates)


def sparse_state_preparation(indices: ArrayLike, values: ArrayLike, qubits: int) -> QuantumCircuit:
    r"""A circuit that takes :math:`|0…0\rangle` to :math:`\sum_i v_i |i\rangle / \|v\|`.

    Bit b of an index is qubit b of register ``q``, as everywhere in Qiskit. Register ``a``, which
    is there only if needed, holds clean ancillas: they start and end in :math:`|0\rangle`. Signs
    are kept, the overall one in the circuit's global phase.

    Args:
        indices: where the vector is not zero, integers of shape (k,), each once.
        values: v, real, of shape (k,); zeros among them are dropped.
        qubits: n, log₂ of the ambient dimension, at most 62.

    Returns:
        The circuit, in gates ``x``, ``cx``, ``ry`` and ``rccx``.

    Raises:
        ImportError: without Qiskit.
        ValueError: for a zero vector, NaN or infinity, shapes that do not fit, no index, one
            twice, or one outside of 0 … 2ⁿ − 1.
        TypeError: for complex values or indices that are not integers.
        SizeError: for k above 2¹⁴.

    Cost: k·(n/2 + 6 log₂ k) CNOTs for random indices, see :func:`preparation_cost`; to build it,
    O(k² n) operations on bits.

    Example:
        >>> from qiskit.quantum_info import Statevector
        >>> circuit = sparse_state_preparation([0, 5, 6], [2.0, -1.0, 2.0], qubits=3)
        >>> Statevector(circuit).data.real.round(3) + 0.0
        array([ 0.667,  0.   ,  0.   ,  0.   ,  0.   , -0.333,  0.667,  0.   ])
    """
    strings, amplitudes = checked_entries(indices, values, qubits)
    _check_size(strings.size)
    try:
        from qiskit import AncillaRegister, QuantumCircuit, QuantumRegister
    except ImportError as error:
        raise ImportError(
            'a circuit needs Qiskit: pip install "torch_qsgd[quantum]"; `counted_cost` and '
            "`preparation_cost` do without"
        ) from error

    # Only ratios matter; at this scale no square root of squares overflows.
    amplitudes /= np.abs(amplitudes).max()
    angles = []
    plan = []
    for merge in _merges(strings, qubits):
        kept, gone = amplitudes[merge.kept], amplitudes[merge.gone]
        angles.append(2 * atan2(gone, kept))
        plan.append(merge)
        amplitudes[merge.kept] = hypot(gone, kept)
        amplitudes[merge.gone] = amplitudes[len(amplitudes) - len(plan)]

    register = QuantumRegister(qubits, "q")
    circuit = QuantumCircuit(register)
    most = max((len(merge.controls) for merge in plan), default=0)
    if most > 1:
        circuit.add_register(AncillaRegister(most - 1, "a"))
    # Merges leave a positive amplitude; a single entry may have come with a sign.
    circuit.global_phase = pi if amplitudes[0] < 0 else 0
    _flip(circuit, int(strings[0]))
    for merge, angle in zip(reversed(plan), reversed(angles), strict=True):
        _controlled_rotation(circuit, angle, merge.controls, merge.target, circuit.ancillas)
        _flip(circuit, merge.after)
        for qubit in _bits(merge.flipped):
            circuit.cx(merge.target, qubit)
        _flip(circuit, merge.before)
    return circuit


# ---- Merging bit strings ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Merge:
    """One merge, in the order in which strings are merged; a circuit takes it backwards.

    Masks are integers whose bit b stands for qubit b. The entry ``gone`` has its amplitude moved
    into ``kept``, and the last entry takes its place.
    """

    target: int
    controls: tuple[int, ...]
    before: int  # X here, so that the first string has a 1 in the target,
    flipped: int  # CNOTs from the target to these,
    after: int  # X here, so that both strings have 1 in all controls.
    kept: int
    gone: int


def _merges(strings: Strings, qubits: int) -> Iterator[_Merge]:
    """Merge strings until one is left, in ``strings[0]``; the array is changed as it goes."""
    for size in range(strings.size, 1, -1):
        live = strings[:size]
        first, picked, group = _single_out(live, np.arange(size), qubits)
        *controls, target = picked
        second, more, _ = _single_out(live, group[group != first], qubits)
        controls += more
        bit = 1 << target
        before = ~int(live[first]) & bit
        live ^= before
        flipped = int(live[first] ^ live[second]) & ~bit
        live[(live & bit) != 0] ^= flipped
        after = sum(1 << c for c in controls) & ~int(live[second])
        live ^= after
        yield _Merge(target, tuple(controls), before, flipped, after, int(second), int(first))
        live[first] = live[size - 1]


def _single_out(
    strings: Strings, group: NDArray[np.intp], qubits: int
) -> tuple[int, list[int], NDArray[np.intp]]:
    """Pick qubits until one string of the group is left.

    Returns it, the qubits, and the group as it was before the last pick. Each pick is the qubit
    that splits the group most unevenly, and keeps the smaller part: few picks are then needed.
    """
    picked: list[int] = []
    before = group
    while group.size > 1:
        bits = np.unpackbits(
            strings[group].astype("<i8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little"
        )
        ones = bits.sum(axis=0, dtype=np.int64)[:qubits]
        smaller = np.minimum(ones, group.size - ones)
        qubit = int(np.argmin(np.where(smaller > 0, smaller, group.size)))
        value = int(2 * ones[qubit] <= group.size)
        picked.append(qubit)
        before, group = group, group[bits[:, qubit] == value]
    return int(group[0]), picked, before


# ---- Gates -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _RotationCost:
    cx: int
    rotations: int
    single_qubit: int
    t_gates: int


def _rotation_cost(controls: int) -> _RotationCost:
    """Gates of :func:`_controlled_rotation`: 3 CNOTs, 4 T and 2 H in each relative Toffoli."""
    if controls == 0:
        return _RotationCost(0, 1, 1, 0)
    toffolis = 2 * (controls - 1)
    return _RotationCost(3 * toffolis + 2, 2, 6 * toffolis + 2, 4 * toffolis)


def _controlled_rotation(
    circuit: QuantumCircuit, angle: float, controls: tuple[int, ...], target: int, ancillas: Any
) -> None:
    if not controls:
        circuit.ry(angle, target)
        return
    gathered: Any = controls[0]
    toffolis = []
    for control, ancilla in zip(controls[1:], ancillas, strict=False):
        toffolis.append((gathered, control, ancilla))
        gathered = ancilla
    for toffoli in toffolis:
        circuit.rccx(*toffoli)
    circuit.ry(angle / 2, target)
    circuit.cx(gathered, target)
    circuit.ry(-angle / 2, target)
    circuit.cx(gathered, target)
    # The relative Toffoli is its own inverse: its phases go as the ancillas are cleared.
    for toffoli in reversed(toffolis):
        circuit.rccx(*toffoli)


def _flip(circuit: QuantumCircuit, mask: int) -> None:
    for qubit in _bits(mask):
        circuit.x(qubit)


def _bits(mask: int) -> list[int]:
    return [b for b in range(mask.bit_length()) if mask >> b & 1]


def _check_size(nonzeros: int) -> None:
    if nonzeros > MOST_NONZEROS:
        raise SizeError(
            f"{nonzeros:,} nonzero entries are more than the {MOST_NONZEROS:,} whose merges are "
            "worked out one by one: `preparation_cost` bounds the gates at any size"
        )
