"""Linear systems against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator

from torch_qsgd.errors import SingularSystemError, SizeError
from torch_qsgd.linear_system import DENSE, LinearSystem


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
    with pytest.raises(SingularSystemError, match="singular"):
        _ = singular.solution
    with pytest.raises(SingularSystemError, match="smallest singular value"):
        _ = singular.condition_number
    with pytest.raises(SizeError, match="5,000 unknowns are more than the 4,096"):
        LinearSystem(sparse.eye_array(5000), np.ones(5000)).dense()
