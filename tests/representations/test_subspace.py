"""Windows written out as linear systems, inside the optimizer, against jets and plain descent."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from torch_qsgd.solvers import HHL, QSVT, Circuit

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
