"""The error model against its own definition, and against the emulators it stands for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.carleman.reference import random_map
from torch_qsgd.carleman.explicit import CarlemanSystem
from torch_qsgd.linear_system import LinearSystem
from torch_qsgd.readout import PostSelection
from torch_qsgd.solvers import HHL, QSVT, Exact, JetWindow, Noise


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


# ---- In jets ---------------------------------------------------------------------------------


def window(
    velocities: bool = False,
    masks: tuple[torch.Tensor | None, ...] = (),
    idle: int = 2,
    order: int = 3,
) -> JetWindow:
    """Of 40 coordinates in two tensors, 300 with momentum and masks left out of account."""
    row = [torch.zeros(5, 4, dtype=torch.float64), torch.zeros(20, dtype=torch.float64)]
    row[0][0, 0] = 3.0
    jets = [row] + [[0 * t for t in row] for _ in range(order - 1)]
    history = PostSelection(final=0.5, level_one=0.5, constant=0.5, norm=7.0, rescaling=0.3)
    return JetWindow(jets, jets if velocities else [], 6, masks, idle, history)


def made(target: JetWindow, placement: str, epsilon: float = 0.1) -> list[torch.Tensor]:
    """Errors of all tensors, the momentum's after the displacement's."""
    solution = Noise(epsilon, placement).solve(target)
    exact = Exact().solve(target)
    pairs = zip(
        [*solution.displacement, *solution.momentum],
        [*exact.displacement, *exact.momentum],
        strict=True,
    )
    return [a - b for a, b in pairs]


def length(tensors: list[torch.Tensor]) -> float:
    return float(torch.cat([t.flatten() for t in tensors]).norm())


@pytest.mark.parametrize("velocities", [False, True])
@pytest.mark.parametrize("idle", [0, 5])
def test_jets_in_the_worst_case(velocities: bool, idle: int) -> None:
    target = window(velocities, idle=idle)
    assert length(made(target, "readout")) == pytest.approx(0.1 * 7.0 * 0.3 / math.sqrt(idle + 1))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_isotropic_jets_share_the_error_with_all_unknowns(order: int) -> None:
    """Σ_j (1 + n)^j unknowns a step: the homogeneous blocks hold the constant, too."""
    masks = (torch.arange(20).reshape(5, 4) < 2, torch.zeros(20, dtype=torch.bool))
    for given, n in (((), 40), (masks, 2)):
        target = window(masks=given, idle=3, order=order)
        unknowns = (6 + 1 + 3) * sum((1 + n) ** j for j in range(1, order + 1))
        each = 0.3 * 0.1 * 7.0 / math.sqrt(unknowns * (3 + 1))
        squares = []
        for seed in range(400 if n == 2 else 40):
            solution = Noise(0.1, "isotropic").solve(target, torch.Generator().manual_seed(seed))
            exact = Exact().solve(target).displacement
            gaps = [a - b for a, b in zip(solution.displacement, exact, strict=True)]
            squares.append(length(gaps) ** 2 / n)
        assert math.sqrt(np.mean(squares)) == pytest.approx(each, rel=0.08)


@pytest.mark.parametrize("placement", ["readout", "isotropic"])
def test_masked_coordinates_stay_exact(placement: str) -> None:
    """The jets' masks come first, then the velocities': here they differ."""
    first, second = torch.arange(20).reshape(5, 4) % 2 == 0, torch.arange(20) < 7
    masks = (first, None, None, second)
    errors = made(window(velocities=True, masks=masks), placement)
    assert len(errors) == 4
    for error, mask in zip(errors, masks, strict=True):
        allowed = torch.ones_like(error, dtype=torch.bool) if mask is None else mask
        assert (error[allowed] != 0).all()
        assert not error[~allowed].any()


def test_masks_count_with_momentum() -> None:
    """Unknowns are those of displacement and momentum together, masked ones left out."""
    masks = (torch.arange(20).reshape(5, 4) < 1, None, torch.zeros(5, 4, dtype=torch.bool), None)
    n = 1 + 20 + 0 + 20
    each = 0.3 * 0.1 * 7.0 / math.sqrt(9 * sum((1 + n) ** j for j in (1, 2, 3)) * 3)
    errors = [made(window(velocities=True, masks=masks), "isotropic")]
    assert math.sqrt(length(errors[0]) ** 2 / n) == pytest.approx(each, rel=0.35)
    # A count without masks, or without the momentum, would be another by far.
    assert 9 * (1 + 80) ** 3 > 5 * 9 * (1 + n) ** 3 > 5 * 9 * (1 + 21) ** 3


def test_the_seed_decides() -> None:
    target = system()
    first, second, other = (
        Noise().solve(target, torch.Generator().manual_seed(s)).vector for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_what_is_wrong_is_said() -> None:
    for epsilon in (0, 1, -0.1, float("nan"), "x"):
        with pytest.raises(ValueError, match="epsilon must be a number above 0 and below 1"):
            Noise(epsilon=epsilon)
    with pytest.raises(ValueError, match="placement must be one of readout, isotropic"):
        Noise(placement="anywhere")
