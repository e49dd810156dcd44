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


def test_momentum_is_read_with_the_displacement() -> None:
    options = {"momentum": 0.9, "readout": Tomography(copies=10**8)}
    exact, first = window(momentum=0.9)
    read, opt = window(**options)
    assert 0 < float((read - exact).norm() / exact.norm()) < 1e-2
    for p, q in zip(first.param_groups[0]["params"], opt.param_groups[0]["params"], strict=True):
        a, b = first.state[p]["momentum_buffer"], opt.state[q]["momentum_buffer"]
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-2 * float(a.abs().max() + exact.norm()))


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
