"""The monitor: when it fires, what it leaves alone, what it costs and how it fails."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import classifier, image_batches, run_recorded, vector
from torch_qsgd import QuantumSGD
from torch_qsgd.hessian.monitor import DissipativityMonitor

# What share of the time so small a problem's spectra take depends on the machine.
pytestmark = pytest.mark.filterwarnings("ignore:.*of the time:RuntimeWarning")

OFF: dict[str, Any] = {"adapt_window": False, "proxy": None, "jet_ratio": None}
SLOPE: dict[str, Any] = {"lr": 0.05, "window": 100, "order": 2}
CYCLE: dict[str, Any] = {"lr": 0.05, "density": 0.5, "window": 8, "classical_steps": 2}


class Point(nn.Module):
    """A model that is its own parameters, so that the loss is any function of them."""

    def __init__(self, start: list[float]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, _: Tensor) -> Tensor:
        return self.theta


NOTHING = (torch.zeros(1), torch.zeros(1))


def quadratic(*curvatures: float) -> Any:
    diagonal = torch.tensor(curvatures, dtype=torch.float64)
    return lambda theta, _: (diagonal * theta**2).sum() / 2


def monitored(loss_fn: Any, start: list[float], cycle: Any, **options: Any) -> Any:
    model = Point(start)
    monitor = DissipativityMonitor(None, model, loss_fn, NOTHING, **options)
    opt = QuantumSGD(model.parameters(), density=1, trigger=monitor, **cycle)
    return model, opt, monitor


def run(opt: QuantumSGD, model: nn.Module, loss_fn: Any, steps: int) -> None:
    run_recorded(opt, model, [NOTHING] * steps, loss_fn)


# ---- When it fires --------------------------------------------------------------------------


def turning(theta: Tensor, _: Tensor) -> Tensor:
    """Convex where x > 0.02 or so, a saddle beyond: down a slope that steepens again."""
    x, y = theta
    return 0.4 * x + x**3 / 3 + y**2 / 2 + 0.2 * x * y + 0.1 * x * y**2


@pytest.mark.parametrize("start", [[0.5, 0.3], [0.35, -0.2], [0.21, 0.0]])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_it_fires_at_the_turn_from_convex_to_saddle_and_not_before(
    start: list[float], momentum: float
) -> None:
    cycle = {"lr": 0.05, "momentum": momentum, "window": 200, "order": 5}
    true = Point(start)
    sgd = torch.optim.SGD(true.parameters(), lr=0.05, momentum=momentum)
    least = []
    while not least or least[-1] > 0:
        sgd.zero_grad()
        turning(true(NOTHING[0]), NOTHING[1]).backward()
        sgd.step()
        dense = torch.autograd.functional.hessian(lambda t: turning(t, NOTHING[1]), true.theta.data)
        least.append(float(torch.linalg.eigvalsh(dense)[0]))
    turn = len(least)
    assert turn > 5
    # The turn lies well inside a step, so that the series' small error does not move it.
    assert min(abs(least[-1]), abs(least[-2])) > 1e-3 * abs(least[-1] - least[-2])
    model, opt, monitor = monitored(turning, start, cycle, every=1, negative_mass=0.0)
    run(opt, model, turning, turn - 1)
    assert opt.windows == []
    assert all(record.negative_mass == 0 for record in monitor.history.records)
    run(opt, model, turning, 1)
    (window,) = opt.windows
    assert (window.steps, window.reason, opt.phase) == (turn, "negative mass", "classical")
    assert monitor.history.records[-1].negative_mass == 0.5
    assert monitor.history.windows[0].triggered
    torch.testing.assert_close(model.theta.data, true.theta.data, rtol=0, atol=1e-4)


def closed_form(curvatures: list[float], lr: float) -> list[float]:
    """P(t) of a diagonal Hessian, t = 0 … 199."""
    return [float(np.mean([abs(1 - lr * c) ** t for c in curvatures])) for t in range(200)]


@pytest.mark.parametrize("curvatures", [[2.0, 1.0, -0.3], [30.0, 1.0, 0.9, 0.8]])
def test_a_window_ends_where_the_error_proxy_is_least(curvatures: list[float]) -> None:
    loss_fn, start = quadratic(*curvatures), [1.0] * len(curvatures)
    best = int(np.argmin(closed_form(curvatures, 0.1)))
    cycle = {"lr": 0.1, "window": 100, "order": 1, "classical_steps": 0}
    model, opt, monitor = monitored(loss_fn, start, cycle)
    run(opt, model, loss_fn, 3 * max(1, best))
    assert [w.steps for w in opt.windows] == [max(1, best)] * 3
    assert {w.reason for w in opt.windows} == {"best window"}
    assert [r.best_window for r in monitor.history.records] == [best] * 3
    assert opt.param_groups[0]["window"] == 100


def test_windows_are_never_longer_than_the_optimizers_own() -> None:
    loss_fn = quadratic(2.0, -1e-3)
    model, opt, _ = monitored(loss_fn, [1.0, 1.0], {"lr": 0.1, "window": 4})
    run(opt, model, loss_fn, 4)
    assert [(w.steps, w.reason) for w in opt.windows] == [(4, "length")]


def test_an_error_proxy_over_its_threshold_ends_a_window() -> None:
    curvatures = [1.0, -0.5]
    limit = 1.5
    first = next(t for t, p in enumerate(closed_form(curvatures, 0.1)) if p > limit)
    loss_fn = quadratic(*curvatures)
    options = {"adapt_window": False, "proxy": limit}
    model, opt, _ = monitored(loss_fn, [1.0, 1.0], {"lr": 0.1, "window": 100}, **options)
    run(opt, model, loss_fn, first)
    assert [(w.steps, w.reason) for w in opt.windows] == [(first, "error proxy")]


def test_the_jet_ratio_ends_a_window_but_not_at_order_one() -> None:
    free, _, _ = monitored(turning, [0.5, 0.3], SLOPE, **OFF)
    opt = QuantumSGD(free.parameters(), density=1, **SLOPE)
    ratios = []
    for _ in range(20):
        run(opt, free, turning, 1)
        ratios.append(opt.jet_norms[-1] / opt.jet_norms[0])
    limit = (ratios[9] + ratios[10]) / 2
    for order, expected in ((2, [(11, "jet ratio")]), (1, [])):
        model, opt, _ = monitored(
            turning, [0.5, 0.3], {**SLOPE, "order": order}, **{**OFF, "jet_ratio": limit}
        )
        run(opt, model, turning, 12)
        assert [(w.steps, w.reason) for w in opt.windows] == expected


def test_rules_that_are_off_do_not_fire() -> None:
    loss_fn = quadratic(1.0, -2.0, -3.0)
    model, opt, monitor = monitored(
        loss_fn, [1.0] * 3, {"lr": 0.1, "window": 9}, every=2, at=("upload", "download"), **OFF
    )
    run(opt, model, loss_fn, 9)
    assert [(w.steps, w.reason) for w in opt.windows] == [(9, "length")]
    taken = [(r.taken, r.step, r.window_step) for r in monitor.history.records]
    assert taken == [
        ("upload", 0, 0), *(("window", t, t) for t in (2, 4, 6, 8)), ("download", 9, 0)
    ]  # fmt: skip
    assert not monitor.history.windows[0].triggered


def test_a_lower_learning_rate_is_seen_in_mid_window() -> None:
    curvatures = [1.0, -0.3]
    loss_fn = quadratic(*curvatures)
    model, opt, monitor = monitored(loss_fn, [1.0, 1.0], {"lr": 0.4, "window": 100})
    run(opt, model, loss_fn, 1)
    opt.param_groups[0]["lr"] = 0.1
    run(opt, model, loss_fn, 30)
    best = [int(np.argmin(closed_form(curvatures, lr))) for lr in (0.4, 0.1)]
    assert best[0] < best[1]
    assert monitor.history.records[0].best_window == best[0]
    assert opt.windows[0].steps == best[1]


# ---- What it leaves alone -------------------------------------------------------------------


def with_dropout() -> nn.Module:
    return nn.Sequential(*classifier("batch")[:-1], nn.Dropout(0.3), classifier()[-1])


def test_a_monitor_that_never_fires_leaves_no_trace_in_training() -> None:
    results = []
    for watched in (False, True):
        model = with_dropout()
        opt = QuantumSGD(model.parameters(), momentum=0.5, weight_decay=0.01, **CYCLE)
        if watched:
            monitor = DissipativityMonitor(
                opt, model, F.cross_entropy, image_batches(2), every=3, at=("upload", "download"),
                steps=8, probes=2, **OFF,
            )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            run_recorded(opt, model, image_batches(14), F.cross_entropy)
            state = torch.get_rng_state()
        gradients = vector([p.grad for p in model.parameters()])
        flags = [module.training for module in model.modules()]
        results.append((model.state_dict(), gradients, state, flags, opt.windows))
    assert len(monitor.history.records) == 6
    plain, seen = results
    assert all(torch.equal(seen[0][name], value) for name, value in plain[0].items())
    assert torch.equal(plain[1], seen[1])
    assert torch.equal(plain[2], seen[2])
    assert plain[3:] == seen[3:]


def test_spectra_are_of_the_active_coordinates() -> None:
    model = classifier("group")
    opt = QuantumSGD(model.parameters(), **CYCLE)
    monitor = DissipativityMonitor(opt, model, F.cross_entropy, image_batches(1)[0], steps=4)
    opt.upload()
    spectrum = monitor.history.records[0].spectrum
    assert spectrum is not None
    assert spectrum.dimension == opt.active < sum(p.numel() for p in model.parameters())


def test_a_run_stopped_in_mid_window_goes_on_to_the_same_bits() -> None:
    batches = image_batches(14)

    options = {**CYCLE, "window": 60, "weight_decay": 0.02}

    def build(seed: int) -> tuple[nn.Module, QuantumSGD]:
        model = classifier("group", seed=seed)
        monitor = DissipativityMonitor(None, model, F.cross_entropy, batches[0])
        return model, QuantumSGD(model.parameters(), trigger=monitor, **options)

    model, opt = build(0)
    run_recorded(opt, model, batches[:2], F.cross_entropy)
    assert opt.window_step == 2
    other, resumed = build(1)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for m, o in ((model, opt), (other, resumed)):
        run_recorded(o, m, batches[2:], F.cross_entropy)
    assert resumed.windows == opt.windows
    assert opt.windows[0].reason == "best window"
    assert torch.equal(vector(model.parameters()), vector(other.parameters()))


def test_the_history_knows_windows_it_saw_only_the_end_of() -> None:
    loss_fn = quadratic(1.0, 0.5)
    model = Point([1.0, 1.0])
    opt = QuantumSGD(model.parameters(), lr=0.1, density=1, window=4, classical_steps=1)
    run(opt, model, loss_fn, 2)
    with DissipativityMonitor(opt, model, loss_fn, NOTHING, at=(), every=3) as monitor:
        opt.download()
        run(opt, model, loss_fn, 3)
        assert monitor.history.windows[-1].stop is None
        run(opt, model, loss_fn, 3)
    spans = [(s.start, s.stop, s.reason, s.triggered) for s in monitor.history.windows]
    assert spans == [(0, 2, "requested", False), (3, 7, "length", False)]
    assert [(r.step, r.window_step) for r in monitor.history.records] == [(6, 3)]


# ---- Attaching ------------------------------------------------------------------------------


def test_it_is_attached_by_either_side_and_detached() -> None:
    loss_fn = quadratic(1.0, -0.5)
    best = int(np.argmin(closed_form([1.0, -0.5], 0.1)))
    model = Point([1.0, 1.0])
    opt = QuantumSGD(model.parameters(), lr=0.1, density=1, window=20, classical_steps=0)
    with DissipativityMonitor(opt, model, loss_fn, NOTHING) as monitor:
        assert opt.trigger is monitor
        with pytest.raises(RuntimeError, match="has a trigger"):
            DissipativityMonitor(opt, model, loss_fn, NOTHING)
        with pytest.raises(RuntimeError, match="watches another optimizer"):
            QuantumSGD(model.parameters(), density=1, trigger=monitor)
        run(opt, model, loss_fn, best)
    assert opt.trigger is None
    run(opt, model, loss_fn, 20)
    assert [w.reason for w in opt.windows] == ["best window", "length"]
    assert len(monitor.history.records) == 1
    elapsed = monitor.history.elapsed
    assert monitor.share == monitor.seconds / elapsed
    assert monitor.history.elapsed == elapsed


def test_what_it_cost_is_told() -> None:
    model = classifier("group")
    opt = QuantumSGD(model.parameters(), **CYCLE)
    data = image_batches(2)
    monitor = DissipativityMonitor(opt, model, F.cross_entropy, data, steps=6, probes=2, **OFF)
    run_recorded(opt, model, image_batches(12), F.cross_entropy)
    assert monitor.budget == 12
    assert monitor.products == sum(r.products for r in monitor.history.records)
    assert 0 < monitor.products <= monitor.budget * len(monitor.history.records)
    assert 0 < monitor.share < 1
    assert "2 spectra, 24 products" in repr(monitor)
    assert "% of the time; ended 0 of 2 windows" in repr(monitor)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"at": ("uploads",)}, "upload, download"),
        ({"at": "upload"}, "must hold names"),
        ({"at": ("download",)}, "nothing would judge"),
        ({"every": 0}, "every must be an integer of at least 1"),
        ({"negative_mass": 1.0}, "negative_mass must be a number above 0 and below 1, or None"),
        ({"proxy": 0.9}, "proxy must be a number above 1, or None"),
        ({"jet_ratio": 0}, "jet_ratio must be a number above 0, or None"),
        ({"steps": 0}, "steps"),
        ({"adapt_window": 1}, "adapt_window must be True or False"),
        ({"min_window": 0}, "min_window must be an integer of at least 1"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DissipativityMonitor(None, Point([1.0]), quadratic(1.0), NOTHING, **options)


# ---- Failures -------------------------------------------------------------------------------


class Failing:
    """One batch, times a factor."""

    factor = 1.0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        ((x, y),) = image_batches(1)
        yield self.factor * x, y


def test_a_failed_spectrum_is_told_and_kept_and_training_goes_on() -> None:
    batches = image_batches(10)
    model, plain = classifier("group"), classifier("group")
    opt = QuantumSGD(model.parameters(), **{**CYCLE, "window": 3})
    other = QuantumSGD(plain.parameters(), **{**CYCLE, "window": 3})
    data = Failing()
    monitor = DissipativityMonitor(
        opt, model, F.cross_entropy, data, steps=5, negative_mass=0.0, **OFF
    )
    opt.upload()
    monitor.rules.negative_mass = None
    run_recorded(opt, model, batches[:5], F.cross_entropy)
    data.factor, monitor.rules.negative_mass = math.nan, 0.0
    with pytest.warns(RuntimeWarning, match="spectrum at step 5 failed.*DivergenceError"):
        run_recorded(opt, model, batches[5:], F.cross_entropy)
    first, second = monitor.history.records
    assert first.negative_mass > 0  # the last good spectrum would end any window
    assert second.spectrum is None
    assert "DivergenceError" in second.error
    assert [w.reason for w in opt.windows] == ["length", "length"]
    run_recorded(other, plain, batches, F.cross_entropy)
    assert torch.equal(vector(model.parameters()), vector(plain.parameters()))


def test_a_first_spectrum_that_cannot_be_taken_raises() -> None:
    stranger = classifier("group")
    model = classifier("group")
    opt = QuantumSGD(model.parameters(), **CYCLE)
    DissipativityMonitor(opt, stranger, F.cross_entropy, image_batches(1)[0])
    with pytest.raises(ValueError, match="not the model's"):
        run_recorded(opt, model, image_batches(1), F.cross_entropy)
