from __future__ import annotations

import copy
import math
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, aslinearoperator

from torch_qsgd.errors import RepresentationError, SingularSystemError, SizeError
from torch_qsgd.linear_system import LinearSystem
from torch_qsgd.solvers import ConditionWarning, JetWindow, hhl
from torch_qsgd.solvers.hhl import HHL, WINDOWS, Clock


def system_with(
    values: NDArray[np.float64], symmetric: bool, seed: int = 0, scale: float = 1.0
) -> LinearSystem:
    """Random singular vectors (or eigenvectors) to given values, and a random right-hand side."""
    random = np.random.default_rng(seed)
    size = len(values)
    left = np.linalg.qr(random.standard_normal((size, size)))[0]
    right = left if symmetric else np.linalg.qr(random.standard_normal((size, size)))[0]
    matrix = scale * left * values @ right.T
    if symmetric:
        matrix = (matrix + matrix.T) / 2
    return LinearSystem(matrix, random.standard_normal(size))


def signed(size: int, kappa: float, seed: int = 0) -> NDArray[np.float64]:
    """Values of either sign, magnitudes from 1/κ to 1, both ends present."""
    random = np.random.default_rng(seed)
    inner = random.uniform(1 / kappa, 1, size - 2)
    return np.concatenate([[1 / kappa, -1.0], inner * random.choice([-1, 1], size - 2)])


def dense_hhl(system: LinearSystem, clock: Clock, constant: float) -> tuple[Any, float]:
    """The whole unitary as a matrix, clock ⊗ system ⊗ ancilla; nothing of the package's filter.

    Returns the solution and the success probability.
    """
    matrix, size = system.dense(), system.size
    norm = np.linalg.norm(matrix, 2)
    state = np.zeros(2 * size)
    if system.is_symmetric:
        state, offset = system.rhs, 0
    else:
        state[:size], offset = system.rhs, size
        zero = np.zeros((size, size))
        matrix = np.block([[zero, matrix], [matrix.T, zero]])
    length, dimension = np.linalg.norm(state), len(matrix)
    ticks = 2**clock.qubits

    # Any unitary whose first column is the window: a reflection.
    tau = np.arange(ticks)
    first = np.ones(ticks) if clock.window == "uniform" else np.sin(np.pi * (tau + 0.5) / ticks)
    mirror = first / np.linalg.norm(first) - np.eye(ticks)[0]
    prepare = np.eye(ticks) - 2 * np.outer(mirror, mirror) / (mirror @ mirror)

    values, vectors = np.linalg.eigh(matrix / norm)
    evolve = np.zeros((ticks * dimension, ticks * dimension), dtype=complex)
    for k in tau:
        block = slice(k * dimension, (k + 1) * dimension)
        evolve[block, block] = (vectors * np.exp(2j * np.pi * clock.span * k * values)) @ vectors.T
    fourier = np.exp(2j * np.pi * np.outer(tau, tau) / ticks) / np.sqrt(ticks)
    identity = np.eye(dimension)
    estimate = np.kron(fourier.conj().T, identity) @ evolve @ np.kron(prepare, identity)

    rotate = np.zeros((2 * ticks * dimension, 2 * ticks * dimension))
    for k in tau:
        grid = (k if k < ticks // 2 else k - ticks) / (clock.span * ticks)
        sine = 0.0 if grid == 0 else max(-1.0, min(1.0, constant / grid))
        cosine = math.sqrt(1 - sine**2)
        block = slice(2 * k * dimension, 2 * (k + 1) * dimension)
        rotate[block, block] = np.kron(identity, [[cosine, -sine], [sine, cosine]])
    estimate = np.kron(estimate, np.eye(2))
    circuit = estimate.conj().T @ rotate @ estimate

    start = np.kron(np.kron(np.eye(ticks)[0], state / length), [1.0, 0.0])
    end = (circuit @ start).reshape(ticks, dimension, 2)[0, :, 1]
    solution = end[offset : offset + size].real * length / (constant * norm)
    return solution, float(np.linalg.norm(end) ** 2)


def errors(solvers: list[HHL], systems: list[LinearSystem]) -> NDArray[np.float64]:
    """Mean error over systems, of each solver."""
    return np.array([np.mean([solver.solve(s).error for s in systems]) for solver in solvers])


# ---- What it computes ------------------------------------------------------------------------


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("guard_band", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("size", "qubits"), [(4, 3), (3, 5), (6, 4)])
def test_filter_equals_the_dense_unitary(
    size: int, qubits: int, symmetric: bool, guard_band: bool, window: str
) -> None:
    system = system_with(signed(size, kappa=4.0, seed=size), symmetric, seed=7, scale=3.0)
    solver = HHL(qubits, window, guard_band)
    solution = solver.solve(system)
    expected, probability = dense_hhl(system, solver.clock, 0.75 / 4.0)
    np.testing.assert_allclose(solution.vector, expected, atol=1e-12 * np.linalg.norm(expected))
    assert solution.success_probability == pytest.approx(probability, abs=1e-13)


def test_length_of_the_solution_is_that_of_the_success_probability() -> None:
    system = system_with(signed(8, 5.0), symmetric=True, scale=0.3)
    solution = HHL(8).solve(system)
    constant = 0.75 / 5.0
    length = np.linalg.norm(system.rhs) * math.sqrt(solution.success_probability)
    assert solution.scale == pytest.approx(length / (constant * system.norm), rel=1e-12)
    assert solution.queries == 2 * 255


@pytest.mark.parametrize("symmetric", [True, False])
def test_scale_and_sign(symmetric: bool) -> None:
    system = system_with(signed(8, 5.0), symmetric, scale=40.0)
    solver = HHL(11)
    solution = solver.solve(system)
    np.testing.assert_allclose(
        solution.vector, system.solution, atol=1e-3 * np.linalg.norm(system.solution)
    )
    opposite = solver.solve(LinearSystem(system.dense(), -100.0 * system.rhs))
    np.testing.assert_allclose(opposite.vector, -100.0 * solution.vector, rtol=1e-9)
    assert opposite.success_probability == pytest.approx(solution.success_probability, rel=1e-12)


# ---- How wrong it is -------------------------------------------------------------------------


def test_sine_error_falls_fourfold_and_has_the_constant_of_the_formula() -> None:
    kappa = 10.0
    systems = [system_with(signed(16, kappa, seed), seed % 2 == 0, seed) for seed in range(6)]
    qubits = np.arange(7, 12)
    found = errors([HHL(int(t)) for t in qubits], systems)
    np.testing.assert_allclose(found[:-1] / found[1:], 4.0, atol=0.4)
    expected = 0.17 * (kappa / (0.45 * 2.0**qubits)) ** 2
    assert (found < 1.5 * expected).all()
    assert (found > 0.5 * expected).all()


@pytest.mark.parametrize("kappa", [3.0, 20.0, 61.0])
def test_sine_error_is_a_quarter_on_the_smallest_eigenvector(kappa: float) -> None:
    matrix = np.diag([1.0, -1 / kappa])
    for qubits in (9, 11):
        resolution = 0.45 * 2**qubits / kappa
        if resolution < 4:
            continue
        solution = HHL(qubits).solve(LinearSystem(matrix, [0.0, 1.0]))
        assert solution.error == pytest.approx(0.25 / resolution**2, rel=0.25)


def test_uniform_error_falls_twofold() -> None:
    systems = [system_with(signed(16, 10.0, seed), seed % 2 == 0, seed) for seed in range(10)]
    found = errors([HHL(t, "uniform") for t in (7, 9, 11, 13)], systems)
    # Where the eigenvalues lie on the grid matters, so the rate is an average over clock qubits.
    rate = (found[0] / found[-1]) ** (1 / 6)
    assert 1.7 < rate < 2.4
    assert found[-1] > 10 * errors([HHL(13)], systems)[0]


@pytest.mark.parametrize("window", WINDOWS)
def test_error_stalls_without_a_guard_band(window: str) -> None:
    # Dilated, so that both 1 and −1 are eigenvalues: their phases are the same.
    systems = [system_with(signed(16, 10.0, seed), False, seed) for seed in range(6)]
    coarse, fine = errors([HHL(t, window, guard_band=False) for t in (9, 13)], systems)
    assert fine > 0.7 * coarse
    assert fine > 100 * errors([HHL(13, window)], systems)[0]


def test_a_larger_kappa_only_costs_success_and_a_smaller_one_damps() -> None:
    system = LinearSystem(np.diag([1.0, -0.5, 0.1]), [1.0, 1.0, 1.0])
    measured, cautious = HHL(11).solve(system), HHL(11, kappa=20.0).solve(system)
    assert cautious.success_probability == pytest.approx(measured.success_probability / 4, rel=1e-3)
    np.testing.assert_allclose(cautious.vector, measured.vector, rtol=1e-4)
    with pytest.warns(ConditionWarning, match=r"kappa=3 is less than the system's 10: .* damped"):
        damped = HHL(11, kappa=3.0).solve(system)
    np.testing.assert_allclose(damped.vector[:2], [1.0, -2.0], rtol=1e-3)
    assert damped.vector[2] == pytest.approx(3.0 / 0.75, rel=1e-3)  # 1/C instead of 10


# ---- The clock -------------------------------------------------------------------------------


@pytest.mark.parametrize("window", WINDOWS)
def test_clock_starts_in_a_unit_vector(window: str) -> None:
    amplitudes = Clock(5, window, 0.45).amplitudes()
    assert amplitudes.shape == (32,)
    assert np.linalg.norm(amplitudes) == pytest.approx(1.0, abs=1e-14)
    np.testing.assert_allclose(amplitudes, amplitudes[::-1], atol=1e-15)


def test_register_values_are_twos_complement() -> None:
    eigenvalues = Clock(3, "sine", 0.45).eigenvalues()
    np.testing.assert_allclose(eigenvalues * 0.45 * 8, [0, 1, 2, 3, -4, -3, -2, -1], atol=1e-14)


def test_rotation_is_clipped_at_its_constant() -> None:
    clock = Clock(4, "sine", 0.5)
    sines = clock.sines(0.3)
    np.testing.assert_allclose(sines[:4], [0.0, 1.0, 1.0, 0.3 / 0.375], atol=1e-14)
    np.testing.assert_allclose(sines[-1:-4:-1], -sines[1:4], atol=1e-14)


def test_filter_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, eigenvalues = Clock(6, "sine", 0.45), np.linspace(-1, 1, 11)
    whole = clock.filter(eigenvalues, 0.1)
    monkeypatch.setattr(hhl, "CHUNK", 3 * clock.size)
    np.testing.assert_allclose(clock.filter(eigenvalues, 0.1), whole, atol=1e-14)


def test_filter_holds_no_more_than_its_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hhl, "CHUNK", 2**16)
    clock, eigenvalues = Clock(10, "sine", 0.45), np.linspace(-1, 1, 1000)
    clock.filter(eigenvalues[:2], 0.1)
    tracemalloc.start()
    clock.filter(eigenvalues, 0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A chunk of complex numbers, half of it for their squares, and the transform's own.
    assert peak < 2.5 * 16 * 2**16


def test_largest_clock_on_two_unknowns() -> None:
    tracemalloc.start()
    error = HHL(20).solve(LinearSystem(np.diag([1.0, 0.5]), [1.0, 1.0])).error
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error < 1e-10
    assert peak < 150 * 2**20


# ---- Odd systems -----------------------------------------------------------------------------


def test_one_unknown_and_condition_number_one() -> None:
    solution = HHL(10).solve(LinearSystem([[-2.0]], [3.0]))
    np.testing.assert_allclose(solution.vector, [-1.5], rtol=1e-4)


def test_system_of_products_only() -> None:
    system = system_with(signed(6, 4.0), symmetric=False)
    products = LinearSystem(aslinearoperator(system.dense()), system.rhs)
    solver = HHL(8)
    np.testing.assert_allclose(
        solver.solve(products).vector, solver.solve(system).vector, rtol=1e-10
    )


def test_solver_is_copied_and_pickled() -> None:
    system = system_with(signed(4, 3.0), symmetric=True)
    solver = HHL(6, "uniform", guard_band=False, kappa=5.0)
    expected = solver.solve(system).vector
    for twin in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        np.testing.assert_array_equal(twin.solve(system).vector, expected)
        assert repr(twin) == repr(solver)
    assert "uniform" in repr(solver)


# ---- Bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize("clock_qubits", [0, -3, 21])
def test_number_of_clock_qubits_is_checked(clock_qubits: int) -> None:
    with pytest.raises(ValueError, match=r"clock_qubits.*at most 20"):
        HHL(clock_qubits)


@pytest.mark.parametrize("clock_qubits", [2.0, "3", True, None])
def test_type_of_clock_qubits_is_checked(clock_qubits: Any) -> None:
    with pytest.raises(ValueError, match="clock_qubits must be an integer"):
        HHL(clock_qubits)


def test_unknown_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window must be one of sine, uniform, got 'kaiser'"):
        HHL(window="kaiser")


@pytest.mark.parametrize("kappa", [1.0, 0.0, -4.0, math.nan, math.inf])
def test_condition_number_is_checked(kappa: float) -> None:
    with pytest.raises(ValueError, match="kappa"):
        HHL(kappa=kappa)


@pytest.mark.parametrize("kappa", [None, 10.0])
@pytest.mark.parametrize("matrix", [[[1.0, 1.0], [1.0, 1.0]], [[1.0, 2.0], [0.5, 1.0]]])
def test_singular_systems_are_refused(matrix: list[list[float]], kappa: float | None) -> None:
    with pytest.raises(SingularSystemError, match="singular"):
        HHL(6, kappa=kappa).solve(LinearSystem(matrix, [1.0, 0.0]))


@pytest.mark.parametrize(
    ("rhs", "message"), [([0.0, 0.0], "zero"), ([math.nan, 1.0], "NaN"), ([math.inf, 1.0], "NaN")]
)
def test_right_hand_sides_are_checked(rhs: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HHL(6).solve(LinearSystem(np.eye(2), rhs))


def test_size_is_checked_before_anything_is_built() -> None:
    size = 5000

    def refuse(_: Any) -> Any:
        raise AssertionError("a product was taken")

    matrix = LinearOperator((size, size), matvec=refuse, rmatvec=refuse, dtype=np.float64)
    with pytest.raises(SizeError, match="qsvt"):
        HHL(6).solve(LinearSystem(matrix, np.ones(size)))


def test_jets_are_refused() -> None:
    with pytest.raises(RepresentationError, match="krylov"):
        HHL(6).solve(JetWindow([[torch.ones(2)]], [], steps=1))
