"""Nodes and weights against known spectra and against plain stochastic Lanczos quadrature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from torch import Tensor

from tests.cases import randn
from torch_qsgd.hessian.estimate import spectrum_of
from torch_qsgd.hessian.spectrum import Spectrum

Array = NDArray[np.float64]


class Diagonal:
    """Lanczos on a diagonal matrix is Lanczos on any matrix of these eigenvalues."""

    device = torch.device("cpu")

    def __init__(self, eigenvalues: Array, dtype: torch.dtype = torch.float64) -> None:
        self.eigenvalues = torch.from_numpy(eigenvalues).to(dtype)
        self.dimension, self.dtype = len(eigenvalues), dtype

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.eigenvalues * vectors


def trained(n: int = 1200) -> Array:
    """Like a trained network's: outliers on both sides of a bulk that is denser near zero."""
    bulk = 0.05 * randn(n - 16).numpy() ** 3
    outliers = np.concatenate([np.geomspace(1.5, 40, 12), [-0.8, -1, -1.3, -2]])
    return np.sort(np.concatenate([bulk, outliers]))


def crowded(n: int = 1200) -> Array:
    return np.sort(1.0 / np.arange(1, n + 1))


def flat(n: int = 1200) -> Array:
    return np.linspace(-1, 1, n)


def found(eigenvalues: Array, seed: int = 0, **options: Any) -> Spectrum:
    generator = torch.Generator().manual_seed(seed)
    return spectrum_of(Diagonal(eigenvalues), generator=generator, **options)


def distance(eigenvalues: Array, nodes: Array, weights: Array) -> float:
    return float(wasserstein_distance(eigenvalues, nodes, None, weights))


def plain(eigenvalues: Array, steps: int, probes: int, seed: int) -> tuple[Array, Array]:
    """Stochastic Lanczos quadrature as it is usually done, by a plain loop."""
    source = np.random.default_rng(seed)
    nodes, weights = [], []
    for _ in range(probes):
        v = source.standard_normal(len(eigenvalues))
        basis = [v / np.linalg.norm(v)]
        matrix = np.zeros((steps, steps))
        for j in range(steps):
            w = eigenvalues * basis[j]
            matrix[j, j] = basis[j] @ w
            for _ in range(2):
                w -= np.stack(basis).T @ (np.stack(basis) @ w)
            if j + 1 < steps:
                matrix[j, j + 1] = matrix[j + 1, j] = np.linalg.norm(w)
                basis.append(w / np.linalg.norm(w))
        values, vectors = np.linalg.eigh(matrix)
        nodes.append(values)
        weights.append(vectors[0] ** 2 / probes)
    return np.concatenate(nodes), np.concatenate(weights)


@pytest.mark.parametrize(
    ("spectrum", "gain"), [(trained, 4.0), (crowded, 3.5), (flat, 0.8)], ids=lambda x: str(x)
)
def test_error_beside_plain_quadrature_at_equal_products(spectrum: object, gain: float) -> None:
    assert callable(spectrum)
    eigenvalues = spectrum()
    seeds = range(6)

    def error_of(steps: int, probes: int) -> float:
        return float(
            np.mean([distance(eigenvalues, *plain(eigenvalues, steps, probes, s)) for s in seeds])
        )

    best = min(error_of(80, 1), error_of(40, 2), error_of(20, 4), error_of(10, 8))
    ours = []
    for seed in seeds:
        s = found(eigenvalues, seed, steps=40, probes=2)
        assert s.products == 80
        ours.append(distance(eigenvalues, s.nodes, s.weights))
    assert np.mean(ours) * gain < best


def test_converged_values_have_exactly_the_mass_of_one() -> None:
    eigenvalues = trained()
    spectrum = found(eigenvalues)
    exact = spectrum.nodes[spectrum.exact]
    for outlier in eigenvalues[np.abs(eigenvalues) > 1.2]:
        assert np.count_nonzero(np.abs(exact - outlier) < 1e-6) == 1
    np.testing.assert_allclose(spectrum.weights[spectrum.exact], 1 / len(eigenvalues), rtol=1e-12)
    assert spectrum.weights.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("probes", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 5, 30, 80])
def test_every_exact_value_is_an_eigenvalue(probes: int, steps: int) -> None:
    for eigenvalues in (trained(300), crowded(300), flat(300)):
        spectrum = found(eigenvalues, steps=steps, probes=probes)
        exact = spectrum.nodes[spectrum.exact]
        nearest = np.abs(exact[:, None] - eigenvalues).min(1, initial=np.inf)
        assert (nearest < 0.02 * np.ptp(eigenvalues)).all()


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_a_scaled_operator_gives_the_spectrum_scaled(scale: float) -> None:
    plain_one, scaled = found(trained()), found(scale * trained())
    np.testing.assert_allclose(scaled.nodes, scale * plain_one.nodes, rtol=1e-6, atol=1e-12 * scale)
    np.testing.assert_allclose(scaled.weights, plain_one.weights, rtol=1e-6, atol=1e-12)
    for name in ("lambda_min", "lambda_max", "trace", "trace_error"):
        assert getattr(scaled, name) == pytest.approx(scale * getattr(plain_one, name), rel=1e-7)
    np.testing.assert_array_equal(scaled.exact, plain_one.exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.zeros(50),
        np.full(50, 3.0),
        np.array([5.0]),
        np.array([-5.0, 5.0]),
        np.array([7.0] + [0.0] * 199),
        np.array([-7.0] * 40 + [0.0] * 160),
        np.concatenate([np.arange(1.0, 21.0), np.zeros(180)]),
        np.concatenate([np.repeat([-3.0, 1.0, 4.0], 60), [9.0]]),
    ],
    ids=["zero", "identity", "n=1", "n=2", "rank one", "block", "rank 20", "clusters"],
)
def test_degenerate_spectra(eigenvalues: Array, dtype: torch.dtype) -> None:
    spectrum = spectrum_of(Diagonal(eigenvalues, dtype), steps=40)
    n, size = len(eigenvalues), max(float(np.abs(eigenvalues).max()), 1e-300)
    values, counts = np.unique(eigenvalues, return_counts=True)
    if (counts > 1).sum() < 2:  # of one cluster, nothing is left to see after two runs
        assert spectrum.products <= 2 * (len(values) + 3)
    for value, count in zip(values, counts, strict=True):
        here = np.abs(spectrum.nodes - value) <= 1e-5 * size
        # Probes of two clusters are noisy; one cluster and simple values are counted exactly.
        tolerance = 0.35 * count if (counts > 1).sum() > 1 else 1e-6
        assert n * spectrum.weights[here].sum() == pytest.approx(count, abs=tolerance)
    assert spectrum.lambda_max == pytest.approx(eigenvalues.max(), abs=1e-5 * size)
    assert spectrum.lambda_min == pytest.approx(eigenvalues.min(), abs=1e-5 * size)


@pytest.mark.parametrize("steps", [16, 24, 40])
def test_several_probes_find_the_copies_of_an_eigenvalue(steps: int) -> None:
    eigenvalues = np.concatenate([np.repeat([5.0, 3.0, -2.0], 3), np.linspace(-0.5, 0.5, 391)])
    spectrum = found(eigenvalues, steps=steps, probes=4)
    for value in (5.0, 3.0, -2.0):
        here = np.abs(spectrum.nodes - value) < 0.1
        # Of a plain probe, three copies show 3 ± 2.4.
        assert 400 * spectrum.weights[here].sum() == pytest.approx(3, abs=1)


def test_enough_steps_give_all_eigenvalues() -> None:
    eigenvalues = trained(60)
    spectrum = found(eigenvalues, steps=100)
    np.testing.assert_allclose(spectrum.nodes, eigenvalues, atol=1e-12)
    assert spectrum.exact.all()
    assert spectrum.products == 60
    assert spectrum.trace == pytest.approx(eigenvalues.sum(), rel=1e-12)
    assert spectrum.trace_error < 1e-11 * 40


@pytest.mark.parametrize(
    "options",
    [{"steps": 1, "probes": 1}, {"steps": 20, "probes": 1}, {"steps": 20, "probes": 2}],
    ids=str,
)
@pytest.mark.parametrize("spectrum", [trained, crowded, flat])
def test_the_traces_standard_error_is_what_the_trace_scatters_by(
    spectrum: object, options: dict[str, int]
) -> None:
    assert callable(spectrum)
    eigenvalues = spectrum(500)
    scores = []
    for seed in range(60):
        s = found(eigenvalues, seed, **options)
        scores.append((s.trace - eigenvalues.sum()) / s.trace_error)
    # Over 60 seeds the root mean square of a right score lies in 0.75 … 1.25 in 99 of 100 cases;
    # few large eigenvalues make tails heavier.
    assert 0.7 < np.sqrt(np.mean(np.square(scores))) < 1.5


@pytest.mark.parametrize("basis_size", [120, 80, 40, 10, 2])
def test_a_smaller_basis_spends_the_same_products_and_keeps_the_ends(basis_size: int) -> None:
    eigenvalues = trained(400)
    whole = found(eigenvalues)
    spectrum = found(eigenvalues, basis_size=basis_size)
    assert spectrum.products == 160
    assert spectrum.steps <= basis_size
    assert np.abs(eigenvalues - spectrum.lambda_max).min() <= spectrum.lambda_max_bound
    if basis_size >= 40:
        assert spectrum.lambda_max == pytest.approx(40, rel=1e-9)
        assert spectrum.lambda_min == pytest.approx(-2, rel=1e-5)
        coarse = distance(eigenvalues, spectrum.nodes, spectrum.weights)
        assert coarse < 12 * distance(eigenvalues, whole.nodes, whole.weights)


# ---- Honesty of the trace ----------------------------------------------------------------------


def scores(eigenvalues: Array, seeds: int, **options: Any) -> tuple[Array, Array]:
    """Errors of the trace and standard errors, over seeds."""
    spectra = [found(eigenvalues, seed, **options) for seed in range(seeds)]
    errors = np.array([s.trace - eigenvalues.sum() for s in spectra])
    return errors, np.array([s.trace_error for s in spectra])


@pytest.mark.parametrize("probes", [1, 2, 3])
@pytest.mark.parametrize("copies", [2, 3, 5, 8, 15])
def test_multiple_eigenvalues_do_not_bias_the_trace(copies: int, probes: int) -> None:
    bulk = np.linspace(0, 1, 600 - copies)
    eigenvalues = np.concatenate([np.full(copies, 10.0), bulk])
    errors, claimed = scores(eigenvalues, 30, steps=30, probes=probes)
    assert 0.5 < np.sqrt(np.mean(np.square(errors / claimed))) < 1.5
    # The mean of 30 errors scatters by 0.18 of one; a skewed estimate of the variance adds to it.
    assert abs(errors.mean()) < 0.7 * claimed.mean()


def test_many_values_of_five_copies_do_not_bias_the_trace() -> None:
    eigenvalues = np.concatenate([np.repeat(np.linspace(0.5, 1.7, 20), 5), np.zeros(900)])
    errors, claimed = scores(eigenvalues, 20, steps=20)
    assert 0.5 < np.sqrt(np.mean(np.square(errors / claimed))) < 1.5
    assert abs(errors.mean()) < 0.7 * claimed.mean()


@pytest.mark.parametrize(
    "options",
    [{"basis_size": 2}, {"basis_size": 8}, {"basis_size": 40}, {"steps": 1, "probes": 10}],
    ids=str,
)
def test_the_trace_is_honest_with_little_memory_and_few_steps(options: dict[str, int]) -> None:
    errors, claimed = scores(trained(400), 20, **options)
    assert 0.4 < np.sqrt(np.mean(np.square(errors / claimed))) < 1.6


@pytest.mark.parametrize(
    ("eigenvalues", "probes"),
    [([1.0, 1.0, 0.5], 2), ([1.0, 1.0], 5), ([1.0] * 3 + [2.0] * 3 + [-1.0] * 3, 3)],
    ids=str,
)
def test_an_exhausted_run_goes_on_until_all_copies_are_counted(
    eigenvalues: list[float], probes: int
) -> None:
    for seed in range(10):
        spectrum = found(np.array(eigenvalues), seed, probes=probes)
        assert spectrum.trace == pytest.approx(sum(eigenvalues), rel=1e-9)
        assert spectrum.trace_error < 1e-9
        assert distance(np.array(eigenvalues), spectrum.nodes, spectrum.weights) < 1e-9


@pytest.mark.parametrize("basis_size", [None, 12])
def test_no_mass_is_lost_where_all_values_have_copies(basis_size: int | None) -> None:
    eigenvalues = np.repeat(np.logspace(0, -8, 10), 4)
    for seed in range(30):
        spectrum = found(eigenvalues, seed, basis_size=basis_size)
        assert spectrum.weights.sum() == pytest.approx(1, abs=1e-12)
        assert abs(spectrum.trace - eigenvalues.sum()) < 5 * spectrum.trace_error


@pytest.mark.parametrize("options", [{"steps": 5}, {"basis_size": 2}], ids=str)
def test_few_steps_mark_no_value_that_is_none(options: dict[str, int]) -> None:
    for eigenvalues in (flat(40), np.append(np.linspace(-0.1, 0.1, 147), [-5, 20, 50])):
        for seed in range(20):
            spectrum = found(eigenvalues, seed, **options)
            off = np.abs(spectrum.nodes[spectrum.exact, None] - eigenvalues).min(1, initial=np.inf)
            assert (off < 1e-5 * np.abs(eigenvalues).max()).all()
