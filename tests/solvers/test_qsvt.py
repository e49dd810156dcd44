from __future__ import annotations

import math
import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse as sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from torch_qsgd.errors import RepresentationError, SingularSystemError
from torch_qsgd.linear_system import LinearSystem
from torch_qsgd.solvers import ConditionWarning, JetWindow
from torch_qsgd.solvers.inverse_polynomial import SUP_NORM, inverse_polynomial
from torch_qsgd.solvers.qsvt import QSVT

Values = NDArray[np.float64]
KINDS = ["relative", "absolute", "cks"]


def random_system(size: int, kappa: float, seed: int, norm: float = 3.0) -> LinearSystem:
    """Random singular vectors, singular values spaced evenly in logarithm."""
    generator = np.random.default_rng(seed)
    left, right = (np.linalg.qr(generator.standard_normal((size, size)))[0] for _ in range(2))
    values = norm * np.geomspace(1, 1 / kappa, size)
    return LinearSystem((left * values) @ right, 5 * generator.standard_normal(size))


def dense_reference(
    system: LinearSystem, kind: str, kappa: float, epsilon: float, alpha: float
) -> tuple[Values, float]:
    """Solution and success probability from the singular value decomposition."""
    p = inverse_polynomial(kind, kappa, epsilon)
    left, values, right = np.linalg.svd(system.dense())
    every = np.zeros(p.degree + 1)
    every[1::2] = p.coefficients
    transformed = np.polynomial.chebyshev.chebval(np.minimum(values / alpha, 1), every)
    unit = system.rhs / np.linalg.norm(system.rhs)
    state = right.T @ (transformed * (left.T @ unit))
    grid = np.cos(np.linspace(0, math.pi / 2, 60 * p.degree))
    largest = np.abs(np.polynomial.chebyshev.chebval(grid, every)).max()
    vector = state * np.linalg.norm(system.rhs) / alpha
    return vector, float(np.linalg.norm(state) ** 2) * (SUP_NORM / largest) ** 2


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(2, 24),
    kappa=st.floats(1, 80),
    epsilon=st.sampled_from([0.3, 1e-2, 1e-4, 1e-7]),
    kind=st.sampled_from(KINDS),
    slack=st.sampled_from([1.0, 1.7]),
)
def test_error_is_within_epsilon(
    seed: int, size: int, kappa: float, epsilon: float, kind: str, slack: float
) -> None:
    system = random_system(size, kappa, seed)
    solver = QSVT(epsilon, kind, subnormalization=slack * system.norm)
    solution = solver.solve(system)
    # Measured here, not by the solver, against a dense solution.
    exact = np.linalg.solve(system.dense(), system.rhs)
    error = np.linalg.norm(solution.vector - exact) / np.linalg.norm(exact)
    assert error <= epsilon
    assert solution.error == pytest.approx(error, abs=1e-11)
    assert solution.scale == pytest.approx(np.linalg.norm(solution.vector))
    assert 0 < solution.success_probability <= SUP_NORM**2 + 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slack", [1.0, 2.5])
def test_emulator_is_the_singular_value_transformation(kind: str, slack: float) -> None:
    system = random_system(30, kappa=15, seed=1)
    alpha = 3.0 * slack
    solution = QSVT(1e-2, kind, kappa=17 * slack, subnormalization=alpha).solve(system)
    vector, probability = dense_reference(system, kind, 17 * slack, 1e-2, alpha)
    np.testing.assert_allclose(solution.vector, vector, rtol=0, atol=1e-10 * solution.scale)
    assert solution.success_probability == pytest.approx(probability, rel=3e-4)


def test_relative_error_is_attained() -> None:
    """b along the worst singular vector: the solver does not do better than it promises."""
    a, epsilon = 1 / 10, 1e-2
    p = inverse_polynomial("relative", 10, epsilon)
    system = LinearSystem(np.diag([1.0, a]), [0.0, 2.0])
    assert QSVT(epsilon).solve(system).error == pytest.approx(p.promised_error, rel=1e-9)


@pytest.mark.parametrize(("kind", "queries"), [("relative", 379), ("absolute", 541), ("cks", 1417)])
def test_queries_are_the_degree(kind: str, queries: int) -> None:
    assert QSVT(1e-3, kind, kappa=50).solve(random_system(6, 20, seed=2)).queries == queries


def test_subnormalization_costs_queries() -> None:
    system = random_system(6, kappa=20, seed=3)
    tight = QSVT().solve(system).queries
    loose = QSVT(subnormalization=4 * system.norm).solve(system).queries
    assert loose == pytest.approx(4 * tight, rel=0.02)


@pytest.mark.parametrize("size", [40, 600])
def test_matrix_free(size: int) -> None:
    generator = np.random.default_rng(4)
    matrix = sparse.diags_array(np.linspace(1, 3, size), format="csr") + sparse.diags_array(
        np.full(size - 1, -0.4), offsets=-1, format="csr"
    )
    rhs = generator.standard_normal(size)
    calls = {"matvec": 0, "rmatvec": 0}

    def matvec(x: Values) -> Values:
        calls["matvec"] += 1
        return np.asarray(matrix @ x)

    def rmatvec(x: Values) -> Values:
        calls["rmatvec"] += 1
        return np.asarray(matrix.T @ x)

    operator = LinearOperator((size, size), matvec=matvec, rmatvec=rmatvec, dtype=np.float64)
    system = LinearSystem(operator, rhs)
    explicit = QSVT(1e-4).solve(LinearSystem(matrix, rhs))
    assert system.solution.shape == (size,)
    solver = QSVT(1e-4)
    solver.encoding(system)  # norms and exact solution are kept: what follows is the emulator's
    calls.update(matvec=0, rmatvec=0)
    solution = solver.solve(system)
    np.testing.assert_allclose(solution.vector, explicit.vector, atol=1e-8 * explicit.scale)
    assert solution.error <= 1e-4
    assert solution.queries == explicit.queries
    degree = solution.queries
    assert calls == {"matvec": (degree - 1) // 2, "rmatvec": (degree + 1) // 2}


def test_scale_and_sign() -> None:
    system = random_system(9, kappa=10, seed=5)
    solution = QSVT(1e-6).solve(system)
    other = QSVT(1e-6).solve(LinearSystem(-0.25 * system.dense(), 7 * system.rhs))
    np.testing.assert_allclose(other.vector, -28 * solution.vector, rtol=1e-9)
    assert other.success_probability == pytest.approx(solution.success_probability)
    assert other.queries == solution.queries


@pytest.mark.parametrize("size", [1, 4])
def test_orthogonal_matrix(size: int) -> None:
    """κ = 1, for which there is no polynomial: a hair more is used."""
    system = random_system(size, kappa=1, seed=6)
    assert QSVT(1e-6).solve(system).error <= 1e-6
    # p(x) = 2x/(1 + 1/κ²) does, at its maximum.
    solution = QSVT(1e-3).solve(system)
    assert solution.queries == 1
    assert solution.error <= 1e-3
    assert solution.success_probability == pytest.approx(SUP_NORM**2, rel=1e-9)


def test_small_kappa_warns_and_the_error_grows() -> None:
    system = random_system(8, kappa=20, seed=7)
    with pytest.warns(ConditionWarning, match=r"kappa=5 is less than the system's 20"):
        solution = QSVT(1e-3, kappa=5).solve(system)
    assert solution.error > 1e-3
    with pytest.warns(ConditionWarning, match=r"less than the system's 40"):
        QSVT(1e-3, kappa=21, subnormalization=6.0).solve(system)


def test_large_enough_kappa_does_not_warn() -> None:
    system = random_system(8, kappa=20, seed=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kappa in (None, 20.0, 30.0):
            assert QSVT(1e-3, kappa=kappa).solve(system).error <= 1e-3


def test_subnormalization_below_the_norm() -> None:
    system = random_system(5, kappa=4, seed=8)
    with pytest.raises(ValueError, match=r"subnormalization 2.9 is less than the norm 3 "):
        QSVT(subnormalization=2.9).solve(system)
    assert QSVT(subnormalization=system.norm * (1 - 1e-15)).solve(system).error <= 1e-3


def test_singular_system() -> None:
    with pytest.raises(SingularSystemError):
        QSVT().solve(LinearSystem(np.diag([1.0, 0.0]), [1.0, 1.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": 1.0}, "epsilon"),
        ({"kind": "taylor"}, "one of absolute, cks, relative"),
        ({"kappa": 1.0}, "kappa"),
        ({"subnormalization": 0.0}, "subnormalization"),
        ({"subnormalization": math.inf}, "subnormalization"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QSVT(**options)  # type: ignore[arg-type]


def test_interface() -> None:
    solver = pickle.loads(pickle.dumps(QSVT(1e-2, "absolute", kappa=30)))
    system = random_system(7, kappa=10, seed=9)
    before = system.rhs.copy()
    solution = solver.solve(system)
    again = QSVT(1e-2, "absolute", kappa=30).solve(system)
    np.testing.assert_array_equal(solution.vector, again.vector)
    np.testing.assert_array_equal(system.rhs, before)
    assert repr(solver) == ("QSVT(epsilon=0.01, kind='absolute', kappa=30, subnormalization=None)")
    with pytest.raises(RepresentationError, match="krylov"):
        solver.solve(JetWindow([[torch.ones(2)]], [], steps=1))
    assert QSVT.name == "qsvt"


def test_operator_and_matrix_agree_without_transpose_confusion() -> None:
    """A strongly non-symmetric matrix: ℒ and ℒᵀ have quite different solutions."""
    matrix = np.array([[1.0, 0.0, 0.0], [-2.0, 1.0, 0.0], [0.0, -2.0, 1.0]])
    solution = QSVT(1e-8).solve(LinearSystem(aslinearoperator(matrix), [1.0, 0.0, 0.0]))
    np.testing.assert_allclose(solution.vector, [1, 2, 4], atol=1e-6)
