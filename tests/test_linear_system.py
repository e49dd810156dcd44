"""Linear systems against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from torch_qsgd.errors import SingularSystemError, SizeError
from torch_qsgd.linear_system import DENSE, WRITTEN_OUT, LinearSystem, length


def spectrum(size: int, kappa: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(2))
    return left * np.geomspace(1, 1 / kappa, size) @ right


@given(size=st.integers(1, 12), kappa=st.floats(1.5, 1e4), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_all_forms_of_a_matrix_give_the_same_facts(size: int, kappa: float, seed: int) -> None:
    dense = 3 * spectrum(size, kappa, seed)
    rhs = np.random.default_rng(seed + 1).standard_normal(size)
    expected = np.linalg.solve(dense, rhs)
    for matrix in (dense, sparse.csc_array(dense), aslinearoperator(dense)):
        system = LinearSystem(matrix, rhs)
        scale = np.linalg.norm(expected)
        np.testing.assert_allclose(system.solution, expected, atol=1e-6 * scale)
        np.testing.assert_allclose(system.dense(), dense)
        assert system.norm == pytest.approx(3.0)
        assert system.condition_number == pytest.approx(kappa if size > 1 else 1.0, rel=1e-6)


@pytest.mark.parametrize("kind", [sparse.csr_array, aslinearoperator])
def test_singular_values_of_large_systems_come_from_products(kind: object) -> None:
    size = DENSE + 88
    values = np.geomspace(1, 1 / 40, size)
    values[0] = 1.2  # a gap, as Lanczos likes it; the small end has none
    dense = np.diag(values)
    dense[0, 1] = 0.1
    exact = np.linalg.svd(dense, compute_uv=False)
    system = LinearSystem(kind(dense), np.ones(size))
    assert system.norm == pytest.approx(exact[0], rel=1e-8)
    assert system.smallest_singular_value == pytest.approx(exact[-1], rel=1e-4)


def test_symmetry_is_seen() -> None:
    assert LinearSystem([[2.0, 1.0], [1.0, 3.0]], [1.0, 0.0]).is_symmetric
    assert not LinearSystem([[2.0, 1.0], [1.1, 3.0]], [1.0, 0.0]).is_symmetric
    assert not LinearSystem(aslinearoperator(np.eye(2)), [1.0, 0.0]).is_symmetric


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match=r"square and fit.*\(2, 3\)"):
        LinearSystem(np.ones((2, 3)), [1.0, 2.0])
    with pytest.raises(ValueError, match="right-hand side is zero"):
        LinearSystem(np.eye(2), [0.0, 0.0])
    with pytest.raises(ValueError, match="matrix holds NaN"):
        LinearSystem([[np.nan, 0.0], [0.0, 1.0]], [1.0, 0.0])
    with pytest.raises(ValueError, match="rhs holds NaN"):
        LinearSystem(np.eye(2), [np.inf, 0.0])
    with pytest.raises(TypeError, match="matrix must be real"):
        LinearSystem(1j * np.eye(2), [1.0, 0.0])
    singular = LinearSystem([[1.0, 1.0], [1.0, 1.0]], [1.0, 0.0])
    with pytest.raises(SingularSystemError, match="singular, or too ill-conditioned"):
        _ = singular.solution
    with pytest.raises(
        SingularSystemError, match=r"too ill-conditioned for double precision .κ about"
    ):
        _ = singular.condition_number
    with pytest.raises(SizeError, match="5,000 unknowns are more than the 4,096"):
        LinearSystem(sparse.eye_array(5000), np.ones(5000)).dense()


# ---- Any scale -------------------------------------------------------------------------------

SCALES = [
    (1e200, 1.0),
    (1.0, 1e200),
    (1e200, 1e200),
    (1e-200, 1e-200),
    (1.0, 1e-200),
    (1e-200, 1.0),
]


def tridiagonal(size: int, scale: float = 1.0) -> sparse.csr_array:
    return sparse.csr_array(
        sparse.diags_array(scale * np.linspace(1, 3, size))
        + sparse.diags_array(np.full(size - 1, -0.4 * scale), offsets=-1)
    )


@pytest.mark.parametrize(("matrix_scale", "rhs_scale"), SCALES)
@pytest.mark.parametrize(
    ("size", "kind"),
    [(6, np.asarray), (DENSE + 8, sparse.csr_array), (DENSE + 8, aslinearoperator)],
)
def test_facts_at_any_scale(size: int, kind: object, matrix_scale: float, rhs_scale: float) -> None:
    rhs = np.random.default_rng(0).standard_normal(size)
    plain = LinearSystem(tridiagonal(size), rhs)
    matrix = tridiagonal(size, matrix_scale)
    given = kind(matrix.toarray() if kind is np.asarray else matrix)
    system = LinearSystem(given, rhs_scale * rhs)
    factor = rhs_scale / matrix_scale
    np.testing.assert_allclose(system.solution, factor * plain.solution, rtol=1e-9, atol=0)
    assert system.norm == pytest.approx(matrix_scale * plain.norm, rel=1e-9)
    assert system.condition_number == pytest.approx(plain.condition_number, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_least_squares_at_any_scale(scale: float) -> None:
    size = WRITTEN_OUT + 1
    diagonal = np.linspace(1, 2, size)
    operator = aslinearoperator(sparse.diags_array(scale * diagonal))
    np.testing.assert_allclose(
        LinearSystem(operator, np.full(size, scale)).solution, 1 / diagonal, rtol=1e-9
    )


@pytest.mark.parametrize(("matrix_scale", "rhs_scale"), [(1e-200, 1e200), (1e200, 1e-200)])
def test_solutions_that_no_float_holds_are_refused(matrix_scale: float, rhs_scale: float) -> None:
    system = LinearSystem(matrix_scale * np.eye(2), [rhs_scale, rhs_scale])
    with pytest.raises(ValueError, match=r"too large or too small for float64, about 10\^-?400"):
        _ = system.solution


def test_lengths_and_norms_that_no_float_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="length overflows"):
        LinearSystem(np.eye(2), [1.7e308, 1.7e308])
    with pytest.raises(ValueError, match="norm overflows"):
        _ = LinearSystem(np.full((2, 2), 1.7e308) - np.diag([1e308, 0]), [1.0, 0.0]).norm


def test_lengths_of_any_scale() -> None:
    for scale in (1e-300, 1.0, 1e300):
        assert length(scale * np.array([3.0, 0.0, -4.0])) == pytest.approx(5 * scale, rel=1e-14)
    assert length(np.zeros(3)) == 0
    assert length(np.array([np.inf, 1.0])) == np.inf
    assert np.isnan(length(np.array([np.nan, 1.0])))


# ---- Few different singular values -----------------------------------------------------------


@pytest.mark.parametrize("kind", [sparse.csr_array, aslinearoperator])
@pytest.mark.parametrize("value", [1.0, 1e200])
def test_large_systems_with_few_singular_values(kind: object, value: float) -> None:
    """Where Lanczos' iteration has found them all, ARPACK gives up."""
    for values in (np.full(600, 1.0), np.repeat([0.5, 1.0], 300)):
        system = LinearSystem(kind(sparse.diags_array(value * values)), np.ones(600))
        assert system.norm == pytest.approx(value, rel=1e-12)
        assert system.condition_number == pytest.approx(1 / values.min(), rel=1e-12)


@pytest.mark.parametrize("size", [12, 600])
def test_singular_and_ill_conditioned_systems_are_told_alike(size: int) -> None:
    zero = LinearSystem(sparse.diags_array(np.r_[0, np.ones(size - 1)]), np.ones(size))
    # Unit lower triangular, as Carleman systems are: invertible, with κ about 10^size.
    steep = sparse.eye_array(size) - sparse.diags_array(np.full(size - 1, 30.0), offsets=-1)
    for system in (zero, LinearSystem(steep, np.ones(size))):
        with pytest.raises(SingularSystemError, match=r"or too ill-conditioned .* .κ about"):
            _ = system.condition_number


# ---- What is given ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, bool, np.int8, np.uint16, np.longdouble])
def test_any_real_dtype_will_do(dtype: type) -> None:
    if dtype is not np.float16:
        system = LinearSystem(sparse.eye_array(2, dtype=dtype), [1.0, 1.0])
        np.testing.assert_array_equal(system.solution, [1.0, 1.0])
    np.testing.assert_array_equal(LinearSystem(np.eye(2, dtype=dtype), [2, 1]).solution, [2.0, 1.0])


def test_tensors_and_columns_are_taken() -> None:
    matrix = torch.tensor([[2.0, 0.0], [0.0, 4.0]], requires_grad=True)
    system = LinearSystem(matrix, torch.tensor([[2.0], [4.0]], dtype=torch.bfloat16))
    np.testing.assert_array_equal(system.solution, [1.0, 1.0])


EYE, ONES = np.eye(2), [1.0, 1.0]


@pytest.mark.parametrize(
    ("matrix", "rhs", "message"),
    [
        (None, ONES, "matrix must be real"),
        ("ab", ONES, "matrix must be real"),
        ([["1", "2"], ["3", "4"]], ONES, "matrix must be real"),
        ([[1.0], [1.0, 2.0]], ONES, "matrix must be an array of numbers"),
        ([[None, 1.0], [1.0, 2.0]], ONES, "matrix must be real"),
        (sparse.csr_array(1j * EYE), ONES, "matrix must be real"),
        (aslinearoperator(1j * EYE), ONES, "matrix must be real"),
        (sparse.csr_array(np.nan * EYE), ONES, "matrix holds NaN"),
        (sparse.coo_array(np.ones(4)), ONES, "must be square"),
        (np.ones((2, 2, 2)), ONES, "must be square"),
        (3.0, ONES, "must be square"),
        (EYE, None, "rhs must be real"),
        (EYE, "ab", "rhs must be real"),
        (EYE, [1j, 1.0], "rhs must be real"),
        (EYE, torch.tensor([1j, 1.0]), "rhs must be real"),
        (EYE, sparse.csr_array(EYE), "rhs must be real"),
        (np.eye(4), EYE, "rhs must be a vector"),
        (EYE, [], r"shapes \(2, 2\) and \(0,\)"),
    ],
)
def test_bad_input(matrix: object, rhs: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        LinearSystem(matrix, rhs)


def test_operators_that_do_not_do() -> None:
    forward = LinearOperator((2, 2), matvec=lambda x: x, dtype=np.float64)
    with pytest.raises(TypeError, match="needs rmatvec"):
        LinearSystem(forward, ONES).transposed_product(np.ones(2))
    wrong = LinearOperator((2, 2), matvec=lambda x: np.nan * x, dtype=np.float64)
    with pytest.raises(ValueError, match="LinearOperator holds NaN"):
        _ = LinearSystem(wrong, ONES).solution


def test_solution_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever factorisation there is, a vector that misses the equations is no solution."""
    for wrong in (lambda b: 1.001 * b, lambda b: np.nan * b):
        system = LinearSystem(EYE, ONES)
        monkeypatch.setattr(system, "solve", wrong)
        with pytest.raises(SingularSystemError, match="too ill-conditioned"):
            _ = system.solution
