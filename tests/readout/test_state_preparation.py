from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_qsgd.errors import SizeError
from torch_qsgd.readout import (
    PreparationCost,
    counted_cost,
    nonzero_entries,
    preparation_cost,
    sparse_state_preparation,
)

COUNTS = ("ancillas", "cx", "rotations", "single_qubit", "t_gates")


def random_indices(count: int, qubits: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if qubits <= 16:
        return generator.choice(1 << qubits, count, replace=False)
    found = np.unique(generator.integers(1 << qubits, size=2 * count))
    return generator.permutation(found)[:count]


def prepared(indices: Any, values: Any, qubits: int) -> np.ndarray:
    quantum_info = pytest.importorskip("qiskit.quantum_info")
    circuit = sparse_state_preparation(indices, values, qubits)
    return np.asarray(quantum_info.Statevector(circuit).data)


def expected(indices: Any, values: Any, qubits: int, size: int) -> np.ndarray:
    # Ancillas are the high bits of Qiskit's index: clean ones leave all but 2ⁿ entries zero.
    state = np.zeros(size, dtype=complex)
    state[np.asarray(indices)] = np.asarray(values) / np.linalg.norm(values)
    return state


# ---- The state -------------------------------------------------------------------------------


@st.composite
def sparse_vectors(draw: st.DrawFn) -> tuple[list[int], list[float], int]:
    qubits = draw(st.integers(1, 6))
    indices = draw(
        st.lists(st.integers(0, 2**qubits - 1), min_size=1, max_size=2**qubits, unique=True)
    )
    number = st.floats(1e-6, 1e6) | st.floats(-1e6, -1e-6)
    values = draw(st.lists(number, min_size=len(indices), max_size=len(indices)))
    return indices, values, qubits


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sparse_vectors())
def test_any_sparse_vector_is_prepared_with_its_signs(
    vector: tuple[list[int], list[float], int],
) -> None:
    state = prepared(*vector)
    assert np.abs(state - expected(*vector, state.size)).max() < 1e-10


@pytest.mark.parametrize("value", [2.0, -2.0])
@pytest.mark.parametrize("index", [0, 5, 7])
def test_a_single_entry_keeps_its_sign(index: int, value: float) -> None:
    state = prepared([index], [value], 3)
    np.testing.assert_allclose(state, expected([index], [value], 3, 8), atol=1e-12)


@pytest.mark.parametrize("qubits", [1, 3, 5])
def test_a_full_vector(qubits: int) -> None:
    values = np.random.default_rng(qubits).standard_normal(2**qubits)
    indices = np.arange(2**qubits)
    state = prepared(indices, values, qubits)
    assert np.abs(state - expected(indices, values, qubits, state.size)).max() < 1e-10


def test_values_of_any_scale_and_zeros_among_them() -> None:
    state = prepared([1, 2, 3], [3e300, 0.0, -4e300], 2)
    np.testing.assert_allclose(state, [0, 0.6, 0, -0.8], atol=1e-12)
    state = prepared([0, 3], [-5e-324, 5e-324], 2)
    np.testing.assert_allclose(state, [-(0.5**0.5), 0, 0, 0.5**0.5], atol=1e-12)


def test_the_arguments_are_left_as_they_were() -> None:
    indices, values = np.array([1, 6, 3]), np.array([1.0, -2.0, 3.0])
    prepared(indices, values, 3)
    assert indices.tolist() == [1, 6, 3]
    assert values.tolist() == [1.0, -2.0, 3.0]


# ---- Counts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nonzeros", "qubits"), [(1, 4), (2, 1), (3, 9), (30, 10), (64, 6), (40, 40), (200, 12)]
)
def test_counts_against_transpiled_circuits(nonzeros: int, qubits: int) -> None:
    qiskit = pytest.importorskip("qiskit")
    indices = random_indices(nonzeros, qubits)
    values = np.random.default_rng(1).standard_normal(nonzeros)
    circuit = sparse_state_preparation(indices, values, qubits)
    plain = qiskit.transpile(circuit, basis_gates=["u", "cx"], optimization_level=0).count_ops()
    counted = counted_cost(indices, qubits)
    assert counted.cx == plain.get("cx", 0)
    assert counted.single_qubit == plain.get("u", 0)
    assert counted.rotations == circuit.count_ops().get("ry", 0)
    assert counted.t_gates == 4 * circuit.count_ops().get("rccx", 0)
    assert (counted.qubits, counted.ancillas) == (qubits, circuit.num_qubits - qubits)
    optimized = qiskit.transpile(circuit, basis_gates=["u", "cx"], optimization_level=1)
    assert optimized.count_ops().get("cx", 0) <= counted.cx


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(1, 10), st.data())
def test_the_closed_form_bounds_every_count(qubits: int, data: st.DataObject) -> None:
    # Whole boxes and combs of indices are the hard cases: their qubits split evenly.
    drawn = data.draw(
        st.lists(st.integers(0, 2**qubits - 1), min_size=1, max_size=40, unique=True)
        | st.integers(1, 2 ** min(qubits, 7)).map(lambda k: list(range(k)))
        | st.integers(1, 2 ** min(qubits, 6)).map(lambda k: [i << (qubits // 2) for i in range(k)])
    )
    indices = sorted({i % (1 << qubits) for i in drawn})
    counted, bound = counted_cost(indices, qubits), preparation_cost(len(indices), qubits)
    for name in COUNTS:
        assert getattr(counted, name) <= getattr(bound, name), name


def test_the_closed_form_is_the_sum_it_stands_for() -> None:
    for nonzeros in range(1, 70):
        controls = [(j - 1).bit_length() - 1 for j in range(2, nonzeros + 1)]
        bound = preparation_cost(nonzeros, 7)
        assert bound.cx == sum(6 + max(0, 6 * c - 4) for c in controls)
        assert bound.t_gates == sum(max(0, 8 * (c - 1)) for c in controls)
        assert bound.rotations == sum(min(c, 1) + 1 for c in controls)


def test_the_bound_is_within_a_factor_of_four_for_random_vectors() -> None:
    for nonzeros, qubits in [(64, 12), (64, 40), (1000, 30)]:
        counted = counted_cost(random_indices(nonzeros, qubits), qubits)
        bound = preparation_cost(nonzeros, qubits)
        for name in ("cx", "t_gates", "rotations"):
            assert getattr(bound, name) < 4 * getattr(counted, name)


def test_cost_grows_with_the_logarithm_of_the_dimension_not_with_it() -> None:
    qubits = np.arange(6, 41, 2)
    nonzeros = 16
    cx = np.array(
        [
            np.mean(
                [counted_cost(random_indices(16, int(n), seed), int(n)).cx for seed in range(8)]
            )
            for n in qubits
        ]
    )
    slope, offset = np.polyfit(qubits, cx, 1)
    # A CNOT for every second qubit and every merge: random strings agree in half of their bits.
    assert slope == pytest.approx(nonzeros / 2, rel=0.2)
    assert np.abs(cx - (slope * qubits + offset)).max() < 0.1 * max(cx)
    # The dimension grew by 2^34, the cost by less than the qubits did.
    assert cx[-1] / cx[0] < 40 / 6


def test_cost_grows_with_the_nonzeros() -> None:
    nonzeros = np.array([32, 64, 128, 256, 512, 1024])
    cx = np.array([counted_cost(random_indices(int(k), 30), 30).cx for k in nonzeros])
    exponent = np.polyfit(np.log(nonzeros), np.log(cx), 1)[0]
    assert 1.0 < exponent < 1.2
    per_log = cx / (nonzeros * (15 + 6 * np.log2(nonzeros)))
    assert per_log.max() < 1
    assert per_log.max() / per_log.min() < 1.5


def test_the_closed_form_takes_microseconds_at_any_size() -> None:
    begun = time.perf_counter()
    for _ in range(100):
        cost = preparation_cost(10**7, 27)
    assert (time.perf_counter() - begun) / 100 < 5e-3
    assert cost.cx < 10**7 * (27 + 6 * np.log2(10**7))
    assert cost.ancillas == 22
    assert preparation_cost(1, 60) == PreparationCost(60, 0, 1, 0, 0, 60, 0)


# ---- Vectors of every kind -------------------------------------------------------------------


def test_entries_of_every_kind_of_vector() -> None:
    dense = np.zeros(20)
    dense[[3, 17, 4]] = [1.0, -2.0, 0.5]
    kinds = [
        dense,
        dense.tolist(),
        torch.from_numpy(dense).reshape(4, 5).requires_grad_(),
        torch.from_numpy(dense).bfloat16(),
        torch.from_numpy(dense).reshape(5, 4).to_sparse(),
        sparse.csr_array(dense[None]),
        sparse.csc_array(dense[:, None]),
        sparse.coo_array(dense),
    ]
    for kind in kinds:
        indices, values, qubits = nonzero_entries(kind)
        assert (indices.tolist(), values.tolist(), qubits) == ([3, 4, 17], [1.0, 0.5, -2.0], 5)
        assert indices.dtype == np.int64
    assert nonzero_entries([7.0])[2] == 1
    assert nonzero_entries(np.ones(8))[2] == 3
    assert nonzero_entries(np.ones(9))[2] == 4


def test_a_sparse_vector_of_an_immense_space() -> None:
    rows = np.array([2**60 - 1, 3, 2**59])
    column = sparse.coo_array(([1.0, 2.0, 3.0], (rows, np.zeros(3, dtype=int))), (2**60, 1))
    indices, values, qubits = nonzero_entries(column)
    assert indices.tolist() == [3, 2**59, 2**60 - 1]
    assert values.tolist() == [2.0, 3.0, 1.0]
    assert qubits == 60
    counted = counted_cost(indices, qubits)
    assert 0 < counted.cx <= preparation_cost(3, 60).cx


# ---- Refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("indices", "values", "qubits", "message"),
    [
        ([0, 1], [0.0, 0.0], 2, "vector is zero"),
        ([0, 1], [1.0, np.nan], 2, "NaN"),
        ([0, 1], [1.0, np.inf], 2, "infinity"),
        ([1, 1], [1.0, 2.0], 2, "index 1 is given twice"),
        ([0, 4], [1.0, 2.0], 2, "0 … 2\\^2"),
        ([-1, 1], [1.0, 2.0], 2, "got -1"),
        ([], [], 2, "no entries"),
        ([0, 1], [1.0], 2, "shape"),
        ([[0, 1]], [[1.0, 1.0]], 2, "shape"),
        ([0], [1.0], 0, "qubits must be an integer of at least 1"),
        ([0], [1.0], 63, "at most 62"),
    ],
)
def test_what_no_state_holds_is_refused(
    indices: Any, values: Any, qubits: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sparse_state_preparation(indices, values, qubits)


def test_other_refusals() -> None:
    with pytest.raises(TypeError, match="real"):
        sparse_state_preparation([0], [1j], 1)
    with pytest.raises(ValueError, match="one integer or more"):
        counted_cost([], 3)
    with pytest.raises(TypeError, match="integers"):
        sparse_state_preparation([0.5], [1.0], 1)
    with pytest.raises(SizeError, match="preparation_cost"):
        counted_cost(np.arange(2**14 + 1), 20)
    with pytest.raises(ValueError, match="between 1 and 2"):
        preparation_cost(5, 2)
    with pytest.raises(ValueError, match="integer of at least 1"):
        preparation_cost(0, 2)
    with pytest.raises(ValueError, match="one row or one column"):
        nonzero_entries(sparse.eye_array(3))
    with pytest.raises(ValueError, match="zero"):
        nonzero_entries(torch.zeros(3))
    with pytest.raises(TypeError, match="real"):
        nonzero_entries(torch.ones(2, dtype=torch.complex64))


def test_without_qiskit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qiskit", None)
    with pytest.raises(ImportError, match=r"torch_qsgd\[quantum\]"):
        sparse_state_preparation([0, 1], [1.0, 1.0], 1)
    assert counted_cost([0, 1], 1).rotations == 1
