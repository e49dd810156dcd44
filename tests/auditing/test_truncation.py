"""A window's errors against plain computations: dense Taylor tensors, plain SGD, plain gates."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import (
    Batches,
    classifier,
    image_batches,
    masked_sgd,
    regression,
    seeded,
    tanh_network,
    vector,
)
from torch_qsgd import QuantumSGD
from torch_qsgd.auditing.truncation import measure_truncation
from torch_qsgd.report.measurements import Truncation

HELD_OUT = regression(2, batch=5)


def opened(model: nn.Module, loss_fn: Any = F.mse_loss, **options: Any) -> QuantumSGD:
    given = {"lr": 0.1, "density": 0.6, "window": 50, "order": 2, **options}
    optimizer = QuantumSGD(model.parameters(), model=model, loss_fn=loss_fn, **given)
    optimizer.upload()
    return optimizer


def measured(
    model: nn.Module,
    batches: Sequence[Any],
    steps: int,
    held_out: Sequence[Any] = HELD_OUT,
    loss_fn: Any = F.mse_loss,
    cubic_iterations: int = 0,
    **options: Any,
) -> tuple[Truncation, QuantumSGD]:
    optimizer = opened(model, loss_fn, **options)
    found = measure_truncation(
        model, optimizer, loss_fn, batches, held_out, steps=steps, cubic_iterations=cubic_iterations
    )
    return found, optimizer


def plain_sgd(
    model: nn.Module, optimizer: QuantumSGD, batches: Batches, loss_fn: Any = F.mse_loss
) -> list[Tensor]:
    """Displacements of true SGD after each step; the model is trained."""
    group, moved = optimizer.param_groups[0], []
    masks = [optimizer.masks.get(p) for p in optimizer.param_groups[0]["params"]]
    names = ("momentum", "weight_decay", "nesterov", "maximize", "dampening")
    start = vector(model.parameters())
    for t in range(1, len(batches) + 1):
        # From the start each time, for the plain loop keeps no momentum between calls.
        twin = copy.deepcopy(model)
        options = {name: group[name] for name in names}
        masked_sgd(twin, loss_fn, batches[:t], masks, group["lr"], **options)
        moved.append(vector(twin.parameters()) - start)
    model.load_state_dict(twin.state_dict())
    return moved


def dense_derivatives(model: nn.Module, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """∇L, ∇²L, ∇³L, ∇⁴L as dense tensors, by nested forward mode."""
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        values = {n: part.view(shapes[n]) for n, part in zip(shapes, parts, strict=True)}
        return F.mse_loss(torch.func.functional_call(model, values, (inputs,)), targets)

    found, function = [], loss
    for _ in range(4):
        function = torch.func.jacfwd(function)
        found.append(function(vector(model.parameters())))
    return found


OPTIONS: list[dict[str, Any]] = [
    {},
    {"density": 1.0},
    {"weight_decay": 0.03},
    {"momentum": 0.8},
    {"momentum": 0.7, "weight_decay": 0.02, "nesterov": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_errors_are_those_of_the_series_by_dense_tensors_against_plain_sgd(options: Any):
    model, data = tanh_network(), regression(6)
    anchor_of = copy.deepcopy(model)
    found, optimizer = measured(model, data, 6, order=3, **options)
    params = list(model.parameters())
    keep = torch.cat(
        [optimizer.masks.get(p, torch.ones_like(p, dtype=torch.bool)).flatten() for p in params]
    ).double()
    anchor = vector(params)
    assert torch.equal(anchor, vector(anchor_of.parameters()) * keep)
    lr, decay = 0.1, options.get("weight_decay", 0.0)
    mu, nesterov = options.get("momentum", 0.0), options.get("nesterov", False)
    c, v = torch.zeros(3, 9).double(), torch.zeros(3, 9).double()
    wanted: list[list[float]] = [[], [], []]
    forcing = 0.0
    true = plain_sgd(copy.deepcopy(model), optimizer, data)
    for (inputs, targets), u in zip(data, true, strict=True):
        g, H, T, Q = dense_derivatives(model, inputs, targets)
        forcing = max(forcing, lr * float(((g + decay * anchor) * keep).norm()))
        slopes = torch.stack(
            [
                g + H @ c[0] + decay * (anchor + c[0]),
                H @ c[1] + torch.einsum("ijk,j,k", T, c[0], c[0]) / 2 + decay * c[1],
                H @ c[2]
                + torch.einsum("ijk,j,k", T, c[0], c[1])
                + torch.einsum("ijkl,j,k,l", Q, c[0], c[0], c[0]) / 6
                + decay * c[2],
            ]
        )
        v = mu * v + slopes * keep
        c = c - lr * (slopes * keep + mu * v if nesterov else v)
        for k in range(3):
            wanted[k].append(float((c[: k + 1].sum(0) - u).norm() / u.norm()))
    assert [o.order for o in found.orders] == [1, 2, 3]
    for order, expected in zip(found.orders, wanted, strict=True):
        # The first step is exact in every order.
        assert order.errors[0] < 1e-12
        assert order.errors[1:] == pytest.approx(expected[1:], rel=1e-6, abs=1e-13)
    assert found.orders[0].errors[-1] > found.orders[1].errors[-1] > found.orders[2].errors[-1] > 0
    assert found.forcing == pytest.approx(forcing, rel=1e-12)
    assert (found.steps, found.kinks, found.unfrozen) == (6, [], [])
    assert found.floor == [0.0] * 6


def test_held_out_losses_are_those_at_the_anchor_after_sgd_and_after_each_order():
    model, data = tanh_network(), regression(5)
    found, optimizer = measured(model, data, 5)
    params = list(model.parameters())

    def loss(network: nn.Module) -> float:
        return sum(F.mse_loss(network(x), y).item() for x, y in HELD_OUT) / 2

    assert found.loss_anchor == pytest.approx(loss(model), rel=1e-14)
    plain = copy.deepcopy(model)
    plain_sgd(plain, optimizer, data)
    assert found.loss_true == pytest.approx(loss(plain), rel=1e-12)
    for order in found.orders:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, q in zip(moved.parameters(), params, strict=True):
                p += sum(optimizer.state[q][f"jet_{k}"] for k in range(1, order.order + 1))
        assert order.loss == pytest.approx(loss(moved), rel=1e-12)


def test_the_window_is_left_open_with_its_jets_and_the_model_as_it_was():
    model, data = classifier("batch", nn.ReLU), image_batches(3)
    optimizer = opened(model, F.cross_entropy, window=50)
    weights = [p.detach().clone() for p in model.parameters()]
    gradients = [torch.full_like(p, 7.0) for p in model.parameters()]
    for p, g in zip(model.parameters(), gradients, strict=True):
        p.grad = g
    state, ticks = torch.get_rng_state(), []
    found = measure_truncation(
        model,
        optimizer,
        F.cross_entropy,
        data,
        data,
        steps=4,
        cubic_iterations=2,
        tick=lambda *told: ticks.append(told),
    )
    assert ticks == [(i, 6) for i in range(1, 7)]
    assert torch.equal(torch.get_rng_state(), state)
    for p, w, g in zip(model.parameters(), weights, gradients, strict=True):
        assert torch.equal(p, w)
        assert p.grad is g
        assert bool((g == 7).all())
    assert (optimizer.phase, optimizer.window_step) == ("window", 4)
    # Batches are taken in turn: another optimizer on the same four agrees.
    again = copy.deepcopy(model)
    other = opened(again, F.cross_entropy, window=50)
    for inputs, labels in [*data, data[0]]:
        other.step(inputs, labels)
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(optimizer.state[p]["jet_2"], other.state[q]["jet_2"])
    grams = torch.tensor(found.grams)
    assert grams.shape == (5, 2, 2)
    torch.testing.assert_close(
        grams[-1].double().diagonal().sqrt(), torch.tensor(optimizer.jet_norms).double()
    )
    optimizer.download()
    model.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(model(x), y).item() for x, y in data]
    assert found.orders[-1].loss == pytest.approx(sum(losses) / 3, rel=1e-12)


# ---- Quadratic, kinked, and random models --------------------------------------------------------


def test_a_quadratic_loss_is_exact_at_order_one():
    model = seeded(lambda: nn.Linear(2, 1)).double()
    found, _ = measured(model, regression(10), 10, order=2, density=1.0, cubic_iterations=2)
    assert max(found.orders[0].errors) < 1e-12
    assert (found.cubic, found.smooth_degree, found.floor) == (0.0, 2, [0.0] * 10)


def held_displacements(model: nn.Sequential, lr: float, data: Batches) -> list[Tensor]:
    """SGD on two layers whose gates are those at the start, written out; no pruning."""
    start = [p.detach().clone() for p in model.parameters()]
    weights = [p.clone().requires_grad_() for p in start]
    moved = []
    for inputs, targets in data:
        gates = (inputs @ start[0].T + start[1] > 0).double()
        hidden = gates * (inputs @ weights[0].T + weights[1])
        outputs = hidden @ weights[2].T + weights[3]
        slopes = torch.autograd.grad(((outputs - targets) ** 2).mean(), weights)
        weights = [
            (w - lr * s).detach().requires_grad_() for w, s in zip(weights, slopes, strict=True)
        ]
        moved.append(vector(weights) - vector(start))
    return moved


def relu_network() -> nn.Sequential:
    return seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))).double()


def test_the_floor_is_the_distance_of_sgd_with_the_anchors_gates():
    model, data = relu_network(), regression(8, batch=16)
    found, optimizer = measured(model, data, 8, order=3, density=1.0, cubic_iterations=1)
    held = held_displacements(model, 0.1, data)
    true = plain_sgd(copy.deepcopy(model), optimizer, data)
    wanted = [float((h - u).norm() / u.norm()) for h, u in zip(held, true, strict=True)]
    assert found.floor is not None
    assert found.floor[0] < 1e-14
    assert found.floor[1:] == pytest.approx(wanted[1:], rel=1e-8)
    assert (found.kinks, found.unfrozen, found.smooth_degree) == (["relu"], [], 0)
    assert found.cubic > 0
    # Order 3 has come down to it, and no order comes below by much.
    assert found.orders[2].errors[-1] == pytest.approx(found.floor[-1], rel=0.1)
    assert found.floor[-1] > 0.003


def dropout_network() -> nn.Sequential:
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(2, 6),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Dropout(0.4),
            nn.Linear(6, 1),
        )
    ).double()


def test_dropout_draws_the_same_numbers_in_all_three_whatever_the_global_state():
    results = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of no consequence
            found, _ = measured(dropout_network(), regression(1), 4, order=2)
        results.append(found)
    assert results[0] == results[1]
    assert results[0].orders[0].errors[0] < 1e-12
    assert results[0].floor is not None
    assert results[0].floor[0] < 1e-12


def test_running_statistics_move_once_a_step_as_under_sgd():
    model, data = dropout_network(), regression(3)
    model[3].p = 0.0
    anchor = copy.deepcopy(model)
    found, optimizer = measured(model, data, 3, cubic_iterations=1)
    with torch.no_grad():
        for p, q in zip(anchor.parameters(), model.parameters(), strict=True):
            p.copy_(q)
        for inputs, _ in data:
            anchor(inputs)
    for a, b in zip(model.buffers(), anchor.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert int(model[1].num_batches_tracked) == 3
    plain = dropout_network()
    plain[3].p = 0.0
    with torch.no_grad():
        for p, q in zip(plain.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    plain_sgd(plain, optimizer, data)
    plain.eval()
    losses = [F.mse_loss(plain(x), y).item() for x, y in HELD_OUT]
    assert found.loss_true == pytest.approx(sum(losses) / 2, rel=1e-12)


class Pair(nn.Module):
    """Of two inputs and a mapping's worth of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 3), nn.Linear(2, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (torch.tanh(self.left(a)) * self.right(b)).sum(1, keepdim=True)


@pytest.mark.parametrize("form", [tuple, lambda pair: {"b": pair[1], "a": pair[0]}])
def test_inputs_may_be_tuples_or_mappings(form: Callable[[Any], Any]):
    data = [(form((x, 2 * x)), y) for x, y in regression(3)]
    found, _ = measured(seeded(Pair).double(), data, 3, held_out=data, lr=0.02)
    assert found.steps == 3
    assert 0 < found.orders[1].errors[-1] < found.orders[0].errors[-1] < 0.1
