"""Sparse vectors as indices and values: read from arrays of every kind, and checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sparse
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from torch_qsgd.checks import require_integer
from torch_qsgd.linear_system import real_array

#: Basis strings are kept in 64-bit integers, with room for a sign.
MOST_QUBITS = 62

Strings = NDArray[np.int64]


def nonzero_entries(vector: Any) -> tuple[Strings, NDArray[np.float64], int]:
    """Indices, values and number of qubits of a vector, as the other functions here take them.

    Args:
        vector: a NumPy array or PyTorch tensor, flattened, or a ``scipy.sparse`` row, column, or
            one-dimensional array, of up to 2⁶² entries.

    Returns:
        Indices in rising order, of shape (k,), int64; values of shape (k,), float64; and n, the
        least number of qubits, at least 1, with 2ⁿ no less than the vector's size.

    Raises:
        ValueError: for a sparse matrix with more than one row and column, a zero vector, NaN or
            infinity.
        TypeError: for complex entries, or what are no numbers.

    Example:
        >>> nonzero_entries(np.array([0.0, 0.0, 3.0, 0.0, -1.0]))
        (array([2, 4]), array([ 3., -1.]), 3)
    """
    indices: Any
    values: Any
    if isinstance(vector, Tensor):
        detached = vector.detach().cpu()
        if detached.layout == torch.strided:
            detached = detached.reshape(-1)
        coalesced: Any = detached.to_sparse().coalesce()
        indices = np.ravel_multi_index(tuple(coalesced.indices().numpy()), tuple(detached.shape))
        values = coalesced.values()
        values = values.to(torch.promote_types(values.dtype, torch.float64)).numpy()
        size = vector.numel()
    elif sparse.issparse(vector):
        entries = sparse.coo_array(vector)
        if sum(length > 1 for length in entries.shape) > 1:
            raise ValueError(f"a sparse vector has one row or one column, got {entries.shape}")
        entries.sum_duplicates()
        axis = int(np.argmax(entries.shape))
        indices, values, size = entries.coords[axis], entries.data, int(entries.shape[axis])
    else:
        dense = real_array("the vector", vector).ravel()
        indices = np.flatnonzero(dense)
        values, size = dense[indices], dense.size
    qubits = max(1, (size - 1).bit_length())
    strings, amplitudes = checked_entries(indices, values, qubits)
    order = np.argsort(strings)
    return strings[order], amplitudes[order], qubits


def checked_indices(indices: ArrayLike, qubits: int) -> Strings:
    """A copy of the indices, of shape (k,), int64."""
    qubits = require_integer("qubits", qubits, 1, MOST_QUBITS)
    given = np.asarray(indices)
    if given.ndim != 1 or given.size == 0:
        raise ValueError(f"indices must be a list of one integer or more, got shape {given.shape}")
    if given.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got {given.dtype}")
    if given.min() < 0 or given.max() >= 1 << qubits:
        raise ValueError(
            f"indices must lie in 0 … 2^{qubits} − 1, got {given.min()} … {given.max()}"
        )
    ordered = np.sort(given)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if twice.size:
        raise ValueError(f"index {twice[0]} is given twice")
    return given.astype(np.int64)


def checked_entries(
    indices: ArrayLike, values: ArrayLike, qubits: int
) -> tuple[Strings, NDArray[np.float64]]:
    """Copies of indices and values, without zeros."""
    amplitudes = real_array("the vector of values", values).copy()
    if not amplitudes.any():
        raise ValueError("the vector is zero, or has no entries: no quantum state holds it")
    strings = checked_indices(indices, qubits)
    if amplitudes.shape != strings.shape:
        raise ValueError(
            f"values must have the indices' shape {strings.shape}, got {amplitudes.shape}"
        )
    kept = amplitudes != 0
    return strings[kept], amplitudes[kept]
