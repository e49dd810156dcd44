"""Eigenpairs against dense eigenvalues: multiplicities, scales, precisions, budgets."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.cases import classifier, image_batches, randn, seeded
from torch_qsgd.errors import DivergenceError
from torch_qsgd.hessian.eigenpairs import Eigenpairs, eigenpairs_of, top_eigenpairs
from torch_qsgd.hessian.operator import HessianOperator

EVERY = ("both", "largest", "smallest", "magnitude")


class Dense:
    """A symmetric matrix that counts its products."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        self.dimension = len(matrix)
        self.shape = tuple(matrix.shape)
        self.dtype = matrix.dtype
        self.device = matrix.device
        self.products = 0

    def __matmul__(self, vector: Tensor) -> Tensor:
        self.products += 1
        return self.matrix @ vector


def matrix_of(eigenvalues: Any, seed: int = 0, dtype: torch.dtype = torch.float64) -> Dense:
    """A dense matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(np.array(eigenvalues, dtype=np.float64))
    basis, _ = torch.linalg.qr(randn(len(values), len(values), seed=seed))
    return Dense(((basis * values) @ basis.T).to(dtype))


def wanted(eigenvalues: Any, k: int, which: str) -> np.ndarray:
    """The k values by sorting all of them."""
    ordered = np.sort(np.array(eigenvalues))[::-1]
    if which == "magnitude":
        return ordered[np.argsort(-np.abs(ordered), kind="stable")][:k]
    if which == "smallest":
        return ordered[::-1][:k]
    if which == "largest":
        return ordered[:k]
    return np.concatenate([ordered[: k - k // 2], ordered[len(ordered) - k // 2 :]])


def seeded_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check(
    operator: Dense,
    found: Eigenpairs[Tensor],
    which: str,
    of_values: float,
    tolerance: float = 1e-5,
) -> None:
    """Values, vectors and residuals, against the dense matrix in float64."""
    matrix = operator.matrix.double()
    dense = torch.linalg.eigvalsh(matrix).numpy()
    norm = float(np.abs(dense).max())
    expected = wanted(dense, len(found.values), which)
    values = found.values
    if which == "magnitude":  # the order of +λ and −λ is rounding's
        values, expected = np.abs(values), np.abs(expected)
    np.testing.assert_allclose(values, expected, rtol=0, atol=of_values * norm)
    vectors = torch.stack(found.vectors).double()
    gram = (vectors @ vectors.T).numpy()
    orthogonal = 1e-10 if operator.dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=orthogonal)
    remainders = vectors @ matrix - torch.from_numpy(found.values)[:, None] * vectors
    measured = remainders.norm(dim=1).numpy()
    share, rounding = (1e-4, 1e-14) if operator.dtype == torch.float64 else (0.1, 0.0)
    assert (measured <= (1 + share) * found.residuals + rounding * norm).all()
    # ‖H‖ is known from below only.
    assert (found.residuals[found.converged] <= tolerance * norm * (1 + 1e-6)).all()
    assert (found.residuals[~found.converged] > 0.5 * tolerance * norm).all()


OUTLIERS = np.concatenate([np.linspace(-0.5, 1, 190), np.geomspace(4, 60, 9), [-3.0]])
SPECTRA: dict[str, Any] = {
    "outliers": OUTLIERS,
    "triple at the top": np.concatenate([np.linspace(-0.5, 1, 90), [9, 9, 9, 5, 5, -4, -4]]),
    "uniform": np.linspace(-1, 1, 120),
    "identity": np.ones(60),
    "zero": np.zeros(60),
    "rank one": np.append(np.zeros(60), 5.0),
    "rank three, negative": np.concatenate([np.zeros(80), [-1, -2, -2]]),
    "two clusters": np.concatenate([np.full(50, -1.0), np.full(50, 2.0)]),
}


@pytest.mark.parametrize("which", EVERY)
@pytest.mark.parametrize("name", SPECTRA)
def test_values_vectors_and_residuals_are_those_of_the_dense_matrix(name: str, which: str) -> None:
    operator = matrix_of(SPECTRA[name])
    for k in (1, 4, 7):
        found = eigenpairs_of(operator, k, which=which)
        check(operator, found, which, 1e-8)
        assert found.converged.all()
        assert found.searched


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e8, 1e-100, 1e100])
def test_a_scaled_matrix_has_scaled_values_at_equal_cost(scale: float) -> None:
    plain = eigenpairs_of(matrix_of(SPECTRA["triple at the top"]), 6)
    scaled = eigenpairs_of(matrix_of(scale * SPECTRA["triple at the top"]), 6)
    np.testing.assert_allclose(scaled.values / scale, plain.values, rtol=1e-9)
    assert scaled.products == plain.products
    assert scaled.converged.all()


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8])
@pytest.mark.parametrize("name", ["outliers", "triple at the top", "uniform", "zero"])
def test_float32_finds_each_value_as_often_as_it_is_there(name: str, scale: float) -> None:
    operator = matrix_of(scale * SPECTRA[name], dtype=torch.float32)
    for which in EVERY:
        found = eigenpairs_of(operator, 7, which=which)
        check(operator, found, which, 3e-6)
        assert found.converged.all()
        assert found.vectors[0].dtype == torch.float32


@pytest.mark.parametrize("multiplicity", [2, 3, 6])
@pytest.mark.parametrize("seed", range(4))
def test_all_copies_of_a_multiple_value_are_found(multiplicity: int, seed: int) -> None:
    bulk = np.linspace(-0.5, 1, 150)
    eigenvalues = np.concatenate([bulk, [2.0, 4.0, 6.0], np.full(multiplicity, 8.0)])
    operator = matrix_of(eigenvalues, seed)
    found = eigenpairs_of(
        operator, multiplicity + 2, which="largest", generator=seeded_generator(seed)
    )
    np.testing.assert_allclose(found.values, [8.0] * multiplicity + [6, 4], atol=1e-7)


@pytest.mark.parametrize("seed", range(8))
def test_copies_near_the_bulk_are_found(seed: int) -> None:
    eigenvalues = np.concatenate([np.linspace(-0.5, 1, 300), [1.02, 1.04], [1.06] * 3])
    found = eigenpairs_of(
        matrix_of(eigenvalues, seed), 5, which="largest", generator=seeded_generator(seed)
    )
    np.testing.assert_allclose(found.values, [1.06, 1.06, 1.06, 1.04, 1.02], atol=1e-7)


@pytest.mark.parametrize("budget", range(30, 150, 6))
def test_residuals_hold_through_locking_and_restarts(budget: int) -> None:
    operator = matrix_of(np.concatenate([np.linspace(-1, 1, 200), [1.1, 1.1, 1.1, 1.05]]))
    found = eigenpairs_of(
        operator, 4, which="largest", basis_size=10, tolerance=0.2, most_products=budget
    )
    check(operator, found, "largest", 0.2, tolerance=0.2)


def test_residuals_cover_the_rounding_of_many_restarts() -> None:
    for seed in range(12):
        values = np.random.default_rng(seed).uniform(-1, 1, 150)
        operator = matrix_of(values, seed)
        found = eigenpairs_of(operator, 5, which="largest", basis_size=13)
        vectors = torch.stack(found.vectors)
        remainders = vectors @ operator.matrix - torch.from_numpy(found.values)[:, None] * vectors
        assert (remainders.norm(dim=1).numpy() <= found.residuals * (1 + 1e-6)).all()


def test_a_matrix_near_underflow_is_refused() -> None:
    with pytest.raises(ValueError, match="loses digits: scale the loss up"):
        eigenpairs_of(matrix_of(1e-300 * SPECTRA["uniform"]), 2)


def test_a_small_basis_gives_the_same_with_more_products() -> None:
    roomy = matrix_of(SPECTRA["uniform"])
    tight = matrix_of(SPECTRA["uniform"])
    check(roomy, eigenpairs_of(roomy, 4, basis_size=60), "both", 1e-8)
    check(tight, eigenpairs_of(tight, 4, basis_size=10), "both", 1e-8)
    assert tight.products > roomy.products


@given(st.integers(1, 12), st.data())
@settings(max_examples=60, deadline=None)
def test_small_matrices_of_any_kind(n: int, data: Any) -> None:
    entries = st.sampled_from([-2.0, -1.0, 0.0, 1.0, 3.0])
    eigenvalues = data.draw(st.lists(entries, min_size=n, max_size=n))
    k = data.draw(st.integers(1, n))
    which = data.draw(st.sampled_from(EVERY))
    operator = matrix_of(eigenvalues, seed=n)
    found = eigenpairs_of(operator, k, which=which)
    check(operator, found, which, 1e-7)
    assert found.products == operator.products


def test_ten_outliers_cost_little_more_than_ten_products() -> None:
    bulk = np.linspace(-0.5, 1, 290)
    operator = matrix_of(np.append(bulk, np.geomspace(4, 60, 10)))
    found = eigenpairs_of(operator, 10, which="largest", tolerance=1e-4)
    np.testing.assert_allclose(found.values[::-1], np.geomspace(4, 60, 10), rtol=2e-6)
    assert found.products == operator.products <= 25


def test_what_has_not_converged_is_marked() -> None:
    operator = matrix_of(SPECTRA["uniform"])
    found = eigenpairs_of(operator, 5, which="largest", most_products=20)
    assert found.products == operator.products == 20
    assert not found.converged.all()
    assert not found.searched
    check(operator, found, "largest", 1.0)
    assert "not converged: allow more products" in repr(found)
    # An eigenvalue lies within each residual of its value.
    distances = np.abs(found.values[:, None] - SPECTRA["uniform"]).min(1)
    assert (distances <= found.residuals * (1 + 1e-9)).all()


@pytest.mark.parametrize("spare", range(6))
def test_any_budget_gives_k_pairs(spare: int) -> None:
    operator = matrix_of(SPECTRA["triple at the top"])
    for k, which in itertools.product((1, 5), EVERY):
        found = eigenpairs_of(operator, k, which=which, most_products=k + 4 * spare)
        assert len(found.values) == len(found.vectors) == len(found.residuals) == k
        assert found.products <= k + 4 * spare
        check(operator, found, which, 2.0)  # of vectors and residuals


def test_a_search_cut_short_is_said() -> None:
    operator = matrix_of([5.0, *np.zeros(40)])
    found = eigenpairs_of(operator, 1, which="largest", most_products=3)
    assert found.converged.all()
    assert not found.searched
    assert "copies" in repr(found)
    assert "copies" not in repr(eigenpairs_of(operator, 1, which="largest"))


def test_the_same_generator_gives_the_same_pairs_and_no_other_randomness_is_used() -> None:
    operator = matrix_of(OUTLIERS)
    before = torch.get_rng_state()
    first, second = (eigenpairs_of(operator, 3, generator=seeded_generator(3)) for _ in range(2))
    assert torch.equal(torch.stack(first.vectors), torch.stack(second.vectors))
    assert torch.equal(torch.get_rng_state(), before)


def test_operators_may_hand_out_their_argument_or_one_buffer() -> None:
    class Identity(Dense):
        def __matmul__(self, vector: Tensor) -> Tensor:
            return vector

    class Buffered(Dense):
        def __matmul__(self, vector: Tensor) -> Tensor:
            self.buffer = getattr(self, "buffer", torch.empty_like(vector))
            assert self.buffer.data_ptr() != vector.data_ptr()
            return torch.mv(self.matrix, vector, out=self.buffer)

    found = eigenpairs_of(Identity(torch.eye(20, dtype=torch.float64)), 3)
    np.testing.assert_allclose(found.values, 1, rtol=1e-12)
    operator = Buffered(matrix_of(OUTLIERS).matrix)
    check(operator, eigenpairs_of(operator, 4), "both", 1e-8)


def test_the_first_vectors_are_broadcast() -> None:
    class Shared(Dense):
        """Gives vectors of its own, as a rank that is not the first one gets."""

        calls = 0

        def broadcast(self, vector: Tensor) -> Tensor:
            self.calls += 1
            return randn(self.dimension, seed=self.calls)

    found = []
    for seed in (0, 1):
        operator = Shared(matrix_of(SPECTRA["triple at the top"]).matrix)
        found.append(eigenpairs_of(operator, 4, generator=seeded_generator(seed)))
        assert operator.calls > 1
    np.testing.assert_array_equal(found[0].values, found[1].values)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be an integer of at least 1 and at most 60"),
        ({"k": 61}, ValueError, "k must be an integer of at least 1 and at most 60"),
        ({"which": "top"}, ValueError, "which must be one of both, largest"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be a number above"),
        ({"tolerance": 1e-16}, ValueError, "tolerance must be a number above"),
        ({"most_products": 3}, ValueError, "most_products must be an integer of at least 4"),
        ({"basis_size": 9}, ValueError, "basis_size must be an integer of at least 10"),
        ({"progress": 1}, ValueError, "progress must be True or False"),
        ({"generator": 3}, TypeError, r"generator must be a torch.Generator"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], error: Any, message: str) -> None:
    operator = matrix_of(np.ones(60))
    with pytest.raises(error, match=message):
        eigenpairs_of(operator, **{"k": 4, **changes})
    assert operator.products == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_product_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(DivergenceError, match="product 1 with the operator holds NaN or infinity"):
        eigenpairs_of(Dense(torch.full((5, 5), value, dtype=torch.float64)), 1)


# ---- Of a model ----------------------------------------------------------------------------------


def dense_hessian(model: nn.Module, loss_fn: Any, batch: Any) -> Tensor:
    """By the plain double loop of reverse mode."""
    parameters = list(model.parameters())
    loss = loss_fn(model(batch[0]), batch[1])
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    rows = [
        torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
        for gradient in gradients
        for entry in gradient.flatten()
    ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def network() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))).double()


BATCH = (randn(20, 4), torch.arange(20) % 3)


def test_pairs_of_a_model_are_those_of_its_dense_hessian() -> None:
    model = network()
    hessian = dense_hessian(model, F.cross_entropy, BATCH)
    found = top_eigenpairs(model, F.cross_entropy, BATCH, 5)
    dense = torch.linalg.eigvalsh(hessian).tolist()
    np.testing.assert_allclose(found.values, wanted(dense, 5, "both"), atol=1e-8)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    for value, vector in zip(found.values, found.vectors, strict=True):
        assert {name: t.shape for name, t in vector.items()} == shapes
        flat = torch.cat([vector[name].flatten() for name in shapes])
        torch.testing.assert_close(hessian @ flat, value * flat, atol=1e-4, rtol=0)


def test_options_reach_the_operator() -> None:
    model = network()
    mask = randn(6, 4, seed=5) > 0
    options: dict[str, Any] = {"masks": {"0.weight": mask}, "layers": "0", "reduction": "sum"}
    found = top_eigenpairs(model, nn.CrossEntropyLoss(reduction="sum"), BATCH, 3, **options)
    hessian = dense_hessian(model, nn.CrossEntropyLoss(reduction="sum"), BATCH)
    active = torch.zeros(len(hessian), dtype=torch.bool)
    active[:24], active[24:30] = mask.flatten(), True
    dense = torch.linalg.eigvalsh(hessian[active][:, active]).tolist()
    np.testing.assert_allclose(found.values, wanted(dense, 3, "both"), rtol=1e-7)
    for vector in found.vectors:
        assert set(vector) == {"0.weight", "0.bias"}
        assert not vector["0.weight"][~mask].any()
    ggn = top_eigenpairs(model, F.cross_entropy, BATCH, 1, which="smallest", kind="ggn")
    assert ggn.values[0] > -1e-12


def test_a_convolutional_classifier_and_the_operator_agree() -> None:
    model, batches = classifier("batch"), image_batches(2)
    found = top_eigenpairs(model, F.cross_entropy, batches, 3, which="largest")
    with HessianOperator(model, F.cross_entropy, batches) as operator:
        for value, vector in zip(found.values, found.vectors, strict=True):
            flat = operator.flatten(vector)
            assert float((operator @ flat - value * flat).norm()) <= 1.1e-5 * found.values[0]
