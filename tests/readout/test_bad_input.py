"""What the readout is not to be given is refused in the words of a user, one table a module."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sparse
import torch

from torch_qsgd.readout import (
    Tomography,
    block_norms,
    counted_cost,
    expected_copies,
    guaranteed_copies,
    nonzero_entries,
    post_selection,
    preparation_cost,
    sparse_state_preparation,
)

NO_NUMBERS: list[Any] = ["a", [1.0], 2j, True, math.nan, math.inf, 10**400, 0, -1, np.ones(2)]
NO_COUNTS: list[Any] = ["3", [3], 3.5, 3j, True, math.nan, math.inf, 0, -1]
GRAMS = np.array([[[0.0]], [[1.0]]])
SIGNS: list[Any] = ["a", None, 1, ["known"], True]

READING = [
    *[(Tomography, {"copies": c}, "copies must lie") for c in [*NO_COUNTS, 2**63]],
    *[(Tomography, {"precision": p}, "precision must be") for p in [*NO_NUMBERS, 1]],
    *[(Tomography, {"copies": 9, "signs": s}, "signs must be") for s in SIGNS],
]
for copies in (expected_copies, guaranteed_copies):
    READING += [
        *[(copies, {"support": s, "precision": 0.1}, "support must be") for s in NO_COUNTS],
        *[(copies, {"support": 9, "precision": p}, "precision must be") for p in NO_NUMBERS],
        *[(copies, {"support": 9, "precision": 0.1, "signs": s}, "signs must be") for s in SIGNS],
        (copies, {"support": 9, "precision": 1e-200}, "more copies than float64 counts"),
    ]


@pytest.mark.parametrize(("function", "arguments", "message"), READING, ids=repr)
def test_copies(function: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(**arguments)


TWO = torch.ones(2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("vector", "support", "message"),
    [
        (TWO, [True, True], "support must be a bool tensor or array, got list"),
        (TWO, "ab", "support must be a bool tensor or array, got str"),
        (TWO, True, "support must be a bool tensor or array, got bool"),
        (TWO, torch.ones(2), "support must be bool and of the vector's shape"),
        (TWO, np.ones(3, dtype=bool), "support must be bool and of the vector's shape"),
        (TWO.numpy(), [True, True], "support must be a bool tensor or array, got list"),
        (TWO.numpy(), np.ones(2), "support must be bool and of the vector's shape"),
        ([TWO], torch.ones(1, 2, dtype=torch.bool), "must be a list of masks, got Tensor"),
        ([TWO], True, "must be a list of masks, got bool"),
        ([TWO], [[True, True]], "support must be a bool tensor or array, got list"),
        ([TWO], [None, None], "for each of 1 tensors"),
        (TWO.to_sparse(), None, r"must be dense.*to_dense\(\)"),
        (None, None, "array, a tensor or a list of tensors"),
        (3.0, None, "array, a tensor or a list of tensors"),
        (np.array(["a", "b"]), None, "must be real"),
        (np.array([None, 1.0]), None, "must be real"),
        (np.array([True, False]), None, "must be real"),
        (np.array([math.nan, 1.0]), None, "NaN or infinity"),
        (torch.tensor([True]), None, "must be real"),
    ],
)
def test_vectors_and_supports(vector: Any, support: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Tomography(copies=10).measure(vector, support=support)


def test_generators() -> None:
    for given in (3, 0, "seed", np.random.default_rng(0)):
        with pytest.raises(TypeError, match=r"generator must be a torch\.Generator"):
            Tomography(copies=10).measure(TWO, given)


def test_masks_as_arrays_and_vectors_with_gradients() -> None:
    vector = torch.tensor([1.0, 0.0, -1.0], requires_grad=True)
    mask = np.array([True, True, False])
    with pytest.raises(ValueError, match="outside of its support"):
        Tomography(copies=10).measure(vector, support=mask)
    reading = Tomography(copies=10**6).measure(
        vector, support=~mask | np.array([True, False, True])
    )
    assert not reading.estimate.requires_grad
    assert reading.support == 2
    assert vector.requires_grad


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_estimates_that_the_dtype_does_not_hold(kind: str) -> None:
    """The vector fits into half precision; its estimate with one copy does not."""
    vector = torch.full((2,), 6e4, dtype=torch.float16)
    given = vector if kind == "tensor" else vector.numpy()
    with pytest.raises(ValueError, match=r"estimate reaches 8.49e\+04, more than .*float16 holds"):
        Tomography(copies=1, signs="known").measure(given)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        *[(preparation_cost, (k, 5), "nonzeros must be") for k in [*NO_COUNTS, None, 33]],
        *[(preparation_cost, (3, n), "qubits must be") for n in [*NO_COUNTS, None]],
        *[(counted_cost, ([0], n), "qubits must be") for n in [*NO_COUNTS, None, 63]],
        *[(counted_cost, (i, 3), "indices must") for i in (None, 3, "a", ["a"], [0.5], [None])],
        *[(counted_cost, (i, 3), "indices must") for i in ([8], [-1], [True], [[0]], [2**63])],
        *[
            (sparse_state_preparation, ([0, 1], v, 3), "values")
            for v in (None, "ab", ["a", "b"], [1j, 0], [None, 1.0], [math.nan, 1.0], [1.0], 1.0)
        ],
        *[(nonzero_entries, (v,), "vector") for v in (None, "ab", [None], [1j], [math.nan], [])],
        *[
            (nonzero_entries, (v,), "vector")
            for v in (torch.zeros(0), torch.tensor(0.0), torch.tensor([math.inf]))
        ],
        (nonzero_entries, (sparse.coo_array(([1j], ([0], [0])), (1, 3)),), "vector"),
    ],
    ids=repr,
)
def test_state_preparation(function: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        function(*arguments)


def test_integers_of_numpy_and_scalars() -> None:
    assert preparation_cost(np.int64(3), np.int32(5)) == preparation_cost(3, 5)
    assert preparation_cost(3, 10**9).qubits == 10**9
    assert counted_cost([0, 5], np.int64(3)) == counted_cost([0, 5], 3)
    assert expected_copies(np.int64(9), np.float32(0.5)) == expected_copies(9, 0.5)
    assert nonzero_entries(torch.tensor(2.0))[1] == [2.0]


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        *[(block_norms, (np.eye(2), n), "order must be") for n in [*NO_COUNTS, None, 3]],
        *[(block_norms, (np.eye(2), 2, g), "rescaling must be") for g in [*NO_NUMBERS, None]],
        *[(block_norms, (np.eye(2), 2, 1.0, c), "constant must be") for c in (None, 1, "no")],
        *[(block_norms, (g, 1), "a Gram matrix") for g in (None, "a", [["a"]], [[1j]], 3.0, [])],
        (block_norms, (np.eye(2), 2, 1e-200), "overflow at rescaling=1e-200"),
        *[(post_selection, (GRAMS, g), "rescaling must be") for g in NO_NUMBERS],
        *[
            (post_selection, (GRAMS, None, p), "idle must be")
            for p in [None, -1, *[c for c in NO_COUNTS if c != 0]]
        ],
        *[(post_selection, (g,), "Gram matrix") for g in (None, "a", [[["a"]]], 1j * GRAMS)],
    ],
    ids=repr,
)
def test_post_selection(function: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        function(*arguments)
