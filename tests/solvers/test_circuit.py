from __future__ import annotations

import copy
import math
import pickle
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from qiskit import QuantumCircuit, transpile
from qiskit.quantum_info import Statevector, state_fidelity
from scipy.sparse.linalg import LinearOperator

from tests.solvers.test_hhl import signed, system_with
from torch_qsgd.errors import RepresentationError, SingularSystemError, SizeError
from torch_qsgd.linear_system import LinearSystem
from torch_qsgd.solvers import ConditionWarning, JetWindow
from torch_qsgd.solvers import circuit as circuit_module
from torch_qsgd.solvers.circuit import Circuit
from torch_qsgd.solvers.hhl import HHL
from torch_qsgd.solvers.qsvt import QSVT


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- Statevector -----------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
def test_hhl_circuit_returns_what_the_emulator_does(symmetric: bool) -> None:
    system = system_with(signed(4, 4.0), symmetric, scale=5.0)
    found, expected = Circuit().solve(system), HHL(clock_qubits=6).solve(system)
    np.testing.assert_allclose(found.vector, expected.vector, atol=1e-9 * expected.scale)
    assert found.success_probability == pytest.approx(expected.success_probability, abs=1e-9)
    assert found.queries == expected.queries == 126
    assert found.error == pytest.approx(expected.error, abs=1e-9)
    assert found.scale == pytest.approx(np.linalg.norm(found.vector))


@pytest.mark.parametrize("symmetric", [True, False])
def test_qsvt_circuit_returns_what_the_emulator_does(symmetric: bool) -> None:
    system = system_with(signed(4, 4.0), symmetric, scale=5.0)
    found = Circuit("qsvt", epsilon=1e-3).solve(system)
    expected = QSVT(epsilon=1e-3).solve(system)
    np.testing.assert_allclose(found.vector, expected.vector, atol=1e-8 * expected.scale)
    assert found.success_probability == pytest.approx(expected.success_probability, abs=1e-8)
    assert found.queries == expected.queries


def test_scale_and_sign() -> None:
    system = system_with(signed(4, 3.0), symmetric=False, scale=20.0)
    solver = Circuit(clock_qubits=8)
    solution = solver.solve(system)
    assert solution.error < 1e-2
    opposite = solver.solve(LinearSystem(system.dense(), -10 * system.rhs))
    np.testing.assert_allclose(opposite.vector, -10 * solution.vector, rtol=1e-7)


# ---- Shots -----------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [True, False])
def test_error_of_sampling_falls_as_the_root_of_the_shots(symmetric: bool) -> None:
    system = system_with(signed(4, 2.5), symmetric, seed=5, scale=3.0)
    ideal = Circuit(clock_qubits=5).solve(system)

    def error(shots: int) -> float:
        solver = Circuit(clock_qubits=5, shots=shots)
        squares = [
            np.linalg.norm(solver.solve(system, seeded(seed)).vector - ideal.vector) ** 2
            for seed in range(6)
        ]
        return float(np.sqrt(np.mean(squares))) / ideal.scale

    few, many = error(2_000), error(50_000)
    assert 3.0 < few / many < 8.5  # √25 = 5, from six runs each
    # Amplitudes x_i/‖x‖ within √(D/4M), and the length within √(1/4M), of the M shots that pass.
    passing = 50_000 * ideal.success_probability
    assert 0.5 < many / math.sqrt(5 / (4 * passing)) < 2


@pytest.mark.parametrize("algorithm", ["hhl", "qsvt"])
def test_signs_and_scale_are_measured(algorithm: str) -> None:
    expected = np.array([3.0, -1.0, 2.0, -4.0, 0.7])
    matrix = np.random.default_rng(0).standard_normal((5, 5)) / 5 + np.diag([2, -2, 2, 2, 2.0])
    options = {"clock_qubits": 6} if algorithm == "hhl" else {"epsilon": 1e-2}
    solver = Circuit(algorithm, shots=30_000, **options)
    for sign in (1, -1):
        system = LinearSystem(matrix, sign * matrix @ expected)
        found = solver.solve(system, seeded(2))
        np.testing.assert_allclose(found.vector, sign * expected, atol=0.5)
        assert (np.sign(found.vector) == sign * np.sign(expected)).all()
        assert found.scale == pytest.approx(np.linalg.norm(expected), rel=0.05)
        exact = Circuit(algorithm, **options).solve(system)
        assert found.success_probability == pytest.approx(exact.success_probability, rel=0.1)
        assert found.queries == exact.queries


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_sampling_where_the_reference_is_the_solution(sign: float) -> None:
    """Of the two interfering right-hand sides one is zero, or nothing but noise."""
    system = LinearSystem(np.diag([1.0, 0.5]), [sign, 0.0])
    solver = Circuit(shots=4_000)
    found = solver.solve(system)
    np.testing.assert_allclose(found.vector, [sign, 0.0], atol=0.1)
    reference = np.array([1.0, 0.0])
    difference = solver._interference(system, reference, np.random.default_rng(0))
    np.testing.assert_allclose(difference, [2 * sign, 0.0], atol=0.2)


def test_sampling_is_reproduced_by_its_generator() -> None:
    system = system_with(signed(4, 3.0), symmetric=True)
    solver = Circuit(clock_qubits=4, shots=500)
    first = solver.solve(system, seeded(1)).vector
    np.testing.assert_array_equal(solver.solve(system, seeded(1)).vector, first)
    assert not np.array_equal(solver.solve(system, seeded(2)).vector, first)


def test_too_few_shots_are_refused_with_a_number() -> None:
    system = LinearSystem(np.diag([1.0, 1e-3]), [1.0, 0.0])
    with pytest.raises(RuntimeError, match=r"none of the 10 shots passed") as caught:
        Circuit(clock_qubits=4, shots=10).solve(system)
    enough = re.search(r"shots=(\S+)", str(caught.value))
    assert enough is not None
    # The probability is C²‖x‖² = (0.75e-3)².
    assert float(enough[1]) == pytest.approx(100 / 0.75e-3**2, rel=0.5)


@pytest.mark.parametrize("shots", [300, 2000])
@pytest.mark.parametrize("algorithm", ["hhl", "qsvt"])
def test_interference_that_nothing_passes_is_an_answer(algorithm: str, shots: int) -> None:
    """Here b − ℒr is (1, 0) to rounding, which passes at C² = 2e-4: mostly no shot does."""
    system = LinearSystem(np.diag([1.0, 0.02]), [1.0, 1.0])
    ideal = Circuit(algorithm).solve(system)
    for seed in range(3):
        found = Circuit(algorithm, shots=shots).solve(system, seeded(seed))
        assert found.vector[1] == pytest.approx(ideal.vector[1], rel=0.3)


def test_a_sign_that_no_shot_tells_is_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    system = LinearSystem(np.diag([1.0, 0.5]), [1.0, 1.0])
    measured = circuit_module._measured
    runs = []

    def first_only(program: Any, shots: int, seed: int) -> Any:
        counts, passed = measured(program, shots, seed)
        runs.append(passed)
        return (counts, passed) if len(runs) == 1 else (0 * counts, 0)

    monkeypatch.setattr(circuit_module, "_measured", first_only)
    found = Circuit(shots=1000).solve(system)
    assert len(runs) == 3
    np.testing.assert_array_equal(found.vector, [0.0, 0.0])
    assert (found.error, found.success_probability) == (1.0, runs[0] / 1000)


def test_sampling_does_not_look_at_the_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate stays the same where the exact solution is replaced by another."""
    system = LinearSystem(np.array([[2.0, 1.0], [0.5, -1.0]]), [1.0, 3.0])
    solver = Circuit(shots=3000)
    expected = solver.solve(system, seeded(4)).vector
    assert (np.sign(expected) == [1, -1]).all()
    for other in ([-1.0, 1.0], [1e-3, 1e3]):
        monkeypatch.setattr(LinearSystem, "solution", np.array(other))
        np.testing.assert_array_equal(solver.solve(system, seeded(4)).vector, expected)

    def refuse(_: LinearSystem) -> None:
        raise AssertionError("the solution was read")

    monkeypatch.setattr(LinearSystem, "solution", property(refuse))
    random, program = np.random.default_rng(0), solver.program(system)
    magnitudes, success = solver._sample(program, random)
    assert 0 < success < 1
    difference = solver._interference(system, magnitudes, random)
    assert (np.sign(difference) == [1, -1]).all()


def test_the_reference_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the exact magnitudes nor the exact signs are what the second and third run hold."""
    system = LinearSystem(np.diag([1.0, 0.5, -0.25]), [1.0, 1.0, 1.0])
    solver = Circuit(shots=200)
    references = []
    interference = Circuit._interference

    def spied(self: Any, system: Any, reference: Any, random: Any) -> Any:
        references.append(reference.copy())
        return interference(self, system, reference, random)

    monkeypatch.setattr(Circuit, "_interference", spied)
    found = solver.solve(system).vector
    (reference,) = references
    np.testing.assert_array_equal(np.abs(found)[found != 0], reference[found != 0])
    assert (reference >= 0).all()
    gap = np.linalg.norm(reference - np.abs(system.solution)) / np.linalg.norm(system.solution)
    assert 1e-3 < gap < 0.2


@pytest.mark.parametrize(
    "options", [{"algorithm": "hhl", "kappa": 3.0}, {"algorithm": "qsvt", "kappa": 3.0}], ids=str
)
@pytest.mark.parametrize("shots", [None, 2000])
def test_a_kappa_too_small_is_warned_of_once(options: Any, shots: int | None) -> None:
    system = LinearSystem(np.diag([1.0, 0.2]), [1.0, 1.0])
    with pytest.warns(ConditionWarning, match="kappa=3 is less than the system's 5") as caught:
        Circuit(shots=shots, **options).solve(system)
    assert len(caught) == 1


# ---- The circuit as such ---------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["hhl", "qsvt"])
def test_gate_counts_are_those_of_an_equal_circuit(algorithm: str) -> None:
    system = system_with(signed(4, 3.0), symmetric=True)
    options = {"clock_qubits": 4} if algorithm == "hhl" else {"epsilon": 0.1}
    solver = Circuit(algorithm, **options)
    counts = solver.gate_counts(system)
    assert set(counts) == {"u", "cx"}
    assert min(counts.values()) > 10
    circuit = solver.to_qiskit(system)
    assert isinstance(circuit, QuantumCircuit)
    assert not circuit.clbits
    written = transpile(circuit, basis_gates=["u", "cx"], optimization_level=1)
    assert dict(written.count_ops()) == counts
    assert state_fidelity(Statevector(written), Statevector(circuit)) == pytest.approx(1, abs=1e-9)


def test_statevector_of_the_circuit_holds_the_solution() -> None:
    """Read by hand, as a user of ``to_qiskit`` would."""
    system = system_with(signed(4, 3.0), symmetric=False)
    solver = Circuit(clock_qubits=5)
    program = solver.program(system)
    state = Statevector(solver.to_qiskit(system)).data
    passed = [
        index
        for index in range(len(state))
        if all(index >> qubit & 1 == value for qubit, value in program.postselect.items())
    ]
    assert [index & 7 for index in passed] == list(range(8))
    solution = (program.factor * state[passed][program.offset :][: program.size]).real
    np.testing.assert_allclose(solution, solver.solve(system).vector, rtol=1e-8)


def test_solver_is_copied_and_pickled() -> None:
    system = system_with(signed(4, 3.0), symmetric=True)
    for solver in (Circuit(clock_qubits=4), Circuit(clock_qubits=4, shots=300)):
        expected = solver.solve(system).vector
        for twin in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
            np.testing.assert_array_equal(twin.solve(system).vector, expected)
            assert repr(twin) == repr(solver)


# ---- Bad input -------------------------------------------------------------------------------


def test_unknown_algorithm_is_refused() -> None:
    with pytest.raises(ValueError, match="algorithm must be one of hhl, qsvt, got 'vqls'"):
        Circuit("vqls")


@pytest.mark.parametrize(
    ("algorithm", "option"), [("hhl", "epsilon"), ("qsvt", "window"), ("hhl", "clock")]
)
def test_unknown_options_are_refused_by_name(algorithm: str, option: str) -> None:
    with pytest.raises(TypeError, match=f"'{algorithm}' has no option '{option}'; it has: .*kappa"):
        Circuit(algorithm, **{option: 3})


def test_options_are_checked_by_the_algorithm() -> None:
    with pytest.raises(ValueError, match="kappa"):
        Circuit("hhl", kappa=0.5)
    with pytest.raises(ValueError, match="clock_qubits"):
        Circuit("hhl", clock_qubits=0)


@pytest.mark.parametrize(
    "shots", [0, -1, 1.5, True, "9", [1], 1j, math.nan, math.inf, 10**9], ids=str
)
def test_shots_are_checked(shots: Any) -> None:
    with pytest.raises(ValueError, match="shots must be an integer of at least 1"):
        Circuit(shots=shots)


@pytest.mark.parametrize("algorithm", ["hhl", "qsvt"])
@pytest.mark.parametrize("matrix", [[[1.0, 1.0], [1.0, 1.0]], [[1.0, 2.0], [0.5, 1.0]]])
def test_singular_systems_are_refused(matrix: list[list[float]], algorithm: str) -> None:
    with pytest.raises(SingularSystemError, match="singular"):
        Circuit(algorithm).solve(LinearSystem(matrix, [1.0, 0.0]))


@pytest.mark.parametrize(("rhs", "message"), [([0.0, 0.0], "zero"), ([math.nan, 1.0], "NaN")])
def test_right_hand_sides_are_checked(rhs: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Circuit().solve(LinearSystem(np.eye(2), rhs))


@pytest.mark.parametrize(
    ("algorithm", "size"), [("hhl", 65), ("hhl", 129), ("qsvt", 129), ("hhl", 10**6)]
)
def test_size_is_checked_before_anything_is_built(algorithm: str, size: int) -> None:
    def refuse(_: Any) -> Any:
        raise AssertionError("a product was taken")

    operator = LinearOperator((size, size), matvec=refuse, rmatvec=refuse, dtype=np.float64)
    with pytest.raises(SizeError, match=r"'hhl'.*'qsvt'"):
        Circuit(algorithm).solve(LinearSystem(operator, np.ones(size)))


def test_number_of_qubits_is_checked() -> None:
    with pytest.raises(SizeError, match=r"up to 12 clock_qubits, got 13.*HHL\(clock_qubits=13\)"):
        Circuit(clock_qubits=13)
    assert Circuit(clock_qubits=12).largest == 64
    assert Circuit("qsvt").largest == 128


def test_largest_system_is_one_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 13 qubits 6 are the clock's, one the rotation's; of the 6 left one the dilation's."""
    monkeypatch.setattr(circuit_module, "MOST_QUBITS", 13)
    solver = Circuit(clock_qubits=6)
    assert solver.largest == 32
    rng = np.random.default_rng(0)

    def system(size: int) -> LinearSystem:
        return LinearSystem(np.eye(size) + 0.01 * rng.standard_normal((size, size)), np.ones(size))

    assert solver.program(system(32)).circuit.num_qubits == 13
    with pytest.raises(SizeError, match=r"33 unknowns need 7 .* up to 6 beside 6 of the clock"):
        solver.program(system(33))


def test_jets_are_refused() -> None:
    with pytest.raises(RepresentationError, match="krylov"):
        Circuit().solve(JetWindow([[torch.ones(2)]], [], steps=1))


# ---- Without Qiskit --------------------------------------------------------------------------


def test_qiskit_is_imported_by_use_only_and_missed_by_name() -> None:
    script = """
import sys
import torch_qsgd.solvers.circuit as circuit
from torch_qsgd.linear_system import LinearSystem

solver = circuit.Circuit()
assert "qiskit" not in sys.modules and "qiskit_aer" not in sys.modules
for package in ("qiskit", "qiskit_aer"):
    sys.modules[package] = None  # as if it were not installed
    for use in (circuit.Circuit, lambda: solver.to_qiskit(LinearSystem([[2.0]], [1.0]))):
        try:
            use()
        except ImportError as error:
            assert package + "," in str(error), error
            assert 'pip install "torch_qsgd[quantum]"' in str(error), error
        else:
            raise AssertionError(package)
    del sys.modules[package]
assert len(solver.solve(LinearSystem([[2.0]], [1.0])).vector) == 1
assert "qiskit" in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
