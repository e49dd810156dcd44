"""The error model against its own definition, and against the emulators it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.carleman.reference import random_map
from torch_qsgd.carleman.explicit import CarlemanSystem
from torch_qsgd.linear_system import LinearSystem
from torch_qsgd.solvers import HHL, QSVT, Noise


def system(idle: int = 0) -> CarlemanSystem:
    step = random_map(np.random.default_rng(3), 3, forcing=0.1, linear=0.8, higher=0.1)
    return CarlemanSystem(step, 6, order=2, idle=idle, rescaling=0.4)


def test_the_error_has_the_promised_length() -> None:
    rng = np.random.default_rng(0)
    plain = LinearSystem(rng.standard_normal((6, 6)), rng.standard_normal(6))
    for target in (plain, system()):
        for placement in ("readout", "isotropic"):
            solution = Noise(epsilon=0.02, placement=placement).solve(target)
            assert solution.error == pytest.approx(0.02)
            assert solution.scale == pytest.approx(float(np.linalg.norm(solution.vector)))


@pytest.mark.parametrize("idle", [0, 5])
def test_in_the_worst_case_the_displacement_bears_it_all(idle: int) -> None:
    target = system(idle)
    exact = target.solution
    noisy = Noise(epsilon=0.01).solve(target).vector
    error = np.linalg.norm(target.displacement(noisy) - target.displacement(exact))
    assert error == pytest.approx(
        target.rescaling * 0.01 * np.linalg.norm(exact) / np.sqrt(idle + 1)
    )
    np.testing.assert_array_equal(target.blocks(noisy)[:6], target.blocks(exact)[:6])


@pytest.mark.parametrize("solver", [QSVT(epsilon=0.01), QSVT(epsilon=1e-3), HHL(clock_qubits=10)])
@pytest.mark.parametrize("idle", [0, 5])
def test_emulated_solvers_stay_within_the_band_of_the_model(solver: object, idle: int) -> None:
    """Their displacement is never further off than the worst case of an equal total error."""
    target = system(idle)
    exact = target.solution
    solution = solver.solve(target)
    made = np.linalg.norm(target.displacement(solution.vector) - target.displacement(exact))
    model = Noise(epsilon=solution.error).solve(target).vector
    worst = np.linalg.norm(target.displacement(model) - target.displacement(exact))
    assert 1e-4 * worst < made <= worst * (1 + 1e-9)


def test_the_seed_decides() -> None:
    target = system()
    first, second, other = (
        Noise().solve(target, torch.Generator().manual_seed(s)).vector for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_what_is_wrong_is_said() -> None:
    for epsilon in (0, 1, -0.1, float("nan"), "x"):
        with pytest.raises(ValueError, match="epsilon must lie between 0 and 1"):
            Noise(epsilon=epsilon)
    with pytest.raises(ValueError, match="placement must be one of readout, isotropic"):
        Noise(placement="anywhere")
