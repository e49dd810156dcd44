"""How sure the share of negative eigenvalues is, against measures and spectra that are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from torch_qsgd.hessian import HessianOperator, Spectrum, spectrum_of
from torch_qsgd.hessian.masses import negative_mass_range

Array = NDArray[np.float64]


class Diagonal:
    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, entries: Array) -> None:
        self.entries, self.dimension = torch.from_numpy(entries), len(entries)

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.entries * v


def quadrature(points: Array, masses: Array, steps: int) -> tuple[Array, Array]:
    """Gauss quadrature of a measure on points, by Lanczos with a full basis."""
    basis = [np.sqrt(masses)]
    matrix = np.zeros((steps, steps))
    for j in range(steps):
        w = points * basis[j]
        for _ in range(2):
            for i, v in enumerate(basis):
                part = v @ w
                matrix[i, j] += part
                w = w - part * v
        if j + 1 < steps:
            matrix[j + 1, j] = np.linalg.norm(w)
            basis.append(w / matrix[j + 1, j])
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return values, vectors[0] ** 2


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.floats(-1, 1))
def test_the_range_holds_the_measure_that_the_probe_sees(seed: int, steps: int, shift: float):
    rng = np.random.default_rng(seed)
    points = rng.laplace(shift, 1.0, 60)
    masses = rng.dirichlet(np.ones(60))
    nodes, weights = quadrature(points, masses, steps)
    low, high = negative_mass_range(nodes, weights, np.zeros(steps, bool), 1, 0.0)
    assert low - 1e-9 <= masses[points < 0].sum() <= high + 1e-9
    # Of the inequalities themselves, by a plain loop.
    before = sum(nodes < 0)
    assert low == pytest.approx(sum(weights[: max(before - 1, 0)]))
    assert high == pytest.approx(sum(weights[: before + 1]))


def measured(operator: Any, steps: int, probes: int, seed: int) -> Spectrum:
    generator = torch.Generator().manual_seed(seed)
    return spectrum_of(operator, steps=steps, probes=probes, generator=generator, progress=False)


def synthetic(name: str) -> Array:
    rng = np.random.default_rng(0)
    if name == "most near zero":
        outliers = [-2.0, *range(3, 12), 30.0]
        bulk = rng.normal(0, 1e-3, 800), rng.normal(0, 0.3, 189)
        return np.concatenate([outliers, *bulk])
    if name == "one bulk":
        return rng.normal(0.3, 1, 1000)
    return rng.laplace(0.01, 0.1, 1000)


@pytest.mark.parametrize(("steps", "probes"), [(10, 1), (20, 2), (40, 2), (15, 4)])
@pytest.mark.parametrize("name", ["most near zero", "one bulk", "heavy tails"])
def test_the_range_holds_the_share_of_a_matrix(name: str, steps: int, probes: int):
    eigenvalues = synthetic(name)
    true = (eigenvalues < 0).mean()
    for seed in range(5):
        found = measured(Diagonal(eigenvalues), steps, probes, seed)
        low, high = found.negative_mass_range
        assert low <= found.negative_mass <= high
        assert low <= true <= high


@pytest.mark.parametrize("probes", [1, 2])
def test_the_range_holds_the_share_of_a_network(probes: int):
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        model = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 10)).double()
        for p in model.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) / 3
        x = torch.randn(40, 16, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 10, (40,), generator=generator)
        with HessianOperator(model, nn.functional.cross_entropy, (x, y)) as operator:
            hessian = operator @ torch.eye(operator.dimension, dtype=torch.float64)
            found = measured(operator, 25, probes, seed=1)
        eigenvalues = torch.linalg.eigvalsh(hessian).numpy()
        low, high = found.negative_mass_range
        assert low <= (eigenvalues < -found.resolution).mean() <= high
        assert 0.02 < high - low < 1, "it says something, and not that all is known"


@pytest.mark.parametrize("probes", [1, 2])
def test_the_range_is_narrow_where_no_eigenvalue_is_near_zero(probes: int):
    rng = np.random.default_rng(1)
    eigenvalues = np.concatenate([rng.uniform(-2, -0.5, 300), rng.uniform(0.5, 4, 700)])
    noise = math.sqrt(2 * 0.3 * 0.7 / 1000 / probes)  # what the range does not include
    for seed in range(5):
        low, high = measured(Diagonal(eigenvalues), 40, probes, seed).negative_mass_range
        assert high - low < 0.03
        assert low - 4 * noise < 0.3 < high + 4 * noise


def test_nothing_is_left_open_where_all_eigenvalues_are_known():
    eigenvalues = np.array([-3.0, -1.0, -0.5, 2.0, 4.0])
    found = measured(Diagonal(eigenvalues), 5, 1, 0)
    assert found.exact.all()
    assert found.negative_mass_range == pytest.approx((0.6, 0.6))


def test_what_cannot_be_told_from_zero_counts_for_the_upper_limit_alone():
    nodes = np.array([-1.0, -1e-9, 0.0, 1e-9, 2.0])
    weights = np.full(5, 0.2)
    inexact = np.zeros(5, bool)
    assert negative_mass_range(nodes, weights, inexact, 1, 1e-8) == pytest.approx((0.0, 0.8))
    assert negative_mass_range(nodes, weights, ~inexact, 1, 1e-8) == pytest.approx((0.2, 0.8))
    assert negative_mass_range(nodes, weights, inexact, 4, 1e-8) == pytest.approx((0.0, 1.0))
    assert negative_mass_range(nodes, weights, inexact, 1, 0.0) == pytest.approx((0.2, 0.6))
