"""Explicit systems against matrices written out densely, and against jets."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import scipy.sparse as sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.carleman.reference import (
    dense_factors,
    dense_history,
    dense_step,
    lifted,
    powers,
    random_map,
)
from tests.carleman.test_polynomial import network_loss
from tests.cases import regression, run_recorded, tanh_network, vector
from torch_qsgd import QuantumSGD
from torch_qsgd.carleman.blocks import StepOperator, symmetric_isometry
from torch_qsgd.carleman.explicit import CarlemanSystem, system_size
from torch_qsgd.carleman.polynomial import PolynomialMap, trajectory
from torch_qsgd.errors import SizeError

FORMS = [(closure, eta) for closure in ("homogeneous", "standard") for eta in ("all", "first")]


def reference_history(
    maps: list[PolynomialMap], order: int, start: np.ndarray, closure: str, eta: str, idle: int
) -> np.ndarray:
    if closure == "homogeneous":
        steps = [dense_step(lifted(m), order, eta) for m in maps]
        return dense_history(steps, powers(np.concatenate([[1.0], start]), order), idle)
    steps = [dense_step(dense_factors(m), order, eta) for m in maps]
    return dense_history(steps, powers(start, order), idle)


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 3),
    order=st.integers(1, 3),
    degree=st.integers(1, 3),
    form=st.sampled_from(FORMS),
    idle=st.integers(0, 2),
)
@settings(max_examples=60, deadline=None)
def test_matrix_operator_and_solution_are_those_written_out(
    seed: int, n: int, order: int, degree: int, form: tuple[str, str], idle: int
) -> None:
    closure, eta = form
    rng = np.random.default_rng(seed)
    maps = [random_map(rng, n, degree) for _ in range(2)]
    maps = [maps[0], maps[1], maps[0]]  # time-dependent, one of them twice
    start = rng.standard_normal(n)
    gamma = 0.7
    system = CarlemanSystem(
        maps,
        3,
        order=order,
        start=start,
        idle=idle,
        closure=closure,
        eta_orders=eta,
        rescaling=gamma,
    )
    scaled = [m.rescaled(gamma) for m in maps]
    expected = reference_history(scaled, order, start / gamma, closure, eta, idle)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(system.solution, expected.ravel(), atol=1e-12 * scale)
    solved = np.linalg.solve(system.matrix.toarray(), system.rhs)
    np.testing.assert_allclose(solved, expected.ravel(), atol=1e-12 * scale)
    x = rng.standard_normal(system.size)
    np.testing.assert_allclose(system.operator.matvec(x), system.matrix @ x, atol=1e-11)
    np.testing.assert_allclose(system.operator.rmatvec(x), system.matrix.T @ x, atol=1e-11)
    np.testing.assert_allclose(
        system.solve(x, transposed=True), np.linalg.solve(system.matrix.toarray().T, x), atol=1e-9
    )
    skip = closure == "homogeneous"
    np.testing.assert_allclose(
        system.displacement(system.solution), gamma * expected[3, skip : skip + n], atol=1e-11
    )
    np.testing.assert_allclose(
        system.history(system.solution), gamma * expected[:4, skip : skip + n], atol=1e-11
    )
    weights = (expected**2).sum(1)
    assert system.final_probability(system.solution) == pytest.approx(
        weights[3:].sum() / weights.sum()
    )
    u = expected[3, skip : skip + n]
    assert system.level_one_probability(system.solution) == pytest.approx((u**2).sum() / weights[3])


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 3),
    order=st.integers(1, 4),
    form=st.sampled_from(FORMS),
)
@settings(max_examples=40, deadline=None)
def test_the_monomial_basis_is_the_symmetric_part_of_the_full_one(
    seed: int, n: int, order: int, form: tuple[str, str]
) -> None:
    closure, eta = form
    rng = np.random.default_rng(seed)
    step, start = random_map(rng, n), rng.standard_normal(n)
    options = {"order": order, "start": start, "closure": closure, "eta_orders": eta, "idle": 1}
    full = CarlemanSystem(step, 3, basis="kronecker", **options)
    small = CarlemanSystem(step, 3, basis="monomial", **options)
    size = n + (closure == "homogeneous")
    assert small.step_size == sum(math.comb(size + j - 1, j) for j in range(1, order + 1))
    isometries = [symmetric_isometry(size, j).toarray() for j in range(1, order + 1)]
    blocks = np.split(full.blocks(full.solution), np.cumsum(full.block_sizes)[:-1], axis=1)
    expected = np.concatenate([b @ S for b, S in zip(blocks, isometries, strict=True)], axis=1)
    np.testing.assert_allclose(small.blocks(small.solution), expected, atol=1e-10)
    assert np.linalg.norm(small.solution) == pytest.approx(np.linalg.norm(full.solution))
    x = rng.standard_normal(small.size)
    np.testing.assert_allclose(small.operator.matvec(x), small.matrix @ x, atol=1e-11)
    np.testing.assert_allclose(small.operator.rmatvec(x), small.matrix.T @ x, atol=1e-11)
    inverse = np.linalg.inv(small.matrix.toarray())
    np.testing.assert_allclose(inverse @ small.rhs, small.solution, atol=1e-10)
    if small.size <= 300 and full.size <= 400:
        assert small.condition_number <= full.condition_number * (1 + 1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("basis", ["kronecker", "monomial"])
def test_the_homogeneous_first_block_is_the_jets_of_a_network(order: int, basis: str) -> None:
    steps, lr, decay = 12, 0.05, 0.1
    model = tanh_network()
    anchor = vector(model.parameters())
    batches = regression(2)
    maps = [
        PolynomialMap.from_loss(network_loss(x, y), anchor, lr=lr, weight_decay=decay, degree=order)
        for x, y in batches
    ]
    system = CarlemanSystem(
        [maps[t % 2] for t in range(steps)], steps, order=order, basis=basis, rescaling=0.5
    )
    opt = QuantumSGD(
        model.parameters(), lr=lr, weight_decay=decay, density=1, window=steps, order=order
    )
    run_recorded(opt, model, [batches[t % 2] for t in range(steps)])
    u = (vector(model.parameters()) - anchor).numpy()
    np.testing.assert_allclose(
        system.displacement(system.solution), u, rtol=0, atol=1e-10 * np.abs(u).max()
    )


def test_with_all_orders_of_eta_the_error_falls_geometrically_and_with_the_first_it_stalls() -> (
    None
):
    rng = np.random.default_rng(0)
    step = random_map(rng, 2, forcing=0.1, linear=0.5, higher=0.1)
    steps = 15
    true = trajectory([step] * steps, np.zeros(2))[-1]

    def errors(eta: str, closure: str) -> list[float]:
        found = []
        for order in range(1, 6):
            system = CarlemanSystem(step, steps, order=order, eta_orders=eta, closure=closure)
            u = system.displacement(system.solution)
            found.append(float(np.linalg.norm(u - true) / np.linalg.norm(true)))
        return found

    for closure in ("homogeneous", "standard"):
        complete, first = errors("all", closure), errors("first", closure)
        assert complete[-1] < 1e-7, complete
        assert all(b < 0.1 * a for a, b in itertools.pairwise(complete)), complete
        assert min(first) > 1e-4, first
        assert first[-1] > first[1], first


def slope(counts: list[int], kappas: list[float]) -> float:
    return float(np.polyfit(np.log(counts), np.log(kappas), 1)[0])


def kappas(multiplier: float, counts: list[int]) -> list[float]:
    step = PolynomialMap([0.1, 0.1], np.diag([multiplier, 0.4]))
    return [CarlemanSystem(step, T, order=1, closure="standard").condition_number for T in counts]


def test_the_condition_number_against_the_number_of_steps() -> None:
    """Dissipative: saturates. Almost dissipative: grows as T. A negative eigenvalue: as μ^T."""
    eta = 0.1
    dissipative = kappas(1 - eta * 1.0, [50, 100, 200])
    assert dissipative[2] < 1.03 * dissipative[1]
    assert dissipative[2] == pytest.approx((2 - eta) / eta, rel=0.02)
    counts = [40, 80, 160, 320]
    assert slope(counts, kappas(1.0, counts)) == pytest.approx(1.0, abs=0.1)
    growing = kappas(1 + eta * 1.0, [60, 90, 120])
    rates = np.diff(np.log(growing)) / 30
    np.testing.assert_allclose(rates, math.log(1 + eta), rtol=0.05)


def test_large_systems_work_through_products_only() -> None:
    rng = np.random.default_rng(2)
    step = random_map(rng, 20)
    system = CarlemanSystem(step, 4, order=3, closure="standard", limit=10**8)
    assert system.size > 40_000
    with pytest.raises(SizeError, match="matrix-free operator"):
        _ = system.matrix
    residual = system.operator.matvec(system.solution) - system.rhs
    assert np.abs(residual).max() < 1e-12
    true = trajectory([step] * 4, np.zeros(20))[-1]
    assert np.linalg.norm(system.displacement(system.solution) - true) < 1e-3 * np.linalg.norm(true)


def test_nothing_is_built_that_would_not_fit() -> None:
    step = PolynomialMap(np.zeros(50), None, None)
    assert system_size(step, 100, 4, closure="standard").unknowns == 101 * (
        50 + 50**2 + 50**3 + 50**4
    )
    with pytest.raises(SizeError, match=r"unknowns.*Krylov.*jet.*raise `limit`"):
        CarlemanSystem(step, 100, order=4)
    began = time.perf_counter()
    for steps, order, basis in ((10**9, 1, "kronecker"), (5, 4, "monomial"), (5, 5, "monomial")):
        with pytest.raises(SizeError, match="Nothing was built"):
            CarlemanSystem(step, steps, order=order, basis=basis, limit=2**26)
    assert time.perf_counter() - began < 1  # it took seconds to build what the limit forbids


def test_many_steps_take_no_more_than_foretold() -> None:
    system = CarlemanSystem(PolynomialMap([0.1], [[0.9]]), 20_000, order=1, closure="standard")
    assert system.matrix.nnz == 40_001
    expected = 1 - 0.9**20_000
    assert system.displacement(system.solution)[0] == pytest.approx(expected)
    wide = PolynomialMap(np.full(20_000, 0.1), sparse.eye_array(20_000, format="csr") * 0.5)
    slim = CarlemanSystem(wide, 3, order=1)  # a dense G_1 would take 3 GiB
    np.testing.assert_allclose(slim.displacement(slim.solution), 0.1 * (1 + 0.5 + 0.25))


def test_columns_go_through_products_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    step = random_map(np.random.default_rng(4), 3)
    y = np.random.default_rng(5).standard_normal((39, 10))
    whole = StepOperator(step, 3)
    expected = whole.apply(y), whole.apply_transposed(y)
    monkeypatch.setattr("torch_qsgd.carleman.blocks.CHUNK", 80)
    np.testing.assert_allclose(whole.apply(y), expected[0], atol=1e-13)
    np.testing.assert_allclose(whole.apply_transposed(y), expected[1], atol=1e-13)


@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 3),
    order=st.integers(1, 3),
    form=st.sampled_from(FORMS),
)
@settings(max_examples=30, deadline=None)
def test_the_foretold_memory_is_an_upper_bound(
    seed: int, n: int, order: int, form: tuple[str, str]
) -> None:
    step = random_map(np.random.default_rng(seed), n)
    closure, eta = form
    for basis in ("kronecker", "monomial"):
        system = CarlemanSystem(
            step, 3, order=order, closure=closure, eta_orders=eta, basis=basis, idle=2
        )
        assert system.footprint.unknowns == system.size
        parts = (system.matrix.data, system.matrix.indices, system.matrix.indptr)
        assert system.footprint.matrix_bytes >= sum(part.nbytes for part in parts)


def test_what_is_wrong_is_said() -> None:
    step = PolynomialMap([0.1], [[0.5]])
    for name, value in (("steps", 0), ("order", 0), ("idle", -1), ("order", 1.5), ("steps", True)):
        with pytest.raises(ValueError, match=f"{name} must be an integer"):
            CarlemanSystem(step, **{"steps": 2, "order": 1, name: value})
    for name in ("closure", "eta_orders", "basis"):
        with pytest.raises(ValueError, match=f"{name} must be one of"):
            CarlemanSystem(step, 2, order=1, **{name: "some"})
    with pytest.raises(ValueError, match="maps must be a PolynomialMap"):
        CarlemanSystem([np.eye(2)], 1, order=1)
    for value in (0, -1.0, math.nan, "some", None, True):
        with pytest.raises(ValueError, match="rescaling must be"):
            CarlemanSystem(step, 2, order=1, rescaling=value)
    with pytest.raises(ValueError, match="each of the 3 steps"):
        CarlemanSystem([step] * 2, 3, order=1)
    with pytest.raises(ValueError, match="same dimension"):
        CarlemanSystem([step, PolynomialMap([0.1, 0.1])], 2, order=1)
    with pytest.raises(ValueError, match="start must hold 1 finite"):
        CarlemanSystem(step, 2, order=1, start=[math.nan])
    with pytest.raises(ValueError, match="right-hand side is zero"):
        CarlemanSystem(PolynomialMap([0.0], [[0.5]]), 2, order=1, closure="standard")
