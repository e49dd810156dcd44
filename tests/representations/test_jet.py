"""Jets read out and solved with noise, against the explicit system of the same window."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.cases import classifier, image_batches, regression, run_recorded, tanh_network, vector
from torch_qsgd import QuantumSGD
from torch_qsgd.readout import Tomography
from torch_qsgd.representations import Explicit, Jet
from torch_qsgd.solvers import Noise

STEPS = 5


def window(**options: Any) -> tuple[torch.Tensor, QuantumSGD]:
    model = tanh_network()
    opt = QuantumSGD(
        model.parameters(), **{"lr": 0.05, "density": 1, "window": STEPS, "order": 2, **options}
    )
    before = vector(model.parameters())
    run_recorded(opt, model, regression(STEPS))
    return vector(model.parameters()) - before, opt


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("idle", [0, 4])
def test_the_odds_of_jets_are_those_of_the_explicit_history_state(order: int, idle: int) -> None:
    (jets,) = window(order=order, representation=Jet(idle=idle, rescaling=0.3))[1].windows
    for basis in ("kronecker", "monomial"):
        form = Explicit(idle=idle, rescaling=0.3, basis=basis)
        (explicit,) = window(order=order, representation=form)[1].windows
        assert jets.final_probability == pytest.approx(explicit.final_probability, rel=1e-9)
        assert jets.level_one_probability == pytest.approx(explicit.level_one_probability, rel=1e-9)


def test_by_default_the_displacement_weighs_as_much_as_the_constant() -> None:
    _, opt = window(order=1)
    assert opt.windows[0].level_one_probability == pytest.approx(0.5)
    _, opt = window(order=1, representation="explicit")
    assert opt.windows[0].level_one_probability == pytest.approx(0.5)


def test_a_reading_of_a_pruned_network_keeps_pruned_weights_at_zero() -> None:
    displacements = []
    for readout in (None, Tomography(precision=0.05)):
        model = classifier()
        opt = QuantumSGD(
            model.parameters(), lr=0.05, density=0.2, window=4, order=2, readout=readout
        )
        opt.upload()
        before = vector(model.parameters())
        run_recorded(opt, model, image_batches(4), F.cross_entropy)
        displacements.append(vector(model.parameters()) - before)
        for p, mask in opt.masks.items():
            assert not bool(p[~mask].any())
    exact, read = displacements
    (record,) = opt.windows
    error = float((read - exact).norm() / exact.norm())
    assert error == pytest.approx(record.readout_error, rel=1e-6)
    assert 0.02 < error < 0.08
    assert record.copies == record.expected_copies < record.guaranteed_copies
    # Vectors and biases are read too.
    assert record.copies == pytest.approx(2 * 0.35 * record.active / 0.05**2, rel=1e-3)


@pytest.mark.parametrize("lr", [0.05, 1e-3])
@pytest.mark.parametrize("solver", ["exact", Noise(epsilon=0.01)], ids=str)
def test_momentum_is_read_with_the_displacement_at_its_own_scale(lr: float, solver: Any) -> None:
    """Beside v, longer by 1/η, u would drown in errors relative to both."""
    exact, first = window(momentum=0.9, lr=lr)
    readout = Tomography(copies=40_000) if solver == "exact" else None
    read, opt = window(momentum=0.9, lr=lr, readout=readout, solver=solver)
    error = float((read - exact).norm() / exact.norm())
    record = opt.windows[0]
    assert error == pytest.approx(record.readout_error if readout else record.solver_error)
    assert 1e-3 < error < 0.1
    pairs = [
        (a.state[p]["momentum_buffer"], b.state[q]["momentum_buffer"])
        for a, b in [(first, opt)]
        for p, q in zip(a.param_groups[0]["params"], b.param_groups[0]["params"], strict=True)
    ]
    buffer, noisy = (vector(side) for side in zip(*pairs, strict=True))
    assert 1e-4 < float((noisy - buffer).norm() / buffer.norm()) < 0.3


def test_without_a_learning_rate_nothing_moves_and_momentum_is_exact() -> None:
    moved, opt = window(momentum=0.9, lr=0.0, solver=Noise(0.01), readout=Tomography(copies=10))
    assert not moved.any()
    assert opt.windows[0].final_probability is None
    _, exact = window(momentum=0.9, lr=0.0)
    for p, q in zip(*(o.param_groups[0]["params"] for o in (opt, exact)), strict=True):
        assert torch.equal(opt.state[p]["momentum_buffer"], exact.state[q]["momentum_buffer"])


def test_where_only_one_group_has_momentum_its_pruned_weights_keep_none() -> None:
    model = classifier()
    first, second = [model[0].weight], [model[3].weight]
    opt = QuantumSGD(
        [{"params": first}, {"params": second, "momentum": 0.5}],
        lr=0.05,
        density=0.3,
        window=3,
        solver=Noise(0.1),
        readout=Tomography(copies=1000),
    )
    run_recorded(opt, model, image_batches(3), F.cross_entropy)
    mask = opt.masks[second[0]]
    buffer = opt.state[second[0]]["momentum_buffer"]
    assert not bool(buffer[~mask].any())
    assert bool(buffer[mask].any())


@pytest.mark.parametrize("when", ["between windows", "in mid-window"])
def test_noise_leaves_frozen_and_pruned_weights_alone(when: str) -> None:
    model = classifier()
    opt = QuantumSGD(
        model.parameters(), lr=0.05, density=0.3, window=3, classical_steps=0, solver=Noise(0.1)
    )
    run_recorded(opt, model, image_batches(3 if when == "between windows" else 4), F.cross_entropy)
    weight = model[3].weight
    pruned = ~opt.masks[weight]
    before = weight.detach().clone()
    weight.requires_grad_(False)
    run_recorded(opt, model, image_batches(3 if when == "between windows" else 2), F.cross_entropy)
    assert len(opt.windows) == 2
    assert not bool(weight[pruned].any())
    if when == "between windows":
        assert torch.equal(weight, before)


@pytest.mark.parametrize("idle", [0, 3])
@pytest.mark.parametrize("placement", ["readout", "isotropic"])
def test_the_noise_of_jets_is_that_of_the_explicit_system(placement: str, idle: int) -> None:
    """Lengths of the displacement's error, root mean square over seeds."""
    exact, _ = window()
    solver = Noise(epsilon=1e-3, placement=placement)
    squares: dict[str, list[float]] = {"jet": [], "explicit": []}
    for form in (Jet(idle=idle), Explicit(idle=idle, basis="kronecker")):
        for seed in range(12):
            found, _ = window(
                representation=form,
                solver=solver,
                generator=torch.Generator().manual_seed(seed),
            )
            squares[form.name].append(float((found - exact).norm() ** 2))
    jet, explicit = np.mean(squares["jet"]), np.mean(squares["explicit"])
    # In the worst case the length is certain; spread evenly, nine coordinates vary by a third.
    assert jet == pytest.approx(explicit, rel=1e-6 if placement == "readout" else 0.6)


def test_noise_is_reported_and_repeats_with_its_seed() -> None:
    exact, _ = window()
    found, opt = window(solver=Noise(epsilon=1e-2))
    again, _ = window(solver=Noise(epsilon=1e-2))
    assert torch.equal(found, again)
    error = float((found - exact).norm() / exact.norm())
    assert opt.windows[0].solver_error == pytest.approx(error)
    evenly, _ = window(solver=Noise(epsilon=1e-2, placement="isotropic"))
    assert float((evenly - exact).norm() / exact.norm()) < 0.3 * error


def test_noise_leaves_pruned_weights_and_a_resting_window_alone() -> None:
    model = classifier()
    opt = QuantumSGD(
        model.parameters(), lr=0.05, density=0.3, window=3, solver=Noise(0.1), momentum=0.5
    )
    run_recorded(opt, model, image_batches(3), F.cross_entropy)
    for p, mask in opt.masks.items():
        assert not bool(p[~mask].any())
        assert bool(p[mask].all())
    still = tanh_network()
    rest = QuantumSGD(still.parameters(), density=1, window=3, solver="noise")
    kept = vector(still.parameters())
    rest.upload()
    assert rest.download().solver_error == 0
    assert torch.equal(vector(still.parameters()), kept)


def test_a_window_whose_parameters_are_all_frozen_moves_nothing() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), density=1, window=3)
    opt.upload()
    before = vector(model.parameters())
    model.requires_grad_(False)
    assert opt.download().displacement == 0
    assert torch.equal(vector(model.parameters()), before)


def test_the_gram_matrices_survive_a_saved_state() -> None:
    model = tanh_network()
    options = {"lr": 0.05, "density": 1, "window": STEPS, "order": 2}
    opt = QuantumSGD(model.parameters(), **options)
    batches = regression(STEPS)
    run_recorded(opt, model, batches[:2])
    state = copy.deepcopy(opt.state_dict())
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    run_recorded(opt, model, batches[2:])
    twin = tanh_network()
    twin.load_state_dict(weights)
    other = QuantumSGD(twin.parameters(), **options)
    other.load_state_dict(state)
    run_recorded(other, twin, batches[2:])
    assert other.windows == opt.windows
    assert opt.windows[0].final_probability is not None
