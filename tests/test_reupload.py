"""Windows that end before their length: re-uploads by hand, and triggers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.cases import classifier, image_batches, regression, run_recorded, tanh_network, vector
from torch_qsgd import QuantumSGD

CYCLE: dict[str, Any] = {
    "lr": 0.05,
    "momentum": 0.9,
    "density": 0.4,
    "window": 6,
    "classical_steps": 2,
}


def run(opt: QuantumSGD, model: Any, batches: Any) -> None:
    run_recorded(opt, model, batches, F.cross_entropy)


def after(steps: int) -> Any:
    """A trigger that fires once so many steps have been taken in a window."""
    return lambda opt: f"{steps} steps" if opt.window_step >= steps else None


# ---- By hand --------------------------------------------------------------------------------


def test_a_reupload_is_a_download_and_an_upload() -> None:
    batches = image_batches(9)
    first, second = classifier(), classifier()
    a = QuantumSGD(first.parameters(), **CYCLE)
    b = QuantumSGD(second.parameters(), **CYCLE)
    for opt, model in ((a, first), (b, second)):
        run(opt, model, batches[:3])
    record = a.reupload()
    b.download()
    b.upload()
    assert record == a.windows[-1] == b.windows[-1]
    assert record is not None
    assert (record.steps, record.reason) == (3, "requested")
    assert (a.phase, a.window_step) == ("window", 0)
    for opt, model in ((a, first), (b, second)):
        run(opt, model, batches[3:])
    assert torch.equal(vector(first.parameters()), vector(second.parameters()))


def test_a_reupload_has_a_new_anchor_and_prunes_again() -> None:
    model = classifier()
    opt = QuantumSGD(model.parameters(), **CYCLE)
    run(opt, model, image_batches(3))
    anchor, active = vector(model.parameters()), opt.active
    opt.reupload()
    assert not torch.equal(vector(model.parameters()), anchor)
    assert opt.active == active  # what is pruned is zero, and is pruned again
    opt.param_groups[0]["density"] = 0.2
    opt.reupload()
    assert opt.active < active
    assert all(not p.detach()[~mask].any() for p, mask in opt.masks.items())
    assert all(not opt.state[p]["jet_1"].any() for p in model.parameters())


@pytest.mark.parametrize("steps", [0, 7])
def test_outside_a_window_a_reupload_only_uploads(steps: int) -> None:
    model = classifier()
    opt = QuantumSGD(model.parameters(), **CYCLE)
    run(opt, model, image_batches(steps))
    assert opt.phase == ("classical" if steps else "upload")
    finished = len(opt.windows)
    assert opt.reupload() is None
    assert (opt.phase, opt.window_step, len(opt.windows)) == ("window", 0, finished)


def test_hooks_see_both_halves_of_a_reupload() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), lr=0.05, density=0.5, window=5)
    run_recorded(opt, model, regression(2))
    seen: list[str] = []
    opt.on_download(lambda o, record: seen.append(f"down after {record.steps}, {o.phase}"))
    opt.on_upload(lambda o: seen.append(f"up, {o.phase}"))
    opt.reupload()
    assert seen == ["down after 2, classical", "up, window"]


def test_a_reupload_that_lacks_its_batch_does_nothing() -> None:
    model = classifier()
    opt = QuantumSGD(
        model.parameters(), pruning="snip", model=model, loss_fn=F.cross_entropy, **CYCLE
    )
    batches = image_batches(3)
    for batch in batches[:2]:
        opt.step(*batch)
    before = vector(model.parameters())
    with pytest.raises(ValueError, match="needs a batch"):
        opt.reupload()
    assert (opt.phase, opt.window_step) == ("window", 2)
    assert torch.equal(vector(model.parameters()), before)
    record = opt.reupload(*batches[2])
    assert record is not None
    assert record.steps == 2


def test_a_reupload_inside_a_recording_is_told_to_leave_it() -> None:
    model = classifier()
    opt = QuantumSGD(model.parameters(), **CYCLE)
    with pytest.raises(RuntimeError, match="leave the block"), opt.recording():
        opt.reupload()


# ---- Triggers -------------------------------------------------------------------------------


def by_recording(opt: QuantumSGD, model: Any, x: Tensor, y: Tensor) -> None:
    run(opt, model, [(x, y)])


def by_closure(opt: QuantumSGD, model: Any, x: Tensor, y: Tensor) -> None:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    opt.step(closure)


def by_batch(opt: QuantumSGD, model: Any, x: Tensor, y: Tensor) -> None:
    opt.step(x, y)


@pytest.mark.parametrize("way", [by_recording, by_closure, by_batch])
def test_a_trigger_ends_windows_as_a_shorter_length_does(way: Any) -> None:
    weights = []
    for options in ({"trigger": after(3)}, {"window": 3}):
        model = classifier()
        opt = QuantumSGD(
            model.parameters(), model=model, loss_fn=F.cross_entropy, **{**CYCLE, **options}
        )
        for batch in image_batches(11):
            way(opt, model, *batch)
        weights.append(vector(model.parameters()))
        assert [w.steps for w in opt.windows] == [3, 3]
        reason = "3 steps" if "trigger" in options else "length"
        assert [w.reason for w in opt.windows] == [reason, reason]
    assert torch.equal(*weights)


def test_a_trigger_is_asked_after_every_step_that_leaves_the_window_open() -> None:
    model = tanh_network()
    asked: list[tuple[str, int]] = []

    def trigger(opt: QuantumSGD) -> None:
        asked.append((opt.phase, opt.window_step))

    opt = QuantumSGD(
        model.parameters(), lr=0.05, density=1, window=4, classical_steps=2, trigger=trigger
    )
    run_recorded(opt, model, regression(10))
    assert asked == [("window", t) for t in (1, 2, 3)] * 2  # the fourth step reaches the length
    assert [w.reason for w in opt.windows] == ["length"] * 2


def test_the_tolerance_goes_before_the_trigger() -> None:
    model = tanh_network()
    opt = QuantumSGD(
        model.parameters(), lr=0.05, density=1, window=9, tolerance=1e-9, trigger=after(2)
    )
    run_recorded(opt, model, regression(2))
    assert [w.reason for w in opt.windows] == ["tolerance"]


def test_an_empty_reason_is_none() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), lr=0.05, density=1, window=5, trigger=lambda _: "")
    run_recorded(opt, model, regression(4))
    assert (opt.windows, opt.window_step) == ([], 4)


def test_a_trigger_may_look_ahead_and_may_download_itself() -> None:
    model = tanh_network()
    predicted: list[Tensor] = []

    def trigger(opt: QuantumSGD) -> str | None:
        with opt.predicted_weights():
            predicted.append(vector(model.parameters()))
        if opt.window_step == 3:
            opt.download()
            return "too late"
        return None

    opt = QuantumSGD(model.parameters(), lr=0.05, density=1, window=9, trigger=trigger)
    run_recorded(opt, model, regression(3))
    assert [w.reason for w in opt.windows] == ["requested"]
    torch.testing.assert_close(vector(model.parameters()), predicted[-1], rtol=0, atol=1e-15)


@pytest.mark.parametrize("again", ["reupload", "discard and upload"])
def test_a_reason_ends_no_window_that_the_trigger_has_opened_itself(again: str) -> None:
    def trigger(opt: QuantumSGD) -> str | None:
        if opt.window_step < 3:
            return None
        if again == "reupload":
            opt.reupload()
        else:
            opt.discard()
            opt.upload()
        return "of the window before"

    model = tanh_network()
    opt = QuantumSGD(model.parameters(), lr=0.05, density=1, window=9, trigger=trigger)
    run_recorded(opt, model, regression(3))
    assert [w.reason for w in opt.windows] == (["requested"] if again == "reupload" else [])
    assert (opt.phase, opt.window_step) == ("window", 0)
    run_recorded(opt, model, regression(2))
    assert opt.window_step == 2


@pytest.mark.parametrize("way", [by_recording, by_batch])
def test_a_trigger_that_fails_does_not_lose_the_step(way: Any) -> None:
    def failing(opt: QuantumSGD) -> None:
        if opt.window_step == 2:
            raise ZeroDivisionError("in the trigger")

    batches = image_batches(6)
    weights = []
    for trigger in (failing, None):
        model = classifier()
        opt = QuantumSGD(
            model.parameters(), trigger=trigger, model=model, loss_fn=F.cross_entropy, **CYCLE
        )
        way(opt, model, *batches[0])
        if trigger is not None:
            with pytest.raises(ZeroDivisionError):
                way(opt, model, *batches[1])
            assert (opt.phase, opt.window_step) == ("window", 2)
        else:
            way(opt, model, *batches[1])
        for batch in batches[2:]:
            way(opt, model, *batch)
        weights.append(vector(model.parameters()))
        assert [w.steps for w in opt.windows] == [6]
    assert torch.equal(*weights)


def test_what_a_trigger_may_be_and_return() -> None:
    model = tanh_network()
    with pytest.raises(TypeError, match="trigger must be callable or None, got str"):
        QuantumSGD(model.parameters(), trigger="negative mass")  # type: ignore[arg-type]
    opt = QuantumSGD(model.parameters(), trigger=after)
    with pytest.raises(TypeError, match="trigger must be callable or None, got str"):
        opt.trigger = "negative mass"  # type: ignore[assignment]
    assert opt.trigger is after
    opt = QuantumSGD(model.parameters(), lr=0.05, density=1, window=5, trigger=lambda _: True)
    with pytest.raises(TypeError, match=r"a string, or None to go on; got bool"):
        run_recorded(opt, model, regression(1))
    assert (opt.phase, opt.window_step) == ("window", 1)


def test_a_trigger_that_can_be_attached_is() -> None:
    class Attached:
        optimizer: Any = None

        def attach(self, optimizer: QuantumSGD) -> None:
            self.optimizer = optimizer
            assert optimizer.param_groups[0]["window"] == 5  # it is whole by then

        def __call__(self, optimizer: QuantumSGD) -> str:
            return "attached" if optimizer is self.optimizer else ""

    model = tanh_network()
    opt = QuantumSGD(model.parameters(), lr=0.05, density=1, window=5, trigger=Attached())
    run_recorded(opt, model, regression(1))
    assert [w.reason for w in opt.windows] == ["attached"]


# ---- State ----------------------------------------------------------------------------------


def test_a_trigger_is_no_part_of_the_state_and_outlives_the_loading_of_one() -> None:
    batches = image_batches(10)
    model, other = classifier(), classifier(seed=1)
    opt = QuantumSGD(model.parameters(), trigger=after(4), **CYCLE)
    run(opt, model, batches[:2])
    saved = copy.deepcopy(opt.state_dict())
    other.load_state_dict(model.state_dict())
    resumed = QuantumSGD(other.parameters(), trigger=after(4), **CYCLE)
    resumed.load_state_dict(saved)
    run(opt, model, batches[2:])
    run(resumed, other, batches[2:])
    assert torch.equal(vector(model.parameters()), vector(other.parameters()))
    assert [w.reason for w in resumed.windows] == ["4 steps"] * 2
    assert resumed.windows == opt.windows


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_and_pickles_have_no_trigger_as_they_have_no_hooks(copier: Any) -> None:
    model = classifier()
    opt = QuantumSGD(model.parameters(), trigger=after(3), **CYCLE)
    run(opt, model, image_batches(2))
    twin_model, twin = copier((model, opt))
    assert twin.trigger is None
    run(twin, twin_model, image_batches(4)[2:])
    assert (twin.windows, twin.window_step) == ([], 4)
    twin.trigger = after(5)
    run(twin, twin_model, image_batches(5)[4:])
    assert [w.reason for w in twin.windows] == ["5 steps"]
    assert opt.trigger is not None


def test_repr_names_the_trigger() -> None:
    opt = QuantumSGD(tanh_network().parameters(), trigger=after)
    assert f"trigger: {after!r}" in repr(opt)
