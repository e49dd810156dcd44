"""Non-zeros of Hessian rows, against Hessians written out and matrices of known sparsity."""

from __future__ import annotations

import copy
import importlib
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.cases import classifier, image_batches, randn, regression, seeded, tanh_network
from torch_qsgd.auditing.row_sparsity import (
    largest_row,
    mean_nonzeros,
    mean_of_sample,
    probe_rows,
    unseen_share,
)
from torch_qsgd.hessian import HessianOperator
from torch_qsgd.report.measurements import RowSparsity


class Matrix:
    """A symmetric matrix by its entries, which counts its products."""

    def __init__(self, entries: Tensor) -> None:
        self._entries = entries
        self.dimension, self.dtype, self.device = len(entries), entries.dtype, entries.device
        self.columns: list[int] = []

    def __matmul__(self, vectors: Tensor) -> Tensor:
        self.columns.append(vectors.shape[1] if vectors.dim() == 2 else 0)
        return self._entries @ vectors


def hessian(model: nn.Module, loss_fn: Any, x: Tensor, y: Tensor) -> Tensor:
    """Written out, by PyTorch's own functions."""
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = zip(parameters.items(), flat.split(sizes), strict=True)
        tensors = {name: part.view(p.shape) for (name, p), part in parts}
        return loss_fn(torch.func.functional_call(model, tensors, x), y)

    flat = torch.cat([p.detach().flatten() for p in parameters.values()])
    return torch.autograd.functional.hessian(loss, flat)


def counted(row: Tensor, cutoff: float) -> int:
    return sum(abs(entry) > cutoff * max(map(abs, row.tolist())) for entry in row.tolist())


def fewest(row: Tensor) -> int:
    """By trying: the fewest entries that hold 99 % of the squared length."""
    squares = sorted((entry**2 for entry in row.tolist()), reverse=True)
    if not any(squares):
        return 0
    whole = math.fsum(squares)
    return next(
        k
        for k in range(1, len(squares) + 1)
        if math.fsum(squares[:k]) >= 0.99 * whole * (1 - 1e-12)
    )


# ---- Against matrices written out --------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_rows_are_those_of_the_hessian(masked: bool) -> None:
    model, (x, y) = tanh_network(), regression(1)[0]
    H = hessian(model, F.mse_loss, x, y)
    masks = {}
    if masked:
        mask = torch.tensor([[True, False], [False, True]])
        masks = {"0.weight": mask}
        keep = torch.cat([mask.flatten(), torch.ones(5, dtype=torch.bool)])
        H = H[keep][:, keep]
    found = probe_rows(HessianOperator(model, F.mse_loss, (x, y), masks=masks), rows=100)
    assert (found.dimension, found.rows) == (len(H), len(H))
    assert sorted(found.nonzeros) == sorted(counted(row, 1e-12) for row in H)
    assert sorted(found.effective) == sorted(fewest(row) for row in H)
    assert found.largest == pytest.approx(float(H.abs().max()))


def test_some_rows_are_different_ones() -> None:
    entries = torch.diag(torch.arange(1.0, 31.0, dtype=torch.float64))
    for i in range(30):  # row i has i non-zeros beside the diagonal, all told apart
        entries[i, :i] = 1e-3
    matrix = Matrix(entries.T)
    ticks: list[tuple[int, int]] = []
    found = probe_rows(matrix, rows=8, tick=lambda *now: ticks.append(now))
    assert len(set(found.nonzeros)) == found.rows == 8
    assert ticks == [(k, 8) for k in range(1, 9)]
    again = probe_rows(matrix, rows=8)
    assert again == found
    other = probe_rows(matrix, rows=8, generator=torch.Generator().manual_seed(1))
    assert other.nonzeros != found.nonzeros


def test_all_rows_where_there_are_fewer() -> None:
    matrix = Matrix(torch.eye(3))
    found = probe_rows(matrix, rows=16)
    assert found.nonzeros == [1, 1, 1]
    assert matrix.columns == [3]


def test_products_are_taken_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = Matrix(torch.eye(10))
    module = importlib.import_module("torch_qsgd.auditing.row_sparsity")
    monkeypatch.setattr(module, "_BLOCK", 39)
    assert probe_rows(matrix, rows=8).nonzeros == [1] * 8
    assert matrix.columns == [3, 3, 2]


# ---- Known sparsity ----------------------------------------------------------------------------


class Quadratic(nn.Module):
    """⟨u, Qu⟩/2 + ⟨b, u⟩."""

    def __init__(self, Q: Tensor) -> None:
        super().__init__()
        self.u = nn.Parameter(randn(len(Q), dtype=Q.dtype))
        self.register_buffer("Q", Q)

    def forward(self, x: Tensor) -> Tensor:
        return self.u @ self.Q @ self.u / 2 + x.mean() * self.u.sum()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(1, 12), density=st.floats(0, 1))
def test_sparse_quadratics(seed: int, n: int, density: float) -> None:
    generator = np.random.default_rng(seed)
    Q = torch.from_numpy(generator.uniform(0.5, 2, (n, n)) * (generator.random((n, n)) < density))
    Q = Q + Q.T
    data = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(())
    operator = HessianOperator(Quadratic(Q), lambda out, y: out, data, check=False)
    found = probe_rows(operator, rows=n)
    assert sorted(found.nonzeros) == sorted(int((row != 0).sum()) for row in Q)
    assert sorted(found.effective) == sorted(fewest(row) for row in Q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_of_independent_outputs(dtype: torch.dtype) -> None:
    """Of a linear layer under the squared error, rows of different outputs do not couple."""
    model = seeded(lambda: nn.Linear(6, 5)).to(dtype)
    x, y = randn(40, 6, dtype=dtype), randn(40, 5, seed=1, dtype=dtype)
    found = probe_rows(HessianOperator(model, F.mse_loss, (x, y)), rows=35)
    assert found.nonzeros == [7] * 35  # six weights and the bias of one output


def test_zeros_that_come_out_as_rounding_are_not_counted() -> None:
    """Orthogonal inputs make a linear layer's Hessian diagonal, to rounding."""
    model = seeded(lambda: nn.Linear(20, 3, bias=False))
    x = torch.linalg.qr(randn(256, 20))[0].float()
    operator = HessianOperator(model, F.mse_loss, (x, torch.zeros(256, 3)))
    products = operator @ torch.eye(60)
    assert int((products != 0).sum()) > 20 * 20  # a dense block of rounding an output
    found = probe_rows(operator, rows=60)
    assert found.nonzeros == [1] * 60


def test_true_small_entries_are_kept_where_they_can_be_told() -> None:
    Q = (
        torch.eye(4)
        + torch.diag(torch.full((3,), 1e-5), 1)
        + torch.diag(torch.full((3,), 1e-5), -1)
    )
    assert sorted(probe_rows(Matrix(Q)).nonzeros) == [2, 2, 3, 3]
    Q[0, 1] = Q[1, 0] = 1e-7  # within float32's rounding of 1
    assert sorted(probe_rows(Matrix(Q)).nonzeros) == [1, 2, 2, 3]
    assert sorted(probe_rows(Matrix(Q.double())).nonzeros) == [2, 2, 3, 3]


def test_the_count_in_float32_is_that_in_float64() -> None:
    model, (x, y) = classifier("group"), image_batches(1)[0]
    exact = HessianOperator(model, F.cross_entropy, (x, y))
    rough = HessianOperator(copy.deepcopy(model).float(), F.cross_entropy, (x.float(), y))
    pairs = zip(
        probe_rows(exact, rows=12).nonzeros, probe_rows(rough, rows=12).nonzeros, strict=True
    )
    assert all(abs(a - b) <= 0.01 * a for a, b in pairs)


# ---- Rows of zeros -----------------------------------------------------------------------------


def test_dead_units_have_empty_rows() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))).double()
    with torch.no_grad():
        model[0].bias[1] = -100.0  # type: ignore[index]
    operator = HessianOperator(model, F.mse_loss, regression(1)[0])
    found = probe_rows(operator, rows=13)
    assert found.nonzeros.count(0) == found.effective.count(0) == 4  # its weights, bias, output
    mean, error = mean_nonzeros(found)
    assert (mean, error) == (sum(found.nonzeros) / 13, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_rounding_are_empty(dtype: torch.dtype) -> None:
    """Batch normalisation takes the bias before it out of the loss."""
    model, (x, y) = classifier("batch").to(dtype), image_batches(1)[0]
    operator = HessianOperator(model, F.cross_entropy, (x.to(dtype), y))
    first = operator.flatten({"0.bias": torch.ones(4, dtype=dtype)}).nonzero().flatten()
    assert bool((operator @ torch.eye(operator.dimension, dtype=dtype)[:, first]).any())
    found = probe_rows(operator, rows=operator.dimension)
    assert found.nonzeros.count(0) == found.effective.count(0) == 4


@pytest.mark.parametrize("small", [1e-7, 1e-12, 1e-30])
def test_small_rows_that_are_true_are_kept(small: float) -> None:
    entries = torch.block_diag(torch.eye(3), small * torch.ones(2, 2))
    assert sorted(probe_rows(Matrix(entries)).nonzeros) == [1, 1, 1, 2, 2]


def test_a_matrix_of_zeros() -> None:
    found = probe_rows(Matrix(torch.zeros(5, 5)), rows=3)
    assert (found.nonzeros, found.effective, found.largest) == ([0, 0, 0], [0, 0, 0], 0.0)


# ---- What a sample cannot see, and what rounding hides -------------------------------------------


def test_one_full_row_among_sparse_ones_is_not_ruled_out() -> None:
    """An arrow: every row has two entries but the first, which has all."""
    arrow = torch.eye(1000, dtype=torch.float64)
    arrow[0] = arrow[:, 0] = 0.1
    found = probe_rows(Matrix(arrow), rows=16)
    assert mean_nonzeros(found) == (2.0, 0.0)  # of which the mean knows nothing
    assert largest_row(found) == 2
    assert unseen_share(found) > 1 / 1000
    every = probe_rows(Matrix(arrow), rows=1000)
    assert (largest_row(every), unseen_share(every)) == (1000, 0.0)


@pytest.mark.parametrize("rows", [1, 5, 16, 59])
def test_a_larger_share_of_longer_rows_would_be_missed_less_than_once_in_twenty(rows: int) -> None:
    share = unseen_share(RowSparsity(10**9, rows, [1] * rows, [1] * rows, 1e-6, 1.0, [0] * rows))
    generator = np.random.default_rng(rows)
    missed = (generator.random((20_000, rows)) >= share).all(1).mean()
    assert missed == pytest.approx(0.05, abs=0.006)
    assert share < 3 / rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_entries_below_the_cutoff_are_reported_as_unresolved(dtype: torch.dtype) -> None:
    dense = torch.ones(1000, 1000, dtype=dtype) + 1e6 * torch.eye(1000, dtype=dtype)
    dense[3, 5:9] = dense[5:9, 3] = 0.0
    found = probe_rows(Matrix(dense), rows=1000)
    full = [a + b for a, b in zip(found.nonzeros, found.unresolved, strict=True)]
    assert sorted(full) == [996, *[999] * 4, *[1000] * 995]
    counted = {torch.float32: [1] * 1000, torch.float64: full}[dtype]
    assert found.nonzeros == counted


def test_all_of_a_row_of_rounding_is_unresolved() -> None:
    model, (x, y) = classifier("batch").float(), image_batches(1)[0]
    operator = HessianOperator(model, F.cross_entropy, (x.float(), y))
    H = operator @ torch.eye(operator.dimension)
    biases = operator.flatten({"0.bias": torch.ones(4)}).bool()
    found = probe_rows(Matrix(H), rows=len(H))
    rounding = [u for k, u in zip(found.nonzeros, found.unresolved, strict=True) if k == 0]
    assert sorted(rounding) == sorted((H[:, biases] != 0).sum(0).tolist())
    assert min(rounding) > 0


# ---- The mean ----------------------------------------------------------------------------------


def test_standard_error_is_that_over_all_samples() -> None:
    """Of a population of six, all samples of m: squared errors estimate the variance of means."""
    population = [1.0, 2.0, 2.0, 5.0, 9.0, 11.0]
    for m in (2, 3, 5):
        found = [mean_of_sample(s, 6) for s in itertools.combinations(population, m)]
        means = np.array([mean for mean, _ in found])
        squares = np.array([error**2 for _, error in found])
        assert means.mean() == pytest.approx(5.0)
        assert squares.mean() == pytest.approx(means.var())


def test_the_whole_population_has_no_error() -> None:
    assert mean_of_sample([3.0, 8.0], 2) == (5.5, 0.0)
    assert mean_of_sample([3.0], 1) == (3.0, 0.0)
    assert mean_of_sample([3.0], 2) == (3.0, math.inf)
    assert mean_nonzeros(RowSparsity(4, 2, [1, 3], [1, 1], 1e-6, 1.0, [0, 0])) == (
        2.0,
        math.sqrt(0.5),
    )


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="rows must be an integer of at least 1"):
        probe_rows(Matrix(torch.eye(2)), rows=0)
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator"):
        probe_rows(Matrix(torch.eye(2)), generator=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="values is empty"):
        mean_of_sample([], 3)
    with pytest.raises(ValueError, match="population must be an integer of at least 2"):
        mean_of_sample([1.0, 2.0], 1)
