"""Jets against the truncated Carleman system they stand for, built densely, and against SGD."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import scipy.sparse as sparse
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.cases import masked_sgd, randn, regression, run_recorded, tanh_network, vector
from torch_qsgd import QuantumSGD
from torch_qsgd.derivatives.coordinates import working_dtype

STEPS = 20
RATE = 0.05


def derivative_tensors(model: torch.nn.Module, x: Tensor, y: Tensor, highest: int) -> list[Tensor]:
    """∇L, ∇²L, … of the mean squared error of the 2 → 2 → 1 tanh network, written out."""
    anchor = vector(model.parameters())

    def loss(theta: Tensor) -> Tensor:
        w1, b1, w2, b2 = theta[:4].view(2, 2), theta[4:6], theta[6:8].view(1, 2), theta[8:]
        e = torch.exp(2 * (x @ w1.T + b1))
        return ((((e - 1) / (e + 1)) @ w2.T + b2 - y) ** 2).mean()

    found = []
    function = loss
    for _ in range(highest):
        function = torch.func.jacfwd(function)
        found.append(function(anchor))
    return found


def homogeneous_factors(
    tensors: list[Tensor], anchor: np.ndarray, order: int, options: dict[str, float]
) -> list[sparse.csr_array]:
    """P_1 … P_N acting on z = (1, u) or z = (1, u, v): one SGD step as a polynomial map."""
    n = len(anchor)
    mu, tau = options["momentum"], options["dampening"]
    decay, rate = options["weight_decay"], options["lr"]
    size = 1 + n + (n if mu else 0)
    factors = []
    for q in range(1, order + 1):
        # d = ∇L(θ* + u) + λ(θ* + u), its part of degree q in z; columns index z ⊗ … ⊗ z.
        d = np.zeros((n, *[size] * q))
        slots = (slice(None), *[slice(1, n + 1)] * q)
        d[slots] = tensors[q].numpy() / math.factorial(q)
        if q == 1:
            d[:, 0] = tensors[0].numpy() + decay * anchor
            d[:, 1 : n + 1] += decay * np.eye(n)
        one, u, v = np.zeros((1, *d.shape[1:])), np.zeros_like(d), np.zeros_like(d)
        if q == 1:
            one[0, 0] = 1
            u[:, 1 : n + 1] = np.eye(n)
            if mu:
                v[:, n + 1 :] = mu * np.eye(n)
        v = v + (1 - tau) * d
        step = (d + mu * v if options["nesterov"] else v) if mu else d
        rows = [one, u - rate * step] + ([v] if mu else [])
        factors.append(sparse.csr_array(np.concatenate(rows).reshape(size, size**q)))
    return factors


def carleman_matrix(factors: list[sparse.csr_array], order: int) -> sparse.csr_array:
    """A_{jk} = Σ_{q_1+…+q_j=k} P_{q_1} ⊗ … ⊗ P_{q_j}, for j, k = 1 … N."""
    size = factors[0].shape[0]
    blocks: list[list[sparse.csr_array | None]] = []
    for j in range(1, order + 1):
        row: list[sparse.csr_array | None] = []
        for k in range(1, order + 1):
            block = sparse.csr_array((size**j, size**k))
            for degrees in itertools.product(range(1, order + 1), repeat=j):
                if sum(degrees) == k:
                    term = factors[degrees[0] - 1]
                    for q in degrees[1:]:
                        term = sparse.kron(term, factors[q - 1], format="csr")
                    block = block + term
            row.append(block)
        blocks.append(row)
    return sparse.block_array(blocks, format="csr")


PLAIN = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False}
OPTIONS = {
    "plain": PLAIN,
    "weight decay": {**PLAIN, "weight_decay": 0.1},
    "momentum": {**PLAIN, "momentum": 0.5},
    "dampened, decayed": {**PLAIN, "momentum": 0.5, "dampening": 0.3, "weight_decay": 0.1},
    "nesterov": {**PLAIN, "momentum": 0.5, "nesterov": True},
}


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_jets_equal_the_first_block_of_the_dense_carleman_system(name: str, order: int) -> None:
    options = OPTIONS[name]
    model = tanh_network()
    batches = regression(2)
    anchor = vector(model.parameters()).numpy()
    n = len(anchor)
    assert n == 9
    matrices = []
    for x, y in batches:
        tensors = derivative_tensors(model, x, y, order + 1)
        factors = homogeneous_factors(tensors, anchor, order, {**options, "lr": RATE})
        matrices.append(carleman_matrix(factors, order))
    # The momentum that a window starts from: PyTorch's first velocity is the gradient, undampened,
    # so an earlier step fills the buffer, and the window's first block starts from it.
    opt = QuantumSGD(model.parameters(), lr=RATE, density=1, window=STEPS, order=order, **options)
    z = np.zeros(1 + n + (n if options["momentum"] else 0))
    z[0] = 1
    if options["momentum"]:
        start = [randn(*p.shape, seed=50 + i) for i, p in enumerate(model.parameters())]
        for p, buffer in zip(model.parameters(), start, strict=True):
            opt.state[p]["momentum_buffer"] = buffer.clone()
        z[n + 1 :] = vector(start).numpy()
    y_blocks = [z]
    for _ in range(order - 1):
        y_blocks.append(np.kron(y_blocks[-1], z))
    state = np.concatenate(y_blocks)
    for t in range(STEPS):
        state = matrices[t % 2] @ state
    run_recorded(opt, model, [batches[t % 2] for t in range(STEPS)])
    u = vector(model.parameters()).numpy() - anchor
    assert abs(state[0] - 1) < 1e-14
    np.testing.assert_allclose(u, state[1 : n + 1], rtol=0, atol=1e-10 * np.abs(u).max())
    if options["momentum"]:
        v = vector([opt.state[p]["momentum_buffer"] for p in model.parameters()]).numpy()
        np.testing.assert_allclose(v, state[n + 1 : 2 * n + 1], rtol=0, atol=1e-10 * abs(v).max())


def window_error(order: int, rate: float) -> float:
    model = tanh_network()
    batches = regression(STEPS)
    true = copy.deepcopy(model)
    anchor = vector(model.parameters())
    masked_sgd(true, F.mse_loss, batches, [None] * 4, rate)
    opt = QuantumSGD(model.parameters(), lr=rate, density=1, window=STEPS, order=order)
    run_recorded(opt, model, batches)
    target = vector(true.parameters())
    return float((vector(model.parameters()) - target).norm() / (target - anchor).norm())


def test_the_error_against_true_sgd_falls_about_tenfold_with_every_order() -> None:
    errors = [window_error(order, 0.01) for order in (1, 2, 3, 4)]
    assert errors[0] < 0.1
    for lower, higher in itertools.pairwise(errors):
        assert higher < 0.2 * lower, errors


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_relative_error_goes_as_the_learning_rate_to_the_order_plus_one(order: int) -> None:
    """c_1 is of order η, so the first jet left out, c_{N+1}, of order η · η^{N+1}."""
    coarse, fine = window_error(order, 2e-3), window_error(order, 1e-3)
    assert math.log2(coarse / fine) == pytest.approx(order + 1, abs=0.2)


def test_the_order_to_infinity_converges_to_sgd_to_rounding() -> None:
    assert window_error(8, 0.005) < 1e-9


def test_jets_of_half_precision_are_kept_in_float32() -> None:
    assert working_dtype(torch.bfloat16) == working_dtype(torch.float16) == torch.float32
    assert working_dtype(torch.float32) == torch.float32
    assert working_dtype(torch.float64) == torch.float64
