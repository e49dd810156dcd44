"""κ of the homogeneous form from single modes, against explicit systems of several."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.auditing.test_conditioning import spectrum_of_nodes, step_matrix
from torch_qsgd.auditing.conditioning import conditioning
from torch_qsgd.auditing.homogeneous import _ends, homogeneous_ends
from torch_qsgd.carleman import CarlemanSystem, PolynomialMap
from torch_qsgd.hessian.dynamics import Dynamics
from torch_qsgd.report.measurements import Truncation

PLAIN = Dynamics(0.1)


def window(
    nodes: Any, dynamics: Dynamics, steps: int, order: int, gradient: Any
) -> tuple[CarlemanSystem, Truncation]:
    """The explicit system at γ = ‖u(T)‖, and what an audit would have measured."""
    nodes, gradient = np.asarray(nodes), np.asarray(gradient)
    A, eta = step_matrix(np.diag(nodes), dynamics), dynamics.lr
    ahead = 1 + dynamics.momentum * dynamics.nesterov
    forcing = -eta * gradient
    if dynamics.momentum:
        forcing = np.concatenate([-ahead * eta * gradient, eta * gradient])
    states = [np.zeros(len(A))]
    for _ in range(steps):
        states.append(A @ states[-1] + forcing)
    lengths = [float(np.linalg.norm(u)) for u in states]
    system = CarlemanSystem(
        PolynomialMap(forcing, A), steps, order=order, rescaling=lengths[-1], closure="homogeneous"
    )
    grams = [[[length**2]] for length in lengths]
    size = eta * float(np.linalg.norm(gradient))
    return system, Truncation(steps, [], None, [], [], 1.0, 1.0, grams, size, math.nan, 2, 0.0)


def kappa(nodes: Any, dynamics: Dynamics, steps: int, order: int, found: Any = None) -> float:
    spectrum = spectrum_of_nodes(nodes)
    largest, smallest = homogeneous_ends(spectrum, dynamics, steps, order, truncation=found)
    return largest / smallest


@pytest.mark.parametrize(("order", "reviewed"), [(1, 191), (2, 284)])
def test_a_damped_window_is_as_ill_conditioned_as_its_constant(order: int, reviewed: float) -> None:
    """The standard form's blocks have κ = 3.99: they have no constant."""
    found = conditioning(spectrum_of_nodes([4.0, 6.0]), PLAIN, steps=100, order=order)
    assert found.kappa_order[-1] == pytest.approx(3.99, abs=0.02)
    assert found.kappa_homogeneous[-1] == pytest.approx(reviewed, rel=0.06)
    assert found.largest_homogeneous[-1] == pytest.approx(2, abs=0.3)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("steps", [5, 40])
@pytest.mark.parametrize(
    "nodes",
    [[4, 6], [0, 4], [0.01, 3, 19], [-0.2, 1, 9], [-1, 3], [0.3, 19.5], [1, 20.5]],
    ids=repr,
)
def test_it_is_within_a_factor_of_two_of_explicit_systems(
    nodes: list[float], steps: int, order: int
) -> None:
    for seed in range(2):
        gradient = np.random.default_rng(seed).standard_normal(len(nodes))
        system, found = window(nodes, PLAIN, steps, order, gradient)
        assert 0.5 < kappa(nodes, PLAIN, steps, order, found) / system.condition_number < 2


@pytest.mark.parametrize(
    "dynamics",
    [Dynamics(0.05, momentum=0.8), Dynamics(0.05, momentum=0.8, nesterov=True)],
    ids=["heavy", "nesterov"],
)
@pytest.mark.parametrize("nodes", [[4.0, 6.0], [0.0, 4.0], [-0.3, 2.0]], ids=repr)
def test_with_momentum_too(nodes: list[float], dynamics: Dynamics) -> None:
    system, found = window(nodes, dynamics, 20, 1, [1.0, -0.5])
    assert 0.5 < kappa(nodes, dynamics, 20, 1, found) / system.condition_number < 2


def test_unmeasured_windows_take_the_spectrum_s_own_weights() -> None:
    nodes = [0.0, 1.0, 5.0]
    for steps in (5, 30):
        system, _ = window(nodes, PLAIN, steps, 2, [1.0, 1.0, 1.0])
        assert kappa(nodes, PLAIN, steps, 2) == pytest.approx(system.condition_number, rel=0.3)


@pytest.mark.parametrize("idle", [0, 4])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("m", [-0.9, 0.5, 1.0, 1.2, 1.9])
@pytest.mark.parametrize("steps", [1, 6, 40])
def test_singular_values_of_one_mode(m: float, steps: int, order: int, idle: int) -> None:
    """All blocks of the explicit form together have the extremes of the last."""
    coupling = 0.3
    if order * steps * math.log(max(m, 1)) > 25:
        pytest.skip("beyond the digits of a dense singular value")
    system = CarlemanSystem(
        PolynomialMap([coupling], [[m]]), steps, order=order, idle=idle, closure="homogeneous"
    )
    sigma = np.linalg.svd(system.matrix.toarray(), compute_uv=False)
    found = _ends(np.array([[1.0, 0.0], [coupling, m]]), steps, idle, order)
    assert found == pytest.approx((sigma[0], sigma[-1]), rel=1e-3)


def test_a_growing_mode_is_exponential_at_any_t() -> None:
    """The digits' own: λ_min = −3.74 at η = 0.02 makes κ 4e63 at T = 1000, N = 2."""
    found = [kappa([-3.74, 1.0], Dynamics(0.02), steps, 2) for steps in (100, 500, 1000)]
    rate = 2 * math.log1p(0.02 * 3.74)
    assert math.log(found[2] / found[1]) == pytest.approx(500 * rate, rel=1e-3)
    assert math.log(found[1] / found[0]) == pytest.approx(400 * rate, rel=1e-3)
    assert 1e62 < found[2] < 1e66


def test_beyond_float64_there_is_no_inverse() -> None:
    for nodes in ([-10.0, 1.0], [-1e200, 1.0]):
        largest, smallest = homogeneous_ends(spectrum_of_nodes(nodes), PLAIN, 3000, 2)
        assert smallest == 0
        assert not math.isnan(largest)
