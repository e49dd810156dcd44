"""Windows as linear systems where optimizers break: failures, checkpoints, schedulers, memory."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from tests.cases import regression, run_recorded, tanh_network, vector
from tests.representations.test_subspace import RATE, trained
from torch_qsgd import QuantumSGD
from torch_qsgd.errors import DivergenceError, GraphError, SizeError
from torch_qsgd.representations import Explicit, Jet, Krylov
from torch_qsgd.solvers import Exact


def decayed(model: nn.Module, representation: Any, scale: float = 1.0) -> Tensor:
    """Three steps on one batch with weight decay, the loss scaled and unscaled again."""
    opt = QuantumSGD(
        model.parameters(),
        lr=RATE,
        weight_decay=0.1,
        density=1,
        window=3,
        order=1,
        representation=representation,
    )
    before = vector(model.parameters())
    ((x, y),) = regression(1)
    for _ in range(3):
        opt.zero_grad()
        with opt.recording():
            (scale * F.mse_loss(model(x), y)).backward()
        for p in model.parameters():
            if p.grad is not None:
                p.grad /= scale
        opt.step()
    return vector(model.parameters()) - before


@pytest.mark.parametrize("scale", [1.0, 1024.0, 2.0**-10])
def test_the_scale_of_the_loss_does_not_matter(scale: float) -> None:
    jets = decayed(tanh_network(), "jet")
    found = decayed(tanh_network(), Krylov(dimension=6), scale)
    torch.testing.assert_close(found, jets, rtol=1e-8, atol=1e-10)


class Idle(nn.Module):
    """A network with a parameter that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tanh_network()
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


@pytest.mark.parametrize("representation", ["jet", Krylov(dimension=9), "explicit"], ids=str)
def test_what_has_no_gradient_does_not_decay(representation: Any) -> None:
    model = Idle()
    found = decayed(model, representation)
    assert torch.equal(model.unused, torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(found, decayed(Idle(), "jet"), rtol=1e-8, atol=1e-10)


def test_a_krylov_space_is_not_chosen_from_a_part_of_a_gradient() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), lr=RATE, density=1, window=3, representation="krylov")
    (x, y), (x2, y2) = regression(2)
    with opt.recording():
        F.mse_loss(model(x), y).backward()
    with pytest.raises(GraphError, match=r"into one `with opt\.recording"), opt.recording():
        F.mse_loss(model(x2), y2).backward()
    opt.zero_grad()
    for _ in range(3):  # later steps may accumulate as they like
        with opt.recording():
            F.mse_loss(model(x), y).backward()
        if opt.window_step:
            with opt.recording():
                F.mse_loss(model(x2), y2).backward()
        opt.step()
        opt.zero_grad()
    assert len(opt.windows) == 1


class Broken(Exact):
    """A solver that fails so many times, or returns what is no number."""

    def __init__(self, failures: float = 1, value: float | None = None) -> None:
        self.failures, self.value = failures, value

    def _solve_linear(self, system: Any, generator: torch.Generator) -> Any:
        if self.failures > 0:
            self.failures -= 1
            if self.value is None:
                raise RuntimeError("no shot passed")
            solution = super()._solve_linear(system, generator)
            return dataclasses.replace(solution, vector=solution.vector * self.value)
        return super()._solve_linear(system, generator)


def test_a_failed_download_is_tried_again_before_the_next_step() -> None:
    expected, _ = trained(representation="explicit")
    model = tanh_network()
    opt = QuantumSGD(
        model.parameters(),
        lr=RATE,
        density=1,
        window=6,
        order=2,
        representation="explicit",
        solver=Broken(failures=2),
    )
    before = vector(model.parameters())
    with pytest.raises(RuntimeError, match="no shot"):
        run_recorded(opt, model, regression(6))
    assert torch.equal(vector(model.parameters()), before)
    assert (opt.phase, opt.window_step) == ("window", 6)
    ((x, y),) = regression(1)
    with pytest.raises(RuntimeError, match="no shot"):
        run_recorded(opt, model, [(x, y)])
    assert opt.window_step == 6
    opt.zero_grad()
    F.mse_loss(model(x), y).backward(create_graph=True)
    with pytest.raises(RuntimeError, match=r"a download is due.*opt.discard\(\)"):
        opt.step()
    opt.zero_grad()
    run_recorded(opt, model, [(x, y)])  # downloads, then takes a classical step
    assert [w.reason for w in opt.windows] == ["length"]
    assert opt.phase == "classical"
    with torch.no_grad():
        gradient_step = vector(model.parameters()) - before - expected
    assert 0 < float(gradient_step.norm()) < 1


def test_a_window_may_be_discarded() -> None:
    model = tanh_network()
    opt = QuantumSGD(
        model.parameters(),
        lr=RATE,
        density=1,
        window=2,
        representation="krylov",
        solver=Broken(failures=math.inf),
    )
    before = vector(model.parameters())
    with pytest.raises(RuntimeError, match="no shot"):
        run_recorded(opt, model, regression(2))
    opt.discard()
    assert opt.phase == "upload"
    assert torch.equal(vector(model.parameters()), before)
    with pytest.raises(RuntimeError, match="nothing to discard"):
        opt.discard()
    run_recorded(opt, model, regression(1))
    assert opt.window_step == 1


def test_a_solution_that_is_not_a_number_drops_the_window() -> None:
    model = tanh_network()
    opt = QuantumSGD(
        model.parameters(),
        lr=RATE,
        density=1,
        window=2,
        representation="krylov",
        solver=Broken(1, math.nan),
    )
    before = vector(model.parameters())
    with pytest.raises(DivergenceError, match="returned NaN or infinity"):
        run_recorded(opt, model, regression(2))
    assert torch.equal(vector(model.parameters()), before)
    run_recorded(opt, model, regression(2))
    assert len(opt.windows) == 1


@pytest.mark.parametrize("representation", ["jet", "krylov", "explicit"])
def test_a_distributed_checkpoint_taken_in_mid_window_goes_on(
    representation: str, tmp_path: Path
) -> None:
    batches = regression(6)
    options = {"lr": RATE, "density": 1, "window": 6, "order": 2, "representation": representation}
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), **options)
    run_recorded(opt, model, batches[:3])
    m, o = get_state_dict(model, opt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"m": m, "o": o}, checkpoint_id=tmp_path, no_dist=True)
    run_recorded(opt, model, batches[3:])

    twin = tanh_network()
    other = QuantumSGD(twin.parameters(), **options)
    m, o = get_state_dict(twin, other)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load({"m": m, "o": o}, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(twin, other, model_state_dict=m, optim_state_dict=o)
    run_recorded(other, twin, batches[3:])
    torch.testing.assert_close(vector(twin.parameters()), vector(model.parameters()))


FORMS = ["jet", "krylov", "explicit"]


@pytest.mark.parametrize(("saved", "loaded"), list(itertools.permutations(FORMS, 2)))
def test_a_state_in_mid_window_is_refused_by_another_representation(
    saved: str, loaded: str
) -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), density=1, window=6, representation=saved)
    run_recorded(opt, model, regression(2))
    other = QuantumSGD(tanh_network().parameters(), density=1, window=6, representation=loaded)
    with pytest.raises(ValueError, match=f"construct it with representation='{saved}'"):
        other.load_state_dict(opt.state_dict())
    opt.download()
    other.load_state_dict(opt.state_dict())  # between windows any form goes on
    assert other.windows == opt.windows


def test_momentum_that_a_scheduler_brings_is_refused_before_anything_moves() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), density=1, window=6, representation="explicit")
    run_recorded(opt, model, regression(2))
    opt.param_groups[0]["momentum"] = 0.9
    with pytest.raises(ValueError, match="momentum is served by representation='jet' only"):
        run_recorded(opt, model, regression(1))
    assert opt.window_step == opt.param_groups[0]["cycle"]["step"] == 2


def test_a_window_rests_until_its_first_gradient_that_is_not_zero() -> None:
    batches = regression(5)
    displacements = []
    for representation in ("jet", "explicit", Krylov(dimension=9)):
        model = tanh_network()
        opt = QuantumSGD(
            model.parameters(),
            lr=RATE,
            density=1,
            window=5,
            order=2,
            representation=representation,
        )
        before = vector(model.parameters())
        for i, (x, y) in enumerate(batches):
            opt.zero_grad()
            with opt.recording():
                (F.mse_loss(model(x), y) * (i > 1)).backward()
            opt.step()
        displacements.append(vector(model.parameters()) - before)
    for found in displacements[1:]:
        torch.testing.assert_close(found, displacements[0], rtol=1e-8, atol=1e-11)


def test_a_window_without_a_learning_rate_moves_nothing() -> None:
    for representation in FORMS:
        moved, opt = trained(representation=representation, lr=0.0)
        assert not moved.any()
        assert opt.windows[0].final_probability is None


def test_options_are_checked_at_construction() -> None:
    for options in ({"rescaling": -1.0}, {"rescaling": "foo"}, {"limit": 0}, {"idle": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
            Krylov(**options)
    with pytest.raises(ValueError, match="coordinates must be an integer"):
        Explicit(coordinates="x")
    with pytest.raises(ValueError, match="rescaling must be a number"):
        Jet(rescaling="auto")
    with pytest.raises(SizeError, match=r"over 0\.00191 MiB"):
        QuantumSGD(tanh_network().parameters(), representation=Krylov(limit=2000))


def test_networks_are_dropped_without_the_garbage_collector() -> None:
    dropped = []
    gc.collect()
    gc.disable()
    try:
        for representation in FORMS:
            model = tanh_network()
            opt = QuantumSGD(
                model.parameters(), lr=RATE, density=1, window=3, representation=representation
            )
            run_recorded(opt, model, regression(4))
            dropped += [weakref.ref(p) for p in model.parameters()]
            del model, opt
        assert [ref() is None for ref in dropped] == [True] * len(dropped)
    finally:
        gc.enable()


def test_weights_in_channels_last_order_are_served() -> None:
    displacements = []
    for representation in ("jet", "explicit"):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(1))
        torch.manual_seed(0)
        model(torch.zeros(1, 1, 4, 4))
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        model = model.double().to(memory_format=torch.channels_last)
        opt = QuantumSGD(
            model.parameters(), lr=RATE, density=1, window=3, representation=representation
        )
        before = vector(model.parameters())
        x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(9)).double()
        run_recorded(opt, model, [(x, x.mean((1, 2, 3))[:, None])] * 3)
        displacements.append(vector(model.parameters()) - before)
    torch.testing.assert_close(*displacements, rtol=1e-9, atol=1e-12)
