"""Krylov windows against the explicit system, against jets, and against true descent."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.carleman.test_jet import derivative_tensors
from tests.carleman.test_polynomial import network_loss
from tests.cases import (
    classifier,
    image_batches,
    masked_sgd,
    randn,
    regression,
    run_recorded,
    tanh_network,
    vector,
)
from torch_qsgd import QuantumSGD
from torch_qsgd.carleman.bases import Basis, UnitBasis, krylov_basis
from torch_qsgd.carleman.explicit import CarlemanSystem
from torch_qsgd.carleman.krylov import krylov_window
from torch_qsgd.carleman.polynomial import PolynomialMap
from torch_qsgd.derivatives import higher_derivatives
from torch_qsgd.errors import SizeError


def flat(basis: Basis) -> np.ndarray:
    """Vᵀ, a direction a row."""
    return torch.stack([vector(basis.lift(w)) for w in np.eye(basis.size)]).numpy()


def gradient_and_hessian(model: nn.Module, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    first, second = derivative_tensors(model, x, y, 2)
    return first.numpy(), second.numpy()


def test_the_basis_spans_the_krylov_space_and_is_orthonormal() -> None:
    model = tanh_network()
    ((x, y),) = regression(1)
    g, H = gradient_and_hessian(model, x, y)
    window = krylov_window(model, F.mse_loss, x, y, dimension=4, lr=0.1)
    V = flat(window.basis)
    np.testing.assert_allclose(V @ V.T, np.eye(4), atol=1e-13)
    powers = np.stack([np.linalg.matrix_power(H, k) @ g for k in range(4)])
    # Every power lies in the span.
    np.testing.assert_allclose(powers @ V.T @ V, powers, atol=1e-9 * np.abs(powers).max())
    np.testing.assert_allclose(window.step.coefficients[0], -0.1 * V @ g, atol=1e-13)
    np.testing.assert_allclose(
        window.step.coefficients[1], np.eye(4) - 0.1 * V @ H @ V.T, atol=1e-13
    )


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_with_all_dimensions_it_is_the_explicit_system(order: int, decay: float) -> None:
    steps, lr = 6, 0.05
    model = tanh_network()
    ((x, y),) = regression(1)
    anchor = vector(model.parameters())
    full = PolynomialMap.from_loss(
        network_loss(x, y), anchor, lr=lr, weight_decay=decay, degree=order
    )
    explicit = CarlemanSystem(full, steps, order=order)
    window = krylov_window(
        model, F.mse_loss, x, y, dimension=9, lr=lr, degree=order, weight_decay=decay
    )
    assert window.dimension == 9
    small = window.system(steps, order)
    u = vector(window.lift(small.displacement(small.solution))).numpy()
    expected = explicit.displacement(explicit.solution)
    np.testing.assert_allclose(u, expected, atol=1e-10 * np.abs(expected).max())
    # The systems differ by a rotation only.
    assert small.condition_number == pytest.approx(explicit.condition_number, rel=1e-8)


def test_at_order_one_as_many_dimensions_as_steps_are_the_jets() -> None:
    """On a convolutional network with batch normalisation, pruned to half."""
    steps, lr = 6, 0.05
    model = classifier("batch")
    ((x, y),) = image_batches(1)
    opt = QuantumSGD(model.parameters(), lr=lr, density=0.5, window=steps, order=1)
    opt.upload()
    masks = [opt.masks.get(p) for p in model.parameters()]
    anchor = vector(model.parameters())
    pruned = copy.deepcopy(model)
    run_recorded(opt, model, [(x, y)] * steps, F.cross_entropy)
    jets = vector(model.parameters()) - anchor
    errors = []
    for dimension in (2, 4, steps):
        window = krylov_window(
            pruned, F.cross_entropy, x, y, dimension=dimension, lr=lr, degree=1, masks=masks
        )
        system = window.system(steps, 1)
        u = vector(window.lift(system.displacement(system.solution)))
        errors.append(float((u - jets).norm() / jets.norm()))
    assert errors[-1] < 1e-6
    assert errors[0] > 10 * errors[-1]


def test_higher_orders_converge_to_descent_inside_the_space_and_dimensions_to_true_descent() -> (
    None
):
    steps, lr = 8, 0.05
    model = classifier("group")
    ((x, y),) = image_batches(1)

    def descend(basis: Basis | None) -> Tensor:
        """The plain loop, its gradients projected onto the space."""
        moved = copy.deepcopy(model)
        parameters = list(moved.parameters())
        V = None if basis is None else torch.from_numpy(flat(basis))
        for _ in range(steps):
            gradients = torch.autograd.grad(F.cross_entropy(moved(x), y), parameters)
            update = vector(gradients)
            update = update if V is None else V.T @ (V @ update)
            position = vector(parameters) - lr * update
            torch.nn.utils.vector_to_parameters(position, parameters)
        return vector(parameters) - vector(model.parameters())

    def window_error(dimension: int, order: int, inside: bool) -> float:
        window = krylov_window(
            model, F.cross_entropy, x, y, dimension=dimension, lr=lr, degree=order
        )
        system = window.system(steps, order, basis="monomial")
        u = vector(window.lift(system.displacement(system.solution)))
        target = descend(window.basis if inside else None)
        return float((u - target).norm() / target.norm())

    inside = [window_error(4, order, inside=True) for order in (1, 2, 3, 4)]
    assert all(b < 0.6 * a for a, b in itertools.pairwise(inside)), inside
    assert inside[-1] < 1e-2 * inside[0], inside
    # What third derivatives drive out of the space only more dimensions bring back.
    outside = [window_error(dimension, 3, inside=False) for dimension in (2, 6, 14)]
    assert outside[0] > 1.5 * outside[1], outside
    assert outside[1] > outside[2], outside
    assert outside[-1] > 10 * inside[2]


def test_a_space_that_is_complete_ends_early() -> None:
    """Least squares on two inputs: the Hessian has three distinct directions at most."""
    model = nn.Linear(2, 1).double()
    x, y = randn(20, 2, seed=1), randn(20, 1, seed=2)
    window = krylov_window(model, F.mse_loss, x, y, dimension=10, lr=0.1, degree=1)
    assert window.dimension == 3
    system = window.system(30, 1)
    true = copy.deepcopy(model)
    masked_sgd(true, F.mse_loss, [(x, y)] * 30, [None] * 2, 0.1)
    u = vector(window.lift(system.displacement(system.solution)))
    expected = vector(true.parameters()) - vector(model.parameters())
    torch.testing.assert_close(u, expected, rtol=1e-10, atol=1e-12)


def test_masks_keep_pruned_coordinates_at_rest() -> None:
    model = classifier()
    ((x, y),) = image_batches(1)
    masks = [torch.rand(p.shape, generator=torch.Generator().manual_seed(i)) < 0.3
             for i, p in enumerate(model.parameters())]  # fmt: skip
    window = krylov_window(model, F.cross_entropy, x, y, dimension=3, lr=0.1, masks=masks)
    for direction in window.basis.directions:
        assert all(not bool(v[~mask].any()) for v, mask in zip(direction, masks, strict=True))
        assert any(bool(v.any()) for v in direction)


def test_float32_networks_have_float32_bases_orthogonal_to_rounding() -> None:
    model = classifier().float()
    ((x, y),) = image_batches(1)
    window = krylov_window(model, F.cross_entropy, x.float(), y, dimension=12, lr=0.1, degree=1)
    V = flat(window.basis).astype(np.float64)
    assert {v.dtype for v in window.basis.directions[0]} == {torch.float32}
    np.testing.assert_allclose(V @ V.T, np.eye(window.dimension), atol=2e-6)


def test_the_unit_basis_is_the_active_coordinates_in_order() -> None:
    parameters = [torch.zeros(2, 2), torch.zeros(3)]
    masks = [torch.tensor([[True, False], [False, True]]), None]
    V = flat(UnitBasis(parameters, masks, limit=5))
    np.testing.assert_array_equal(V, np.eye(7)[[0, 3, 4, 5, 6]])
    with pytest.raises(SizeError, match="5 active coordinates are more than the 4"):
        UnitBasis(parameters, masks, limit=4)


def test_what_is_wrong_is_said() -> None:
    model = nn.Linear(2, 1).double()
    x = randn(5, 2)
    with torch.no_grad():
        y = model(x)
    with pytest.raises(ValueError, match="Krylov space is empty"):
        krylov_window(model, F.mse_loss, x, y, dimension=2, lr=0.1)
    for dimension in (0, True, 1.5):
        with pytest.raises(ValueError, match="dimension must be an integer of at least 1"):
            krylov_window(model, F.mse_loss, x, y + 1, dimension=dimension, lr=0.1)
    with pytest.raises(ValueError, match="degree must be at least 1"):
        krylov_window(model, F.mse_loss, x, y + 1, dimension=1, lr=0.1, degree=0)
    for masks in ([None], [None] * 3, [torch.ones(3, dtype=torch.bool), None]):
        with pytest.raises(ValueError, match="masks must be one a trainable parameter, 2 of them"):
            krylov_window(model, F.mse_loss, x, y + 1, dimension=1, lr=0.1, masks=masks)
    with pytest.raises(ValueError, match="no trainable parameter"):
        krylov_window(nn.Tanh(), F.mse_loss, x, x, dimension=1, lr=0.1)
    with higher_derivatives():
        gradients = torch.autograd.grad(F.mse_loss(model(x), y + 1), list(model.parameters()))
    basis = krylov_basis(gradients, list(model.parameters()), 1)
    assert basis.size == 1  # the first direction needs no graph
