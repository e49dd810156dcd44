"""Upload and download as measured against a real download, and against formulas by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import classifier, image_batches, randn, seeded, vector
from torch_qsgd import QuantumSGD
from torch_qsgd.auditing.transfer import PRECISIONS, measure_transfer
from torch_qsgd.readout import expected_copies, guaranteed_copies, preparation_cost
from torch_qsgd.representations import Jet
from torch_qsgd.training import evaluate

Pair = tuple[nn.Module, QuantumSGD]
HELD_OUT = [(randn(32, 6, seed=100 + i), randn(32, 2, seed=200 + i)) for i in range(2)]
CPU = torch.device("cpu")


def network() -> nn.Module:
    """218 weights."""
    return seeded(lambda: nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2))).double()


def window(steps: int = 5, loss_fn: Any = F.mse_loss, **options: Any) -> Pair:
    """A window of which so many steps are taken, and that stays open."""
    model = network()
    given = {"lr": 0.1, "density": 0.5, "window": steps + 1, "order": 2, **options}
    optimizer = QuantumSGD(model.parameters(), model=model, loss_fn=loss_fn, **given)
    for i in range(steps):
        optimizer.step(randn(16, 6, seed=2 * i), randn(16, 2, seed=2 * i + 1))
    return model, optimizer


def measured(pair: Pair, **options: Any) -> Any:
    return measure_transfer(*pair, F.mse_loss, HELD_OUT, **options)


def downloaded(pair: Pair) -> Pair:
    """A copy of both after a real download."""
    model, optimizer = copy.deepcopy(pair)
    optimizer.download()
    return model, optimizer


# ---- Against a download --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"order": 1},
        {"order": 3, "density": 1.0},
        {"momentum": 0.9, "weight_decay": 0.01},
        {"representation": Jet(idle=4, rescaling=0.7)},
    ],
)
def test_losses_and_probabilities_are_those_of_a_real_download(options: dict[str, Any]):
    pair = window(**options)
    found = measured(pair, repeats=1)
    model, optimizer = downloaded(pair)
    record = optimizer.windows[-1]
    assert found.loss_before == evaluate(pair[0], F.mse_loss, HELD_OUT, CPU)[0]
    assert found.loss_after == evaluate(model, F.mse_loss, HELD_OUT, CPU)[0]
    assert found.loss_after != found.loss_before
    assert found.final == record.final_probability
    assert found.level_one == record.level_one_probability
    assert found.probability == found.final * found.level_one
    assert found.active == record.active
    if not options.get("momentum"):
        default = options.get("representation", Jet()).rescaling or record.displacement
        assert found.rescaling == pytest.approx(default)


def test_the_rescaling_may_be_given():
    pair, gamma = window(), 0.05
    found = measured(pair, rescaling=gamma, repeats=1)
    model = copy.deepcopy(pair)
    model[1].representation = Jet(rescaling=gamma)
    model[1].download()
    assert found.rescaling == gamma
    assert found.final == model[1].windows[-1].final_probability
    assert found.level_one == model[1].windows[-1].level_one_probability


def test_order_one_probabilities_by_hand():
    pair = window(steps=4, order=1)
    lengths = [0.0]
    model, optimizer = window(steps=0, order=1, window=9)
    anchor = None
    for i in range(4):
        optimizer.step(randn(16, 6, seed=2 * i), randn(16, 2, seed=2 * i + 1))
        anchor = vector(model.parameters()) if anchor is None else anchor
        with optimizer.predicted_weights():
            lengths.append(float((vector(model.parameters()) - anchor).square().sum()))
    gamma = 0.3
    squares = [1 + length / gamma**2 for length in lengths]  # of y(t) = (1, u(t)/γ)
    found = measured(pair, rescaling=gamma, repeats=1)
    assert found.final == pytest.approx(squares[-1] / sum(squares))
    assert found.level_one == pytest.approx(1 - 1 / squares[-1])


def test_gram_matrices_may_be_handed_in():
    pair = window()
    kept = np.array(pair[1]._cycle["grams"])
    assert measured(pair, grams=kept, repeats=1) == measured(pair, repeats=1)
    doubled = measured(pair, grams=4 * kept, repeats=1)
    assert doubled.rescaling == pytest.approx(2 * measured(pair, repeats=1).rescaling)


# ---- Readings ------------------------------------------------------------------------------------


def test_readings_make_about_the_error_asked_for_and_copies_are_those_of_the_readout():
    precisions = (0.2, 0.05)
    found = measured(window(), precisions=precisions, repeats=8)
    assert [trial.precision for trial in found.trials] == list(precisions)
    for trial in found.trials:
        assert trial.copies == expected_copies(found.active, trial.precision)
        assert trial.guaranteed == guaranteed_copies(found.active, trial.precision)
        assert len(trial.errors) == len(trial.losses) == 8
        assert len(set(trial.errors)) == 8
        mean = sum(trial.errors) / 8
        # Less than asked for, as many coordinates are far below the precision.
        assert 0.4 * trial.precision < mean < 1.2 * trial.precision


def test_a_finer_reading_gives_a_loss_nearer_to_that_of_the_exact_one():
    found = measured(window(), precisions=(0.5, 0.005), repeats=5)
    coarse, fine = (
        sum(abs(loss - found.loss_after) for loss in trial.losses) for trial in found.trials
    )
    assert 0 < fine < coarse / 5
    moved = abs(found.loss_after - found.loss_before)
    assert all(abs(loss - found.loss_after) < 0.1 * moved for loss in found.trials[1].losses)


def test_pruned_weights_stay_zero_in_every_reading():
    model, optimizer = window(density=0.3, pruning="magnitude-layerwise")
    seen = []

    def watching(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(all(not p[~mask].any() for p, mask in optimizer.masks.items()))
        return F.mse_loss(outputs, targets)

    measure_transfer(model, optimizer, watching, HELD_OUT, repeats=2)
    assert len(seen) == (2 + 2 * len(PRECISIONS)) * len(HELD_OUT)
    assert all(seen)


def test_the_seed_decides_the_noise():
    pair = window()
    runs = [
        measured(pair, generator=generator)
        for generator in (None, torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    ]
    assert runs[0] == runs[1]
    assert runs[0].trials != runs[2].trials
    assert runs[0].loss_after == runs[2].loss_after


# ---- Gates ---------------------------------------------------------------------------------------


def test_gates_are_those_of_preparing_the_active_weights_among_all():
    pair = window(density=0.5)
    found = measured(pair, repeats=1)
    total, active = sum(p.numel() for p in pair[0].parameters()), pair[1].active
    assert active < total == 218
    gates = preparation_cost(active, 8)  # 218 weights in 2^8
    assert found.qubits == 8
    assert (found.cx, found.t_gates, found.rotations) == (gates.cx, gates.t_gates, gates.rotations)
    assert found.qram_calls == math.ceil(math.log2(active))


def test_a_single_weight_is_loaded_without_a_memory():
    model = nn.Linear(1, 1, bias=False)
    options = {"density": 1.0, "window": 2, "model": model, "loss_fn": F.mse_loss}
    optimizer = QuantumSGD(model.parameters(), lr=0.1, **options)
    batch = torch.ones(4, 1), torch.zeros(4, 1)
    optimizer.step(*batch)
    found = measure_transfer(model, optimizer, F.mse_loss, [batch], repeats=1)
    assert (found.active, found.qubits, found.qram_calls) == (1, 1, 0)
    assert found.trials[0].losses == [pytest.approx(found.loss_after)]


# ---- What is left behind -------------------------------------------------------------------------


def state_of(pair: Pair) -> dict[str, Any]:
    model, optimizer = copy.deepcopy(pair)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "modes": [m.training for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


def failing_after(calls: int, error: BaseException) -> Callable[..., Tensor]:
    left = [calls]

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise error
        return F.mse_loss(outputs, targets)

    return loss_fn


def test_model_optimizer_and_random_state_are_left_as_they_were():
    pair = window()
    before = state_of(pair)
    measured(pair)
    assert_equal(state_of(pair), before)
    pair[1].step(randn(16, 6, seed=50), randn(16, 2, seed=51))  # the window goes on, to its end
    assert pair[1].windows[0].steps == 6


@pytest.mark.parametrize("calls", [0, 3, 7])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no loss")])
def test_weights_are_put_back_bit_for_bit_whatever_happens(calls: int, error: BaseException):
    pair = window()
    pair[0][0].weight.data[0, 0] = 1.0 + 2.0**-52  # which a sum and a difference would lose
    before = state_of(pair)
    with pytest.raises(type(error)):
        measure_transfer(*pair, failing_after(calls, error), HELD_OUT)
    assert_equal(state_of(pair), before)


def test_normalisation_and_dropout_are_put_back_and_inputs_may_be_images():
    model = nn.Sequential(*classifier("batch")[:-1], nn.Dropout(0.5), nn.Linear(36, 3).double())
    options = {"density": 0.3, "window": 3, "model": model, "loss_fn": F.cross_entropy}
    optimizer = QuantumSGD(model.parameters(), lr=0.05, **options)
    batches = image_batches(4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for batch in batches[:2]:
            optimizer.step(*batch)
    pair = model, optimizer
    before = state_of(pair)
    found = measure_transfer(model, optimizer, F.cross_entropy, batches[2:], repeats=1)
    assert_equal(state_of(pair), before)
    assert found.loss_after == evaluate(downloaded(pair)[0], F.cross_entropy, batches[2:], CPU)[0]


def test_ticks_count_the_evaluations():
    ticks = []
    measured(window(), repeats=2, tick=lambda *told: ticks.append(told))
    assert ticks == [(i, 8) for i in range(1, 9)]


def test_held_out_batches_may_be_a_generator():
    pair = window()
    once = measure_transfer(*pair, F.mse_loss, (batch for batch in HELD_OUT), repeats=1)
    assert once == measured(pair, repeats=1)


# ---- Nothing to read, and nothing to do ----------------------------------------------------------


def test_a_window_that_moves_nothing_has_nothing_to_read():
    found = measured(window(lr=0.0))
    assert found.loss_after == found.loss_before
    assert found.trials == []
    assert all(math.isnan(x) for x in (found.final, found.level_one, found.rescaling))
    assert math.isnan(found.probability)
    assert found.cx > 0
    assert found.qram_calls > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repeats": 0}, "repeats must be an integer of at least 1"),
        ({"precisions": (0.1, 1.5)}, "precision must be a number above 0 and below 1"),
        ({"rescaling": -1.0}, "rescaling must be a number above 0"),
        ({"grams": np.zeros((3, 2, 2))}, r"each of 0 … 5 steps, got an array of shape \(3, 2, 2\)"),
        ({"grams": np.zeros((6, 2, 1))}, "square"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_measured(options: dict[str, Any], words: str):
    def never(outputs: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError

    with pytest.raises(ValueError, match=words):
        measure_transfer(*window(), never, HELD_OUT, **options)


def test_what_is_no_open_window_of_this_model_is_refused():
    model, optimizer = window()
    with pytest.raises(ValueError, match="held_out holds no batch"):
        measure_transfer(model, optimizer, F.mse_loss, [])
    with pytest.raises(ValueError, match="not the model's"):
        measured((network(), optimizer))
    fresh = window(steps=0)
    fresh[1].upload()
    with pytest.raises(ValueError, match="phase 'window' with 0 window steps"):
        measured(fresh)
    with pytest.raises(ValueError, match="phase 'classical'"):
        measured(downloaded(window()))
    with pytest.raises(ValueError, match="'krylov': construct it with representation='jet'"):
        measured(window(representation="krylov", order=1))
    with pytest.raises(TypeError, match=r"must be a torch\.Generator"):
        measured(window(), generator=3)
