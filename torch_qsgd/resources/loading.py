r"""What it takes to load classical numbers: T gates and ancillas of table lookups and rotations.

A table has L entries of b bits. All counts are of T gates, four a Toffoli gate, and closed forms in
Python's integers, so that L may have any size.

.. [Babbush2018] R. Babbush et al., Encoding electronic spectra in quantum circuits with linear T
   complexity, arXiv:1805.03662. QROM.
.. [Low2018] G. H. Low, V. Kliuchnikov and L. Schaeffer, Trading T-gates for dirty qubits in state
   preparation and unitary synthesis, arXiv:1812.00954. QROAM, and states from tables of angles.
.. [Berry2019] D. W. Berry et al., Qubitization of arbitrary basis quantum chemistry leveraging
   sparsity and low rank factorization, arXiv:1902.02134. QROAM with clean ancillas, and erasing.
.. [Gilyen2019] A. Gilyén, Y. Su, G. H. Low and N. Wiebe, Quantum singular value transformation and
   beyond, arXiv:1806.01838.
.. [Ross2014] N. J. Ross and P. Selinger, Optimal ancilla-free Clifford+T approximation of
   z-rotations, arXiv:1403.2975.
.. [Gidney2018] C. Gidney, Halving the cost of quantum addition, arXiv:1709.06648.
.. [Kerenidis2016] I. Kerenidis and A. Prakash, Quantum recommendation systems, arXiv:1603.08675.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from numpy.typing import ArrayLike

from torch_qsgd.checks import require_integer, require_number
from torch_qsgd.linear_system import length, real_array
from torch_qsgd.readout import preparation_cost


@dataclass(frozen=True)
class Lookup:
    """One lookup in a table.

    Attributes:
        t_gates: T gates.
        ancillas: clean qubits beside address and output, returned clean.
        blocks: K, entries fetched at a time, a power of two.
    """

    t_gates: int
    ancillas: int
    blocks: int


def index_bits(values: int) -> int:
    """⌈log₂ values⌉: qubits, or bits, that number so many values.

    Example:
        >>> [index_bits(k) for k in (1, 2, 3, 4, 5)]
        [0, 1, 2, 2, 3]
    """
    return (require_integer("values", values, 1) - 1).bit_length()


# ---- Tables ------------------------------------------------------------------------------------


def qrom(entries: int) -> Lookup:
    r"""A lookup by unary iteration: :math:`4(L-2)` T gates, whatever b is.

    Args:
        entries: L, at least 1.

    Raises:
        ValueError: for L that is no integer, or below 1.

    Source: [Babbush2018]_.

    Example:
        >>> qrom(4096).t_gates
        16376
    """
    entries = require_integer("entries", entries, 1)
    return Lookup(4 * max(entries - 2, 0), index_bits(entries), 1)


def qroam(entries: int, bits: int) -> Lookup:
    r"""A lookup that fetches K entries at a time, and swaps the one that is asked for to the front.

    .. math:: 4\,(\lceil L/K \rceil - 2) + 4\,b\,(K - 1)

    least over the powers of two K ≤ L, near :math:`\sqrt{L/b}`; K = 1 is :func:`qrom`.

    Args:
        entries: L, at least 1.
        bits: b, of an entry, at least 1.

    Returns:
        T gates, K, and b(K − 1) + ⌈log₂ L/K⌉ clean ancillas.

    Raises:
        ValueError: for L or b that is no integer, or below 1.

    Cost: log₂ L additions.

    Source: [Low2018]_, [Berry2019]_.

    Example:
        >>> qroam(4096, bits=16)
        Lookup(t_gates=1976, ancillas=248, blocks=16)
    """
    entries = require_integer("entries", entries, 1)
    bits = require_integer("bits", bits, 1)
    gates, blocks = _least(entries, lambda k, fetched: fetched - 2 + bits * (k - 1))
    return Lookup(4 * gates, bits * (blocks - 1) + index_bits(-(-entries // blocks)), blocks)


def erasure(entries: int) -> int:
    r"""T gates to forget an entry again, by measuring it and mending the phases.

    .. math:: 4\,(\lceil L/K \rceil + K), \qquad K \approx \sqrt L

    Args:
        entries: L, at least 1.

    Raises:
        ValueError: for L that is no integer, or below 1.

    Source: [Berry2019]_.

    Example:
        >>> erasure(4096)
        512
    """
    entries = require_integer("entries", entries, 1)
    return 4 * _least(entries, lambda k, fetched: fetched + k)[0]


def qram(entries: int, bits: int) -> int:
    r"""T gates charged for a lookup in a quantum memory: :math:`b \lceil \log_2 L \rceil`.

    Such a memory is assumed hardware, of L·b cells that answer to a superposition of addresses;
    none exists. Charged is the path of one address, ⌈log₂ L⌉ switches for each of b bits; that
    the memory switches L of them, and corrects their errors, is not.

    Args:
        entries: L, at least 1.
        bits: b, of an entry, at least 1.

    Raises:
        ValueError: for L or b that is no integer, or below 1.

    Source: our estimate.

    Example:
        >>> qram(4096, bits=16)
        192
    """
    return require_integer("bits", bits, 1) * index_bits(require_integer("entries", entries, 1))


def _least(entries: int, count: Callable[[int, int], int]) -> tuple[int, int]:
    """The least count over powers of two K ≤ L, and its K; a count is not below zero."""
    powers = (1 << j for j in range(entries.bit_length()))
    return min((max(count(k, -(-entries // k)), 0), k) for k in powers)


# ---- States ------------------------------------------------------------------------------------


def rotation(error: float) -> float:
    r"""T gates of one rotation by an arbitrary angle, to leading order: :math:`3 \log_2(1/ε)`.

    Args:
        error: ε in operator norm, in (0, 1).

    Raises:
        ValueError: for an ε out of its range.

    Source: [Ross2014]_.

    Example:
        >>> rotation(2.0**-10)
        30.0
    """
    return 3 * math.log2(1 / require_number("error", error, 0, 1))


def state_by_gates(nonzeros: int, qubits: int, error: float) -> float:
    r"""T gates of a sparse state, prepared gate by gate without any table.

    Those of :func:`~torch_qsgd.readout.preparation_cost`, and R rotations to an error of ε/R each.

    Args:
        nonzeros: k.
        qubits: log₂ of the ambient dimension.
        error: ε of the state, in (0, 1).

    Raises:
        ValueError: for an argument out of its range.

    Source: as of ``preparation_cost``; [Ross2014]_.

    Example:
        >>> f"{state_by_gates(10**7, qubits=27, error=1e-3):.1e}"
        '3.7e+09'
    """
    error = require_number("error", error, 0, 1)
    cost = preparation_cost(nonzeros, qubits)
    return cost.t_gates + cost.rotations * rotation(error / max(cost.rotations, 1))


def state_by_tables(size: int, bits: int, memory: bool = False, states: int = 1) -> int:
    r"""T gates of a state of n amplitudes, whose angles are looked up level by level.

    Qubit l is turned by one of B·2ˡ angles, which the qubits before it and the number of the state
    choose: a lookup, a rotation by an addition of b bits to a phase gradient (4b T gates), and the
    lookup undone.

    .. math:: \sum_{l < \lceil \log_2 n \rceil} \left( \mathrm{lookup}(B 2^l, b) + 4b
        + \mathrm{undo}(B 2^l, b) \right)

    Args:
        size: n, at least 1.
        bits: b, of an angle.
        memory: look up in :func:`qram`, twice; by default :func:`qroam` and :func:`erasure`.
        states: B, of which another register chooses one.

    Raises:
        ValueError: for an argument out of its range.

    Source: [Low2018]_, and with a memory [Kerenidis2016]_; the addition, [Gidney2018]_.

    Example:
        >>> state_by_tables(4096, bits=16), state_by_tables(4096, bits=16, memory=True)
        (6284, 2880)
    """
    bits = require_integer("bits", bits, 1)
    states = require_integer("states", states, 1)
    total = 0
    for level in range(index_bits(size)):
        total += lookup_and_undo(states << level, bits, memory) + 4 * bits
    return total


def lookup_and_undo(entries: int, bits: int, memory: bool) -> int:
    """T gates of one lookup and its undoing, in QROAM or, with ``memory``, in QRAM."""
    if memory:
        return 2 * qram(entries, bits)
    return qroam(entries, bits).t_gates + erasure(entries)


# ---- Subnormalization ----------------------------------------------------------------------------


def sparse_subnormalization(
    row_nonzeros: float, column_nonzeros: float, largest_entry: float
) -> float:
    r"""α of a matrix whose non-zeros can be listed: :math:`\sqrt{s_r s_c} \max |A_{ij}|`.

    Args:
        row_nonzeros, column_nonzeros: most non-zeros in a row and in a column.
        largest_entry: max |A_ij|.

    Raises:
        ValueError: for numbers that are not above 0.

    Source: [Gilyen2019]_, sparse-access matrices.

    Example:
        >>> sparse_subnormalization(4, 9, 0.5)
        3.0
    """
    rows = require_number("row_nonzeros", row_nonzeros, 0)
    columns = require_number("column_nonzeros", column_nonzeros, 0)
    return math.sqrt(rows) * math.sqrt(columns) * require_number("largest_entry", largest_entry, 0)


def dense_subnormalization(matrix: ArrayLike) -> float:
    r"""α of a dense matrix stored as states of its rows: :math:`\|A\|_F`.

    Args:
        matrix: A, real.

    Raises:
        ValueError: for NaN or infinity.
        TypeError: for what are no real numbers.

    Source: [Kerenidis2016]_, [Gilyen2019]_.

    Example:
        >>> dense_subnormalization([[3.0, 0.0], [0.0, -4.0]])
        5.0
    """
    return length(real_array("the matrix", matrix).ravel())
