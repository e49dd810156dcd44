r"""What can be said of a Carleman system's condition number before its matrix is built."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, svds

from torch_qsgd.checks import require_integer

Array = NDArray[np.float64]
#: Windows of steps times D³ up to which their products are formed: ten seconds on a core.
_AFFORDABLE = 1e10


def condition_bound(step_matrices: Sequence[sparse.csr_array], idle: int = 0) -> float:
    r"""Upper bound of κ(ℒ), infinite where it leaves the range of float64.

    .. math::
        \kappa(\mathcal L) \le (1 + \|A\|) \sum_{k=0}^{T+p} \max_t \|A_{t+k-1} \cdots A_t\|

    with ‖A‖ the largest norm of a step, idle ones (A_t = I for t ≥ T) included. The products are
    formed where their number, T for one map and T(T+1)/2 for several, times D³ (D at least 50)
    is at most 10¹⁰; else powers of ‖A‖ stand for their norms.

    Args:
        step_matrices: A_t of each step, of shape (D, D); equal ones are found and treated as one.
        idle: p, at least 0.

    Raises:
        ValueError: for no matrix at all, shapes that differ, NaN or infinity.

    Cost: a product and a norm of each distinct window of steps, or a norm of each distinct A_t.

    Source: the norm of ℒ⁻¹, block by block; ours for several maps and idle steps.

    Example:
        >>> halves = [sparse.csr_array(np.eye(2) / 2)] * 3
        >>> condition_bound(halves)  # 3/2 (1 + 1/2 + 1/4 + 1/8)
        2.8125
    """
    idle = require_integer("idle", idle, 0)
    matrices, sequence = _distinct(step_matrices)
    steps, size = len(sequence), matrices[0].shape[0]
    windows = steps if len(matrices) == 1 else steps * (steps + 1) // 2
    with np.errstate(over="ignore", invalid="ignore"):
        if windows * max(size, 50) ** 3 <= _AFFORDABLE:
            longest, last = _window_norms(np.stack([a.toarray() for a in matrices]), sequence)
        else:
            longest = last = max(map(_matrix_norm, matrices)) ** np.arange(steps + 1.0)
        total = 0.0
        for k in range(steps + idle + 1):
            # A product that reaches into the idle steps is a shorter one, of the last steps.
            reaching = last[max(k - idle, 0) : min(k, steps + 1)]
            total += float(max(*longest[k : k + 1], *reaching, 0.0))
        return float(1 + max(longest[1], 1.0 if idle else 0.0)) * total


def _window_norms(matrices: Array, sequence: NDArray[np.int64]) -> tuple[Array, Array]:
    """max_t ‖A_{t+k−1} … A_t‖ and ‖A_{T−1} … A_{T−k}‖ for k = 0 … T; equal windows count once."""
    steps, count = len(sequence), len(matrices)
    longest, last = np.ones(steps + 1), np.ones(steps + 1)
    products = np.eye(matrices.shape[1])[None]
    which = np.zeros(steps + 1, dtype=np.int64)  # the product of the window that starts at t
    for k in range(1, steps + 1):
        starts = 1 if count == 1 else steps - k + 1
        pairs = which[:starts] * count + sequence[k - 1 :][:starts]
        distinct, which = np.unique(pairs, return_inverse=True)
        products = matrices[distinct % count] @ products[distinct // count]
        if not np.isfinite(products).all():
            longest[k:] = last[k:] = math.inf
            break
        norms = np.linalg.norm(products, 2, axis=(1, 2))
        longest[k], last[k] = norms.max(), norms[which[-1]]
    return longest, last


def _distinct(
    step_matrices: Sequence[sparse.csr_array],
) -> tuple[list[sparse.csr_array], NDArray[np.int64]]:
    """The distinct matrices, and which of them each step has."""
    given = list(step_matrices)
    shapes = {np.shape(a) for a in given}
    if len(shapes) != 1 or any(len(s) != 2 or len({*s}) != 1 or 0 in s for s in shapes):
        raise ValueError(
            f"step_matrices must be square and of one shape, at least one: got {sorted(shapes)}"
        )
    matrices: list[sparse.csr_array] = []
    contents: dict[tuple[bytes, bytes, bytes], int] = {}
    known: dict[int, int] = {}
    for a in given:
        if id(a) not in known:
            rows = sparse.csr_array(a, dtype=np.float64)
            if not np.isfinite(rows.data).all():
                raise ValueError("step_matrices hold NaN or infinity")
            content = (rows.indptr.tobytes(), rows.indices.tobytes(), rows.data.tobytes())
            known[id(a)] = contents.setdefault(content, len(matrices))
            if known[id(a)] == len(matrices):
                matrices.append(rows)
    return matrices, np.array([known[id(a)] for a in given])


def _matrix_norm(a: sparse.csr_array) -> float:
    sizes = abs(a)
    columns, rows = float(sizes.sum(axis=0).max()), float(sizes.sum(axis=1).max())
    ceiling = math.sqrt(columns) * math.sqrt(rows)
    if ceiling == 0:
        return 0.0
    if min(a.shape) <= 64:
        return float(np.linalg.norm(a.toarray(), 2))
    start = np.random.default_rng(0).standard_normal(a.shape[0])
    try:
        estimate = float(svds(a, k=1, return_singular_vectors=False, v0=start, tol=1e-10)[0])
    except ArpackError:
        return ceiling
    # A Ritz value lies below the norm; the bound needs what does not.
    return min(estimate * (1 + 1e-8), ceiling)
