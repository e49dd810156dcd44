"""Lanczos runs against dense eigenvalues: accuracy, orthogonality, scale, breakdown."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.cases import randn
from torch_qsgd.errors import DivergenceError
from torch_qsgd.hessian.estimate import spectrum_of
from torch_qsgd.hessian.lanczos import Lanczos
from torch_qsgd.orthonormal import OrthonormalBasis


class Dense:
    """A symmetric matrix that counts its products."""

    device = torch.device("cpu")

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.dtype, self.dimension = matrix, matrix.dtype, len(matrix)
        self.products = 0

    def __matmul__(self, vectors: Tensor) -> Tensor:
        self.products += 1
        return self.matrix @ vectors


def rotated(eigenvalues: Tensor, seed: int = 1) -> Tensor:
    """A dense matrix with these eigenvalues."""
    frame, _ = torch.linalg.qr(randn(len(eigenvalues), len(eigenvalues), seed=seed))
    matrix = (frame * eigenvalues) @ frame.T
    return (matrix + matrix.T) / 2


def outliers_and_bulk(n: int) -> Tensor:
    bulk = torch.linspace(-0.5, 0.5, n - 10, dtype=torch.float64)
    outliers = torch.tensor([-4, -2.5, 2, 3, 5, 8, 13, 21, 34, 55], dtype=torch.float64)
    return torch.cat([outliers, bulk])


def run(
    matrix: Tensor, steps: int, seed: int = 2, capacity: int | None = None, **storage: torch.dtype
) -> Lanczos:
    lanczos = Lanczos(capacity or steps, like=matrix[0], **storage)
    proceed(lanczos, matrix, steps, seed)
    return lanczos


def proceed(lanczos: Lanczos, matrix: Tensor, steps: int, seed: int) -> None:
    lanczos.start(randn(len(matrix), seed=seed).to(matrix.dtype))
    operator = Dense(matrix)
    while lanczos.steps < steps and not lanczos.exhausted:
        lanczos.advance(operator)


def disorder(lanczos: Lanczos) -> float:
    rows = lanczos.basis.rows.double()
    return float((rows @ rows.T - torch.eye(len(rows), dtype=torch.float64)).abs().max())


def test_basis_is_orthogonal_in_float32_at_200_steps() -> None:
    lanczos = run(rotated(outliers_and_bulk(1000)).float(), 200)
    assert disorder(lanczos) < 1e-5


def test_basis_stays_orthogonal_over_runs_in_complements() -> None:
    matrix = rotated(outliers_and_bulk(600)).float()
    lanczos = run(matrix, 80, capacity=240)
    for seed in (3, 4):
        lanczos.keep(160)
        proceed(lanczos, matrix, 80, seed)
    assert lanczos.basis.size == 240
    assert disorder(lanczos) < 1e-5


def test_no_value_is_found_twice() -> None:
    eigenvalues = outliers_and_bulk(1000)
    values = run(rotated(eigenvalues).float(), 200).ritz().values
    for outlier in eigenvalues[:10].tolist():
        assert np.count_nonzero(np.abs(values - outlier) < 0.05) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_eigenvalue_lies_within_each_bound(dtype: torch.dtype) -> None:
    eigenvalues = outliers_and_bulk(400)
    lanczos = run(rotated(eigenvalues).to(dtype), 40)
    ritz = lanczos.ritz()
    errors = np.abs(ritz.values[:, None] - eigenvalues.numpy()).min(1)
    assert (errors <= ritz.residuals + lanczos.rounding).all()
    assert ritz.residuals[-1] + lanczos.rounding < 1e-5 * 55


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16])
def test_residual_bounds_hold_with_a_coarse_basis(storage: torch.dtype) -> None:
    matrix = rotated(outliers_and_bulk(1000))
    lanczos = run(matrix.float(), 60, dtype=storage)
    ritz = lanczos.ritz()
    vectors = lanczos.basis.rows.double().T @ torch.from_numpy(ritz.coefficients.copy())
    residuals = matrix @ vectors - vectors * torch.from_numpy(ritz.values.copy())
    assert (residuals.norm(dim=0).numpy() <= ritz.residuals + lanczos.rounding).all()
    assert lanczos.rounding < 0.01 * 55


@pytest.mark.parametrize("storage", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 10, 150])
def test_bounds_hold_with_a_coarse_basis_in_few_dimensions_and_of_low_rank(
    n: int, storage: torch.dtype
) -> None:
    low_rank = torch.cat([torch.tensor([3.0, 1.0, -0.1]), torch.zeros(n)])[:n].double()
    for seed in range(15):
        eigenvalues = low_rank if n == 150 or seed % 2 else randn(n, seed=seed)
        matrix = rotated(eigenvalues, seed)
        spectrum = spectrum_of(
            Dense(matrix),
            basis_dtype=storage,
            generator=torch.Generator().manual_seed(seed),
        )
        true = torch.linalg.eigvalsh(matrix).numpy()
        size = float(np.abs(true).max())
        assert np.abs(true - spectrum.lambda_min).min() <= spectrum.lambda_min_bound
        assert np.abs(true - spectrum.lambda_max).min() <= spectrum.lambda_max_bound
        assert spectrum.lambda_max_bound < 0.02 * size
        assert np.abs(spectrum.nodes).max() <= 1.01 * size


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float64, 1e-300), (torch.float32, 1e-36)])
def test_products_that_lose_digits_to_underflow_are_refused(
    dtype: torch.dtype, scale: float
) -> None:
    matrix = (rotated(outliers_and_bulk(60)) * scale).to(dtype)
    with pytest.raises(ValueError, match="loses digits: scale the loss up"):
        run(matrix, 5)


def test_bounds_tell_of_an_operator_that_is_not_symmetric() -> None:
    matrix = rotated(outliers_and_bulk(300))
    upper = matrix + 0.1 * torch.triu(randn(300, 300, seed=5))
    assert run(matrix, 30).resolution < 1e-11
    assert run(upper, 30).resolution > 0.05


@given(exponent=st.integers(-100, 100))
@settings(max_examples=15, deadline=None)
def test_a_scaled_operator_gives_scaled_values(exponent: int) -> None:
    matrix = rotated(outliers_and_bulk(60))
    plain = run(matrix, 20)
    scaled = run(matrix * 2.0**exponent, 20)
    np.testing.assert_array_equal(scaled.beta, plain.beta * 2.0**exponent)
    np.testing.assert_allclose(
        scaled.ritz().values, plain.ritz().values * 2.0**exponent, rtol=1e-13, atol=0
    )
    assert scaled.resolution == plain.resolution * 2.0**exponent


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_scale_in_float32(scale: float) -> None:
    values = run((rotated(outliers_and_bulk(200)) * scale).float(), 30).ritz().values
    assert values[-1] == pytest.approx(55 * scale, rel=1e-5)


@pytest.mark.parametrize(
    ("eigenvalues", "found"),
    [
        ([0.0] * 30, [0.0]),
        ([3.0] * 30, [3.0]),
        ([7.0] + [0.0] * 29, [0.0, 7.0]),
        ([5.0] * 3 + [-1.0] * 20 + [2.0], [-1.0, 2.0, 5.0]),
        ([4.0], [4.0]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_invariant_subspace_ends_the_run(
    eigenvalues: list[float], found: list[float], dtype: torch.dtype
) -> None:
    matrix = rotated(torch.tensor(eigenvalues, dtype=torch.float64)).to(dtype)
    lanczos = run(matrix, 20)
    assert lanczos.exhausted
    assert len(found) <= lanczos.steps <= len(found) + 2  # rounding may show further copies
    distance = np.abs(lanczos.ritz().values[:, None] - found)
    tolerance = 20 * torch.finfo(dtype).eps * 7
    assert (distance.min(0) <= tolerance).all()
    assert (distance.min(1) <= tolerance).all()
    np.testing.assert_array_equal(lanczos.ritz().residuals, 0)


def test_runs_in_complements_find_all_copies() -> None:
    matrix = rotated(torch.cat([torch.full((3,), 9.0), torch.linspace(-1, 1, 77)]).double())
    lanczos = run(matrix, 25, capacity=100)
    for seed in (3, 4):
        lanczos.keep(100)
        proceed(lanczos, matrix, 25, seed)
    values = np.concatenate([np.diag(lanczos.kept), lanczos.ritz().values])
    np.testing.assert_allclose(values[values > 1.5], [9, 9, 9], rtol=1e-9)


@pytest.mark.parametrize("room", [40, 12])
def test_kept_rows_hold_the_operator_and_bound_what_leaks(room: int) -> None:
    matrix = rotated(outliers_and_bulk(200))
    lanczos = run(matrix, 20, capacity=60)
    for seed in (3, 4):
        lanczos.keep(room)
        rows = lanczos.basis.rows
        np.testing.assert_allclose(lanczos.kept, rows @ matrix @ rows.T, atol=1e-12)
        outside = matrix @ rows.T - rows.T @ (rows @ matrix @ rows.T)
        assert (outside.norm(dim=0).numpy() <= lanczos.leaks + 1e-12).all()
        proceed(lanczos, matrix, 20, seed)
    (least, low), (largest, high) = lanczos.extremes()
    assert abs(least + 4) <= low < 1e-4
    assert abs(largest - 55) <= high < 1e-9


def test_a_later_run_draws_the_ends_out() -> None:
    matrix = rotated(torch.linspace(0, 1, 500, dtype=torch.float64))
    lanczos = run(matrix, 30, capacity=60)
    _, (first, _) = lanczos.extremes()
    lanczos.keep(30)
    proceed(lanczos, matrix, 30, seed=3)
    _, (second, bound) = lanczos.extremes()
    assert first < second <= 1
    assert 1 - second <= bound


def test_a_product_that_is_not_finite_says_so() -> None:
    lanczos = Lanczos(2, like=torch.zeros(2))
    lanczos.start(torch.ones(2))
    with pytest.raises(DivergenceError, match="NaN or infinity: look at the weights"):
        lanczos.advance(Dense(torch.full((2, 2), torch.nan)))


def test_an_operator_may_return_what_it_was_given() -> None:
    class Identity:
        dimension, dtype, device = 4, torch.float64, torch.device("cpu")

        def __matmul__(self, vectors: Tensor) -> Tensor:
            return vectors

    lanczos = Lanczos(4, like=torch.zeros(4, dtype=torch.float64))
    lanczos.start(torch.ones(4, dtype=torch.float64))
    lanczos.advance(Identity())
    assert lanczos.exhausted
    assert lanczos.ritz().values == pytest.approx([1.0])


def test_a_start_in_the_kept_rows_is_refused() -> None:
    lanczos = Lanczos(2, like=torch.zeros(2))
    with pytest.raises(ValueError, match="lies in the kept rows"):
        lanczos.start(torch.zeros(2))


# ---- The basis -------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", [torch.float64, torch.float32, torch.bfloat16])
def test_rotating_replaces_rows_by_combinations(storage: torch.dtype) -> None:
    vectors, _ = torch.linalg.qr(randn(50, 4))
    frame, _ = torch.linalg.qr(randn(4, 4, seed=1))
    basis = OrthonormalBasis(4, like=vectors[:, 0], dtype=storage)
    for vector in vectors.T:
        basis.append(vector)
    expected = frame[:, :2].T @ basis.rows.double()
    torch.testing.assert_close(basis.combine(frame[:, :2]), expected)
    basis.rotate(frame[:, :2])
    torch.testing.assert_close(
        basis.rows.double(), expected, rtol=torch.finfo(storage).eps, atol=1e-14
    )
