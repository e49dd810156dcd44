"""Polynomial maps against the plain loop, and against derivatives taken another way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sparse
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.carleman.reference import lifted, random_map
from tests.carleman.test_jet import derivative_tensors
from tests.cases import classifier, image_batches, regression, tanh_network, vector
from torch_qsgd.carleman.bases import DirectionBasis
from torch_qsgd.carleman.polynomial import PolynomialMap, trajectory
from torch_qsgd.derivatives import higher_derivatives, projected_derivatives
from torch_qsgd.errors import GraphError


@given(seed=st.integers(0, 10**6), n=st.integers(1, 4), degree=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_value_is_the_sum_over_all_index_tuples(seed: int, n: int, degree: int) -> None:
    rng = np.random.default_rng(seed)
    tensors = [rng.standard_normal((n,) * (q + 1)) for q in range(degree + 1)]
    step = PolynomialMap(*tensors)
    u = rng.standard_normal(n)
    expected = [
        sum(
            tensor[(i, *index)] * math.prod(u[k] for k in index)
            for tensor in tensors
            for index in itertools.product(range(n), repeat=tensor.ndim - 1)
        )
        for i in range(n)
    ]
    np.testing.assert_allclose(step(u), expected, atol=1e-11)
    thinned = PolynomialMap(tensors[0], *(sparse.csr_array(t.reshape(n, -1)) for t in tensors[1:]))
    np.testing.assert_allclose(thinned(u), expected, atol=1e-11)
    np.testing.assert_allclose(step.rescaled(0.3)(u / 0.3), np.array(expected) / 0.3, atol=1e-10)
    z = np.concatenate([[1.0], u])
    np.testing.assert_allclose(step.homogeneous()(z), [1.0, *expected], atol=1e-11)
    for P, expected_P in zip(step.homogeneous().coefficients[1:], lifted(step)[1:], strict=True):
        np.testing.assert_allclose(P.toarray(), expected_P)


def test_taylor_coefficients_along_a_path_are_those_of_a_polynomial_fit() -> None:
    rng = np.random.default_rng(3)
    step = random_map(rng, 3, 3)
    jets = rng.standard_normal((4, 3))
    # Φ along the path is a polynomial of degree 12 in ε: 13 values determine it.
    nodes = np.cos(np.pi * (np.arange(13) + 0.5) / 13)
    values = [step(sum(c * e**k for k, c in enumerate(jets, start=1))) for e in nodes]
    fitted = np.linalg.solve(np.vander(nodes, 13, increasing=True), np.array(values))
    np.testing.assert_allclose(step.taylor(jets), fitted[:5], atol=1e-9)


def test_spectral_norms_are_those_of_dense_matrices() -> None:
    rng = np.random.default_rng(0)
    dense = [rng.standard_normal(5), rng.standard_normal((5, 5)), rng.standard_normal((5, 25))]
    expected = [np.linalg.norm(dense[0]), *(np.linalg.norm(d, 2) for d in dense[1:])]
    thinned = [dense[0], *(sparse.csr_array(d) for d in dense[1:])]
    np.testing.assert_allclose(PolynomialMap(*dense).norms, expected)
    np.testing.assert_allclose(PolynomialMap(*thinned).norms, expected)
    assert PolynomialMap([1.0, 2.0, 2.0], None, sparse.csr_array((3, 9))).norms == [3, 0, 0]
    stored = sparse.csr_array((np.zeros(3), ([0, 1, 2], [0, 1, 2])), shape=(4, 4))
    assert PolynomialMap(np.zeros(4), stored).norms == [0, 0]


def network_loss(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    def loss(theta: Tensor) -> Tensor:
        w1, b1, w2, b2 = theta[:4].view(2, 2), theta[4:6], theta[6:8].view(1, 2), theta[8:]
        return F.mse_loss(torch.tanh(x @ w1.T + b1) @ w2.T + b2, y)

    return loss


def test_the_map_of_a_loss_is_made_of_its_derivatives() -> None:
    model = tanh_network()
    ((x, y),) = regression(1)
    anchor = vector(model.parameters())
    step = PolynomialMap.from_loss(network_loss(x, y), anchor, lr=0.1, degree=3, weight_decay=0.01)
    known = [t.numpy() for t in derivative_tensors(model, x, y, 4)]
    np.testing.assert_allclose(
        step.coefficients[0], -0.1 * (known[0] + 0.01 * anchor.numpy()), atol=1e-14
    )
    np.testing.assert_allclose(
        step.coefficients[1], np.eye(9) * (1 - 0.001) - 0.1 * known[1], atol=1e-13
    )
    np.testing.assert_allclose(step.coefficients[2].ravel(), -0.05 * known[2].ravel(), atol=1e-12)
    np.testing.assert_allclose(
        step.coefficients[3].ravel(), -0.1 / 6 * known[3].ravel(), atol=1e-12
    )


def test_the_map_of_a_cubic_loss_is_gradient_descent_itself() -> None:
    rng = np.random.default_rng(1)
    A = torch.tensor(rng.standard_normal((4, 4)))

    def loss(theta: Tensor) -> Tensor:
        return (theta @ A @ theta) + (theta**3).sum() / 3

    anchor = rng.standard_normal(4)
    step = PolynomialMap.from_loss(loss, anchor, lr=0.02, degree=2)
    theta = torch.tensor(anchor, requires_grad=True)
    u = np.zeros(4)
    for _ in range(5):
        (g,) = torch.autograd.grad(loss(theta), theta)
        theta = (theta - 0.02 * g).detach().requires_grad_()
        u = step(u)
    np.testing.assert_allclose(u, theta.detach().numpy() - anchor, atol=1e-13)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_projected_derivatives_are_those_of_the_loss_in_the_subspace(norm: str) -> None:
    """Against central differences of exact Hessian-vector products along the directions."""
    model = classifier(norm)
    ((x, y),) = image_batches(1)
    params = list(model.parameters())
    rng = torch.Generator().manual_seed(5)
    basis = [
        [torch.randn(p.shape, generator=rng, dtype=torch.float64) for p in params] for _ in range(2)
    ]

    def gradient_at(w: tuple[float, float]) -> np.ndarray:
        with torch.no_grad():
            shifted = [p + w[0] * a + w[1] * b for p, a, b in zip(params, *basis, strict=True)]
        names = [name for name, _ in model.named_parameters()]
        leaves = {n: s.requires_grad_() for n, s in zip(names, shifted, strict=True)}
        buffers = {n: b.clone() for n, b in model.named_buffers()}
        with higher_derivatives():
            out = torch.func.functional_call(model, (leaves, buffers), (x,))
            found = torch.autograd.grad(F.cross_entropy(out, y), list(leaves.values()))
        return np.array(
            [sum(float((g * v).sum()) for g, v in zip(found, row, strict=True)) for row in basis]
        )

    with higher_derivatives():
        loss = F.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, params, create_graph=True)
    directions = DirectionBasis(basis)
    tensors = [t.numpy() for t in projected_derivatives(gradients, params, directions, 2)]
    np.testing.assert_allclose(tensors[0], gradient_at((0.0, 0.0)), atol=1e-12)
    h = 1e-4
    for i, axis in enumerate(np.eye(2)):
        ahead, behind = gradient_at(tuple(h * axis)), gradient_at(tuple(-h * axis))
        np.testing.assert_allclose(tensors[1][i], (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-5)
        second = (ahead - 2 * tensors[0] + behind) / h**2
        scale = np.abs(tensors[2]).max()
        np.testing.assert_allclose(tensors[2][i, i], second, atol=1e-4 * scale)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="no coefficient"):
        PolynomialMap()
    with pytest.raises(ValueError, match=r"n ≥ 1 rows: got \[2, 3\]"):
        PolynomialMap([1.0, 2.0], np.eye(3))
    with pytest.raises(ValueError, match=r"G_2 must have shape \(2, 4\)"):
        PolynomialMap([1.0, 2.0], None, np.eye(2))
    with pytest.raises(ValueError, match="G_1 holds NaN"):
        PolynomialMap([1.0], [[math.nan]])
    with pytest.raises(TypeError, match="G_1 must be real"):
        PolynomialMap([1.0], [[1j]])
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        PolynomialMap([1.0], [[1.0]])([1.0, 2.0])
    with pytest.raises(ValueError, match="degree must be at least 1"):
        PolynomialMap.from_loss(lambda x: x.sum(), [1.0], lr=0.1, degree=0)
    for nothing in (0.5, [], "a"):
        with pytest.raises(ValueError, match="n ≥ 1 rows"):
            PolynomialMap(nothing)
    for gamma in (0.0, -1.0, math.nan, None):
        with pytest.raises(ValueError, match="gamma must be a number above 0"):
            PolynomialMap([1.0], [[1.0]]).rescaled(gamma)
    with pytest.raises(ValueError, match="leaves the range of float64"):
        PolynomialMap([1.0], None, None, [[1.0]]).rescaled(1e200)
    with pytest.raises(OverflowError, match="lower the learning rate"):
        trajectory([PolynomialMap([0.0], None, [[10.0]])] * 20, [1.0])
    theta = torch.tensor([1.0], requires_grad=True)
    (g,) = torch.autograd.grad((theta**3).sum(), theta, create_graph=True)
    torch.autograd.grad(g, theta)
    with pytest.raises(GraphError, match="cannot be differentiated again"):
        projected_derivatives([g], [theta], DirectionBasis([[torch.ones(1)]]), 1)
