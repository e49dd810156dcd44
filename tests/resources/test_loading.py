"""T gates of table lookups, states and rotations, against plain loops over every choice."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_qsgd.readout import preparation_cost
from torch_qsgd.resources.loading import (
    dense_subnormalization,
    erasure,
    index_bits,
    lookup_and_undo,
    qram,
    qroam,
    qrom,
    rotation,
    sparse_subnormalization,
    state_by_gates,
    state_by_tables,
)


def powers(entries: int) -> list[int]:
    return [2**j for j in range(200) if 2**j <= entries]


# ---- Tables ------------------------------------------------------------------------------------


def test_the_reference_values() -> None:
    found = qroam(4096, bits=16)
    assert (found.t_gates, found.blocks) == (1976, 16)
    assert found.ancillas == 16 * 15 + 8
    assert qrom(4096).t_gates == 4 * 4094
    assert qram(4096, bits=16) == 16 * 12


@given(st.integers(1, 10**6), st.integers(1, 64))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_qroam_takes_the_best_block(entries: int, bits: int) -> None:
    found = qroam(entries, bits)
    counts = {k: 4 * (math.ceil(entries / k) - 2) + 4 * bits * (k - 1) for k in powers(entries)}
    assert found.t_gates == max(0, min(counts.values()))
    assert max(0, counts[found.blocks]) == found.t_gates
    assert found.t_gates <= qrom(entries).t_gates


@given(st.integers(1, 10**6))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_erasure_takes_the_best_block(entries: int) -> None:
    assert erasure(entries) == min(4 * (math.ceil(entries / k) + k) for k in powers(entries))


@pytest.mark.parametrize("entries", [10**9, 10**12, 10**18, 10**24])
@pytest.mark.parametrize("bits", [8, 16, 40])
def test_large_tables_cost_as_the_square_root(entries: int, bits: int) -> None:
    # With any K, not only powers of two, 4L/K + 4bK is least at K = √(L/b), where it is 8√(Lb);
    # the nearest power of two is off by √2 at most, and the sum then by (√2 + 1/√2)/2.
    least = 8 * math.sqrt(entries * bits)
    found = qroam(entries, bits)
    assert 0.99 * least <= found.t_gates <= 1.07 * least
    assert 2**-0.51 <= found.blocks / math.sqrt(entries / bits) <= 2**0.51
    assert 0.99 <= erasure(entries) / (8 * math.sqrt(entries)) <= 1.07


def test_more_entries_or_bits_never_cost_less() -> None:
    sizes = [1, 2, 3, 7, 64, 65, 1000, 4096, 10**6, 10**24]
    for smaller, larger in itertools.pairwise(sizes):
        assert qroam(smaller, 16).t_gates <= qroam(larger, 16).t_gates
        assert erasure(smaller) <= erasure(larger)
        assert qram(smaller, 16) <= qram(larger, 16)
    assert qroam(4096, 8).t_gates < qroam(4096, 16).t_gates


def test_a_single_entry_needs_no_lookup() -> None:
    assert qrom(1).t_gates == qroam(1, 16).t_gates == qram(1, 16) == 0


@given(st.integers(1, 10**30))
def test_index_bits_number_all_values(values: int) -> None:
    assert 2 ** (index_bits(values)) >= values
    assert values == 1 or 2 ** (index_bits(values) - 1) < values


# ---- States ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5, 4096, 10**6])
def test_a_state_takes_a_lookup_a_level(size: int) -> None:
    levels = math.ceil(math.log2(size))
    tables = memory = 0
    for level in range(levels):
        tables += qroam(2**level, 16).t_gates + erasure(2**level) + 4 * 16
        memory += 2 * 16 * level + 4 * 16
    assert state_by_tables(size, 16) == tables
    assert state_by_tables(size, 16, memory=True) == memory


def test_lookups_are_undone() -> None:
    assert lookup_and_undo(4096, 16, memory=False) == 1976 + 512
    assert lookup_and_undo(4096, 16, memory=True) == 2 * 192


def test_tables_save_gates_where_states_are_large() -> None:
    assert state_by_tables(10**7, 16) < state_by_gates(10**7, 24, 1e-3) / 1000
    assert state_by_tables(10**7, 16, memory=True) < state_by_tables(10**7, 16) / 10


@pytest.mark.parametrize("nonzeros", [1, 2, 100, 10**6])
def test_gate_by_gate_adds_rotations_to_the_circuit_s_own(nonzeros: int) -> None:
    cost = preparation_cost(nonzeros, 30)
    found = state_by_gates(nonzeros, 30, 1e-3)
    count = cost.rotations
    each = 3 * (math.log2(count) + math.log2(1e3)) if count else 0.0
    assert found == pytest.approx(cost.t_gates + count * each, rel=1e-12)


def test_a_rotation_gains_a_bit_by_three_gates() -> None:
    assert rotation(1e-3) == pytest.approx(3 * math.log2(1000))
    assert rotation(0.5e-3) - rotation(1e-3) == pytest.approx(3)


# ---- Subnormalization ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("density", [0.1, 0.4, 1.0])
def test_no_matrix_is_larger_than_its_subnormalization(seed: int, density: float) -> None:
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((30, 30)) * (generator.random((30, 30)) < density)
    held = matrix != 0
    norm = np.linalg.norm(matrix, 2)
    rows, columns = held.sum(axis=1).max(), held.sum(axis=0).max()
    alpha = sparse_subnormalization(float(rows), float(columns), float(np.abs(matrix).max()))
    assert norm <= alpha
    assert norm <= dense_subnormalization(matrix) == pytest.approx(np.sqrt((matrix**2).sum()))


def test_constant_blocks_reach_the_sparse_subnormalization() -> None:
    matrix = np.kron(np.eye(3), np.full((4, 9), -0.5))
    alpha = sparse_subnormalization(9, 4, 0.5)
    assert np.linalg.norm(matrix, 2) == pytest.approx(alpha)


# ---- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, None, "a", math.nan])
def test_sizes_must_be_positive_integers(bad: Any) -> None:
    for call in (qrom, erasure, index_bits, lambda x: qroam(x, 16), lambda x: qram(x, 16)):
        with pytest.raises(ValueError, match="must be an integer of at least 1"):
            call(bad)
    for call in (lambda x: qroam(16, x), lambda x: qram(16, x), lambda x: state_by_tables(4, x)):
        with pytest.raises(ValueError, match="bits must be an integer of at least 1"):
            call(bad)


@pytest.mark.parametrize("bad", [0, -1.0, 1.0, 2.0, math.nan, math.inf, "a", None])
def test_errors_must_lie_between_zero_and_one(bad: Any) -> None:
    with pytest.raises(ValueError, match="error must be a number above 0 and below 1"):
        rotation(bad)
    with pytest.raises(ValueError, match="error must be a number above 0 and below 1"):
        state_by_gates(10, 5, bad)


def test_matrices_must_be_finite_and_real() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        dense_subnormalization([[math.nan]])
    with pytest.raises(TypeError, match="real"):
        dense_subnormalization([[1j]])
    with pytest.raises(ValueError, match="largest_entry must be a number above 0"):
        sparse_subnormalization(1, 1, 0)
