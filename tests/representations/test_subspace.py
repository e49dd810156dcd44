"""Windows written out as linear systems, inside the optimizer, against jets and plain descent."""

from __future__ import annotations

import copy
import dataclasses
import gc
import io
import itertools
import math
import pickle
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from tests.cases import (
    Batches,
    classifier,
    image_batches,
    regression,
    run_recorded,
    tanh_network,
    vector,
)
from torch_qsgd import QuantumSGD
from torch_qsgd.errors import DivergenceError, GraphError, RepresentationError, SizeError
from torch_qsgd.readout import Tomography
from torch_qsgd.representations import Explicit, Jet, Krylov, resolve
from torch_qsgd.solvers import HHL, QSVT, Circuit, Exact

RATE = 0.05


def trained(
    run: Callable[[Any, nn.Module, Batches], None] = run_recorded, **options: Any
) -> tuple[Tensor, QuantumSGD]:
    """A window of six steps on the tanh network, each with its own batch."""
    model = tanh_network()
    given = {"lr": RATE, "density": 1, "window": 6, "order": 2, **options}
    if run is by_batch:
        given.update(model=model, loss_fn=F.mse_loss)
    opt = QuantumSGD(model.parameters(), **given)
    before = vector(model.parameters())
    run(opt, model, regression(6))
    return vector(model.parameters()) - before, opt


def by_closure(opt: QuantumSGD, model: nn.Module, batches: Batches) -> None:
    for x, y in batches:

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            opt.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            return loss

        opt.step(closure)


def by_batch(opt: QuantumSGD, model: nn.Module, batches: Batches) -> None:
    for x, y in batches:
        opt.step(x, y)


def by_graph(opt: QuantumSGD, model: nn.Module, batches: Batches) -> None:
    opt.upload()
    for x, y in batches:
        opt.zero_grad()
        F.mse_loss(model(x), y).backward(create_graph=True)
        opt.step()


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1}, {"maximize": True, "weight_decay": 0.1}, {"density": 0.5}],
    ids=str,
)
def test_an_explicit_window_is_the_jets(order: int, options: dict[str, Any]) -> None:
    options = {"order": order, **options}
    jets, reference = trained(**options)
    for basis in ("monomial", "kronecker"):
        found, opt = trained(representation=Explicit(basis=basis), **options)
        torch.testing.assert_close(found, jets, rtol=1e-9, atol=1e-12)
        record, expected = opt.windows[0], reference.windows[0]
        assert record.jet_norms == pytest.approx(expected.jet_norms, rel=1e-8)
        assert record.loss == pytest.approx(expected.loss)
        assert record.predicted_loss == pytest.approx(expected.predicted_loss, rel=1e-9)
        assert record.displacement == pytest.approx(expected.displacement)


@pytest.mark.parametrize("run", [by_closure, by_batch, by_graph])
def test_derivatives_may_be_handed_in_any_way(run: Callable[..., None]) -> None:
    expected, _ = trained(representation="explicit")
    found, _ = trained(run, representation="explicit")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_krylov_window_of_all_dimensions_is_the_jets() -> None:
    jets, _ = trained()
    found, opt = trained(representation=Krylov(dimension=9))
    torch.testing.assert_close(found, jets, rtol=1e-8, atol=1e-10)
    assert opt.state[opt.param_groups[0]["params"][0]]["basis_9"].any()


def test_on_one_batch_few_dimensions_come_close_and_more_come_closer() -> None:
    (batch,) = image_batches(1)

    def displacement(**options: Any) -> Tensor:
        model = classifier()
        opt = QuantumSGD(model.parameters(), lr=RATE, density=0.5, window=6, order=1, **options)
        opt.upload()
        before = vector(model.parameters())
        run_recorded(opt, model, [batch] * 6, F.cross_entropy)
        return vector(model.parameters()) - before

    jets = displacement()
    errors = [
        float((displacement(representation=Krylov(dimension=m)) - jets).norm() / jets.norm())
        for m in (1, 3, 6)
    ]
    assert errors[0] > 2 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-6


@pytest.mark.parametrize(
    "solver", [HHL(clock_qubits=14), QSVT(epsilon=1e-4), "hhl", "qsvt"], ids=str
)
def test_emulated_solvers_solve_a_window(solver: Any) -> None:
    exact, _ = trained(representation=Krylov(dimension=3))
    found, opt = trained(representation=Krylov(dimension=3), solver=solver)
    (record,) = opt.windows
    assert 0 < record.solver_error < 0.02
    assert 0 < record.success_probability <= 1
    assert record.queries > 20
    assert 0 < record.final_probability < 1
    assert 0 < record.level_one_probability < 1
    # The error is made relative to the whole history, of which the displacement is a part.
    share = (record.final_probability * record.level_one_probability) ** 0.5
    assert 0 < float((found - exact).norm() / exact.norm()) <= record.solver_error / share


def test_a_circuit_solves_a_window_of_three_steps() -> None:
    options = {"window": 3, "order": 1, "representation": Krylov(dimension=3)}
    emulated, _ = trained(
        lambda opt, model, batches: run_recorded(opt, model, batches[:3]),
        solver=HHL(clock_qubits=6),
        **options,
    )
    found, opt = trained(
        lambda opt, model, batches: run_recorded(opt, model, batches[:3]),
        solver=Circuit("hhl", clock_qubits=6),
        **options,
    )
    torch.testing.assert_close(found, emulated, rtol=1e-9, atol=1e-11)
    assert opt.windows[0].queries == 2 * (2**6 - 1)


def test_idle_steps_raise_the_final_probability() -> None:
    records = [
        trained(representation=Krylov(dimension=3, idle=idle))[1].windows[0] for idle in (0, 12)
    ]
    assert records[1].final_probability > 2 * records[0].final_probability


def test_the_readout_is_drawn_from_the_optimizers_generator() -> None:
    exact, _ = trained(representation=Krylov(dimension=3))

    def read(seed: int) -> tuple[Tensor, QuantumSGD]:
        return trained(
            representation=Krylov(dimension=3),
            readout=Tomography(copies=10**6),
            generator=torch.Generator().manual_seed(seed),
        )

    (found, opt), (again, _), (other, _) = read(1), read(1), read(2)
    assert torch.equal(found, again)
    assert not torch.equal(found, other)
    (record,) = opt.windows
    assert record.copies == 2 * 10**6
    error = float((found - exact).norm() / exact.norm())
    assert 0 < record.readout_error < 5e-3
    assert error == pytest.approx(record.readout_error, rel=1e-6)


@pytest.mark.parametrize("representation", ["krylov", "explicit"])
def test_a_state_saved_in_mid_window_goes_on_as_it_was(representation: str) -> None:
    batches = regression(6)
    model = tanh_network()
    options = {"lr": RATE, "density": 1, "window": 6, "order": 2, "representation": representation}
    opt = QuantumSGD(model.parameters(), **options)
    run_recorded(opt, model, batches[:3])
    buffer = io.BytesIO()
    torch.save([opt.state_dict(), model.state_dict()], buffer)
    pickled = pickle.dumps(opt)
    run_recorded(opt, model, batches[3:])
    expected = vector(model.parameters())

    buffer.seek(0)
    saved, weights = torch.load(buffer, weights_only=True)
    twin = tanh_network()
    twin.load_state_dict(weights)
    other = QuantumSGD(twin.parameters(), **options)
    other.load_state_dict(saved)
    run_recorded(other, twin, batches[3:])
    assert torch.equal(vector(twin.parameters()), expected)

    revived = pickle.loads(pickled)
    assert revived.representation == resolve(representation)
    assert revived.window_step == 3


def test_the_predicted_weights_are_those_downloaded_next() -> None:
    model = tanh_network()
    opt = QuantumSGD(
        model.parameters(), lr=RATE, density=1, window=6, order=2, representation="krylov"
    )
    run_recorded(opt, model, regression(3))
    before = vector(model.parameters())
    with opt.predicted_weights():
        predicted = vector(model.parameters())
    assert torch.equal(vector(model.parameters()), before)
    opt.download()
    torch.testing.assert_close(vector(model.parameters()), predicted, rtol=1e-10, atol=1e-13)
    assert opt.windows[0].steps == 3


def test_windows_follow_one_another_with_classical_steps_between() -> None:
    model = tanh_network()
    opt = QuantumSGD(
        model.parameters(),
        lr=RATE,
        density=0.5,
        window=3,
        order=2,
        classical_steps=2,
        representation="krylov",
        solver="qsvt",
        readout=Tomography(precision=0.01),
    )
    batches = regression(12)
    with torch.no_grad():
        first = sum(float(F.mse_loss(model(x), y)) for x, y in batches)
    run_recorded(opt, model, batches)
    assert [w.steps for w in opt.windows] == [3, 3]
    assert opt.phase == "window"
    opt.download()
    with torch.no_grad():
        assert sum(float(F.mse_loss(model(x), y)) for x, y in batches) < first


def test_accumulated_and_clipped_gradients_are_followed() -> None:
    x, y = regression(1, batch=16)[0]
    results = []
    for split in (False, True):
        model = tanh_network()
        opt = QuantumSGD(
            model.parameters(), lr=RATE, density=1, window=3, order=2, representation="explicit"
        )
        for _ in range(3):
            opt.zero_grad()
            if split:
                for part in (slice(0, 8), slice(8, 16)):
                    with opt.recording():
                        (F.mse_loss(model(x[part]), y[part]) / 2).backward()
            else:
                with opt.recording():
                    F.mse_loss(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            opt.step()
        results.append(vector(model.parameters()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_a_tolerance_ends_the_window_early() -> None:
    _, opt = trained(representation="krylov", lr=0.5, tolerance=0.05)
    assert opt.windows[0].reason == "tolerance"
    assert opt.windows[0].steps < 6


# ---- What is wrong is said -----------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["hhl", "qsvt", "circuit"])
def test_a_solver_that_needs_a_system_says_so_at_construction(solver: str) -> None:
    with pytest.raises(RepresentationError, match="representation='explicit' or 'krylov'"):
        QuantumSGD(tanh_network().parameters(), solver=solver)


def test_a_system_too_large_for_its_solver_is_refused_at_construction() -> None:
    with pytest.raises(SizeError, match=r"solver 'circuit' takes 64 at most"):
        QuantumSGD(
            tanh_network().parameters(), window=100, representation="krylov", solver="circuit"
        )
    model = tanh_network()
    opt = QuantumSGD(
        model.parameters(), density=1, window=6, representation="explicit", solver="circuit"
    )
    before = vector(model.parameters())
    with pytest.raises(SizeError, match="9 coordinates"):
        run_recorded(opt, model, regression(1))
    assert torch.equal(vector(model.parameters()), before)


def test_options_that_only_jets_serve_are_refused() -> None:
    params = list(tanh_network().parameters())
    with pytest.raises(ValueError, match="momentum is served by representation='jet' only"):
        QuantumSGD(params, momentum=0.9, representation="krylov")
    with pytest.raises(ValueError, match="needs one lr for all groups"):
        QuantumSGD(
            [{"params": params[:2]}, {"params": params[2:], "lr": 0.5}], representation="explicit"
        )
    for representation in (3, Jet):
        with pytest.raises(TypeError, match="must be a name or a Representation"):
            QuantumSGD(params, representation=representation)
    with pytest.raises(ValueError, match="known: explicit, jet, krylov"):
        QuantumSGD(params, representation="krilov")
    with pytest.raises(TypeError, match="readout must be a Tomography"):
        QuantumSGD(params, readout=100)
    for build in (lambda: Krylov(dimension=0), lambda: Krylov(closure="x"), lambda: Jet(idle=-1)):
        with pytest.raises(ValueError, match="must be"):
            build()
    with pytest.raises(ValueError, match="rescaling must be a number above 0"):
        Jet(rescaling=0.0)


def test_groups_whose_rates_part_later_are_refused_before_anything_moves() -> None:
    model = tanh_network()
    params = list(model.parameters())
    opt = QuantumSGD(
        [{"params": params[:2]}, {"params": params[2:]}],
        lr=RATE,
        density=1,
        window=6,
        representation="krylov",
    )
    run_recorded(opt, model, regression(2))
    opt.param_groups[1]["lr"] = 0.5
    with pytest.raises(ValueError, match="needs one lr for all groups"):
        run_recorded(opt, model, regression(1))
    assert opt.window_step == 2


def test_a_first_step_without_a_graph_is_refused() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), density=1, window=6, representation="krylov")
    opt.upload()
    ((x, y),) = regression(1)
    F.mse_loss(model(x), y).backward()
    with pytest.raises(GraphError, match="step 1 of the window needs derivatives"):
        opt.step()


def test_too_many_active_coordinates_are_refused() -> None:
    model = tanh_network()
    opt = QuantumSGD(
        model.parameters(), density=1, window=6, representation=Explicit(coordinates=8)
    )
    with pytest.raises(SizeError, match="9 active coordinates are more than the 8"):
        run_recorded(opt, model, regression(1))


def test_parameters_frozen_in_mid_window_are_refused_and_the_window_may_be_closed() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), lr=RATE, density=1, window=6, representation="krylov")
    run_recorded(opt, model, regression(2))
    before = vector(model.parameters())
    model[0].bias.requires_grad_(False)
    with pytest.raises(ValueError, match="added or frozen in mid-window"):
        run_recorded(opt, model, regression(1))
    opt.download()
    assert opt.windows[0].steps == 2
    assert not torch.equal(vector(model.parameters()), before)


def test_a_gradient_that_is_not_a_number_is_refused_and_nothing_moves() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), lr=RATE, density=1, window=6, representation="krylov")
    run_recorded(opt, model, regression(1))
    ((x, y),) = regression(1)
    with pytest.raises(DivergenceError, match="the loss is nan"):
        run_recorded(opt, model, [(x * torch.nan, y)])
    assert opt.window_step == 1


def test_a_window_without_a_step_downloads_nothing() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), density=1, window=6, representation="krylov")
    before = vector(model.parameters())
    opt.upload()
    assert opt.download().displacement == 0
    assert torch.equal(vector(model.parameters()), before)


def test_a_copied_optimizer_is_its_own() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), lr=RATE, density=1, window=6, representation="krylov")
    run_recorded(opt, model, regression(2))
    twin = copy.deepcopy(opt)
    run_recorded(opt, model, regression(1))
    assert (opt.window_step, twin.window_step) == (3, 2)
    assert len(twin.param_groups[0]["cycle"]["maps"]) == 2


# ---- Hard cases ------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("saved", "loaded"), itertools.permutations(FORMS, 2))
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
