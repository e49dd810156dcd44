"""All solvers at scales whose squares float64 does not hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator

from torch_qsgd.linear_system import LinearSystem
from torch_qsgd.solvers import HHL, QSVT, Circuit, Exact, Noise, Solver

SOLVERS = [
    Exact(),
    HHL(6),
    QSVT(1e-2),
    Noise(1e-2),
    Circuit("hhl", clock_qubits=4),
    Circuit("qsvt", epsilon=1e-2),
    Circuit("hhl", shots=400, clock_qubits=4),
    Circuit("qsvt", shots=400, epsilon=1e-2),
]
MATRICES = {
    "symmetric": np.array([[2.0, 0.5, 0.0], [0.5, -1.0, 0.0], [0.0, 0.0, 1.5]]),
    "general": np.array([[2.0, 0.0, 0.0], [0.5, -1.0, 0.0], [0.0, 0.25, 1.5]]),
}
RHS = np.array([1.0, -2.0, 0.5])


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("kind", MATRICES)
def test_a_solution_only_changes_its_scale(solver: Solver, kind: str) -> None:
    matrix = MATRICES[kind]
    plain = solver.solve(LinearSystem(matrix, RHS))
    for forms in (np.asarray, aslinearoperator) if kind == "general" else (np.asarray,):
        for of_matrix, of_rhs in [
            (1.0, 1e200),
            (1.0, 1e-200),
            (1e200, 1.0),
            (1e-200, 1.0),
            (1e200, 1e200),
            (1e-200, 1e-200),
        ]:
            system = LinearSystem(forms(of_matrix * matrix), of_rhs * RHS)
            solution = solver.solve(system)
            factor = of_rhs / of_matrix
            np.testing.assert_allclose(
                solution.vector / factor, plain.vector, atol=1e-9 * plain.scale
            )
            assert solution.scale / factor == pytest.approx(plain.scale, rel=1e-9)
            assert solution.error == pytest.approx(plain.error, rel=1e-6, abs=1e-9)
            assert solution.success_probability == pytest.approx(plain.success_probability)
            assert solution.queries == plain.queries


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize(("of_matrix", "of_rhs"), [(1e-200, 1e200), (1e200, 1e-200)])
def test_solutions_that_no_float_holds_are_refused(
    solver: Any, of_matrix: float, of_rhs: float
) -> None:
    with pytest.raises(ValueError, match="too large or too small for float64"):
        solver.solve(LinearSystem(of_matrix * MATRICES["general"], of_rhs * RHS))
