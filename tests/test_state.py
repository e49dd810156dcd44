"""The contract of a PyTorch optimizer: state, loading, copies, groups, bad input, divergence."""

from __future__ import annotations

import copy
import io
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from tests.cases import classifier, image_batches, regression, run_recorded, tanh_network, vector
from torch_qsgd import DivergenceError, GraphError, QuantumSGD

CYCLE: dict[str, Any] = {
    "lr": 0.05,
    "momentum": 0.9,
    "density": 0.4,
    "window": 5,
    "classical_steps": 2,
    "order": 3,
}


def run(opt: QuantumSGD, model: nn.Module, batches: Any) -> None:
    run_recorded(opt, model, batches, F.cross_entropy)


def through_file(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("stop", range(9))
@pytest.mark.parametrize("pruning", ["magnitude", "random"])
def test_a_stopped_run_continues_to_the_same_bits(stop: int, pruning: str) -> None:
    batches = image_batches(16)
    model = classifier()
    opt = QuantumSGD(model.parameters(), pruning=pruning, **CYCLE)
    run(opt, model, batches[:stop])
    saved = through_file({"model": model.state_dict(), "optimizer": opt.state_dict()})
    run(opt, model, batches[stop:])
    fresh = classifier(seed=1)
    resumed = QuantumSGD(fresh.parameters(), **{**CYCLE, "density": 0.9, "lr": 7.0})
    fresh.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    run(resumed, fresh, batches[stop:])
    assert torch.equal(vector(fresh.parameters()), vector(model.parameters()))
    assert resumed.windows == opt.windows
    assert (resumed.phase, resumed.window_step) == (opt.phase, opt.window_step)


def test_a_run_continues_to_the_same_bits_in_a_fresh_process(tmp_path: Path) -> None:
    batches = image_batches(10)
    model = classifier()
    opt = QuantumSGD(model.parameters(), **CYCLE)
    run(opt, model, batches[:3])
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, tmp_path / "state.pt")
    script = """
import sys, torch
from tests.test_state import CYCLE, classifier, image_batches, run
from torch_qsgd import QuantumSGD
saved = torch.load(sys.argv[1], weights_only=True)
model = classifier(seed=5)
opt = QuantumSGD(model.parameters(), **CYCLE)
model.load_state_dict(saved["model"])
opt.load_state_dict(saved["opt"])
run(opt, model, image_batches(10)[3:])
torch.save(model.state_dict(), sys.argv[2])
"""
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "state.pt"), str(tmp_path / "end.pt")],
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    run(opt, model, batches[3:])
    for name, value in torch.load(tmp_path / "end.pt", weights_only=True).items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_loading_keeps_dtypes() -> None:
    model = classifier("group").bfloat16()
    opt = QuantumSGD(model.parameters(), **CYCLE)
    run(opt, model, [(x.bfloat16(), y) for x, y in image_batches(3)])
    other = classifier("group").bfloat16()
    loaded = QuantumSGD(other.parameters(), **CYCLE)
    loaded.load_state_dict(through_file(opt.state_dict()))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert opt.state[p].keys() == loaded.state[q].keys()
        for key, value in opt.state[p].items():
            assert loaded.state[q][key].dtype == value.dtype, key
            assert torch.equal(loaded.state[q][key], value), key
    assert loaded.state[q]["jet_1"].dtype == torch.float32
    assert all(mask.dtype == torch.bool for mask in loaded.masks.values())


def test_a_state_is_not_shared_with_the_dictionary_it_came_from() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), lr=0.05, density=1, window=2)
    saved = copy.deepcopy(opt.state_dict())
    opt.load_state_dict(saved)
    run_recorded(opt, model, regression(3))
    assert saved["param_groups"][0]["cycle"]["windows"] == []


def test_where_the_cycle_stands_does_not_move_in_a_state_taken_before() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), lr=0.05, density=1, window=2)
    run_recorded(opt, model, regression(1))
    taken = opt.state_dict()
    run_recorded(opt, model, regression(2))
    assert taken["param_groups"][0]["cycle"]["window_step"] == 1
    assert taken["param_groups"][0]["cycle"]["windows"] == []


def test_the_state_of_plain_sgd_loads() -> None:
    model = tanh_network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    run_plain = regression(2)
    for x, y in run_plain:
        sgd.zero_grad()
        F.mse_loss(model(x), y).backward()
        sgd.step()
    opt = QuantumSGD(model.parameters(), density=1, window=3)
    opt.load_state_dict(sgd.state_dict())
    assert opt.param_groups[0]["lr"] == 0.03
    assert opt.param_groups[0]["window"] == 3
    run_recorded(opt, model, regression(3))
    assert len(opt.windows) == 1


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_and_pickles_in_mid_window_go_on_alike(copier: Any) -> None:
    batches = image_batches(12)
    model = classifier()
    opt = QuantumSGD(
        model.parameters(),
        pruning="random",
        model=model,
        loss_fn=F.cross_entropy,
        generator=torch.Generator().manual_seed(3),
        **CYCLE,
    )
    for batch in batches[:3]:
        opt.step(*batch)
    twin_model, twin = copier((model, opt))
    for batch in batches[3:]:
        opt.step(*batch)
        twin.step(*batch)
    assert torch.equal(vector(twin_model.parameters()), vector(model.parameters()))
    assert twin.windows == opt.windows
    assert twin.solver.name == "exact"


def test_every_participating_parameter_has_state_with_string_keys() -> None:
    model = classifier()
    opt = QuantumSGD(model.parameters(), **CYCLE)
    run(opt, model, image_batches(2))
    assert all(isinstance(key, Tensor) for key in opt.state)
    for p in model.parameters():
        assert {"jet_1", "jet_2", "jet_3", "velocity_1", "momentum_buffer"} <= opt.state[p].keys()
    for name in opt.defaults:
        assert all(name in group for group in opt.param_groups)


def test_distributed_checkpoints_allocate_without_moving_a_weight() -> None:
    batches = image_batches(9)
    model = classifier()
    opt = QuantumSGD(model.parameters(), **CYCLE)
    run(opt, model, batches[:3])
    saved = through_file(get_optimizer_state_dict(model, opt))
    fresh = classifier(seed=1)
    fresh.load_state_dict(model.state_dict())
    before = vector(fresh.parameters())
    other = QuantumSGD(fresh.parameters(), **CYCLE)
    template = get_optimizer_state_dict(fresh, other)
    assert torch.equal(vector(fresh.parameters()), before)
    assert (other.phase, other.windows) == ("upload", [])
    for name, state in saved["state"].items():
        assert template["state"][name].keys() == state.keys(), name
    set_optimizer_state_dict(fresh, other, saved)
    run(opt, model, batches[3:])
    run(other, fresh, batches[3:])
    assert torch.equal(vector(fresh.parameters()), vector(model.parameters()))


def test_steps_without_gradients_do_nothing() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), density=0.5)
    before = vector(model.parameters())
    assert opt.step() is None
    assert opt.step(closure=None) is None
    assert torch.equal(vector(model.parameters()), before)
    assert opt.phase == "upload"


def test_step_hooks_fire_once() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), density=1, window=2, classical_steps=1)
    seen: list[str] = []
    opt.register_step_pre_hook(lambda *_: seen.append("pre"))
    opt.register_step_post_hook(lambda *_: seen.append("post"))
    run_recorded(opt, model, regression(3))
    assert seen == ["pre", "post"] * 3


def test_parameters_change_in_place() -> None:
    model = classifier()
    opt = QuantumSGD(model.parameters(), **CYCLE)
    pointers = [p.data_ptr() for p in model.parameters()]
    run(opt, model, image_batches(9))
    assert pointers == [p.data_ptr() for p in model.parameters()]


def test_the_gradients_are_left_as_sgd_would_find_them() -> None:
    model = classifier("group")
    opt = QuantumSGD(model.parameters(), **CYCLE)
    batches = image_batches(2)
    run(opt, model, batches)
    x, y = batches[1]
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-12)


def test_no_global_random_state_is_touched() -> None:
    model = classifier()
    before = torch.get_rng_state()
    opt = QuantumSGD(model.parameters(), pruning="random", **CYCLE)
    run(opt, model, image_batches(9))
    assert torch.equal(torch.get_rng_state(), before)


def test_repr_shows_the_options_and_not_the_history() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), density=1, window=2)
    run_recorded(opt, model, regression(2))
    assert "window: 2" in repr(opt)
    assert "jet_norms" not in repr(opt)


def test_schedulers_read_and_write_the_groups() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), lr=0.1, momentum=0.9, density=1, window=4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=0.05, total_steps=8)
    for batch in regression(7):
        run_recorded(opt, model, [batch])
        schedule.step()
    assert len(opt.windows) == 1
    assert torch.isfinite(vector(model.parameters())).all()


# ---- Bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "error", "says"),
    [
        ([], ValueError, "empty"),
        ([{"params": []}], ValueError, "at least one parameter"),
        ([torch.zeros(2, dtype=torch.complex64)], TypeError, "real floating-point"),
        ([torch.zeros(2, dtype=torch.int64)], TypeError, "int64"),
    ],
)
def test_bad_parameters_are_refused(params: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        QuantumSGD(params)


def test_a_refused_group_leaves_no_trace() -> None:
    model = tanh_network()
    opt = QuantumSGD(model[0].parameters(), window=3)
    for bad in ({"window": 4}, {"density": 2.0}):
        with pytest.raises(ValueError, match=r"window|density"):
            opt.add_param_group({"params": model[2].parameters(), **bad})
        assert len(opt.param_groups) == 1


def test_a_sparse_gradient_is_refused() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    opt = QuantumSGD(table.parameters(), density=1, window=3)
    with pytest.raises(TypeError, match="sparse"), opt.recording():
        table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="sparse"):
        opt.step()


# ---- Divergence -----------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [0, 2, 6])
def test_a_nan_batch_is_an_error_and_can_be_skipped(stop: int) -> None:
    model, other = classifier("group"), classifier("group")
    opt, clean = (QuantumSGD(m.named_parameters(), **CYCLE) for m in (model, other))
    batches = image_batches(9)
    for number, (x, y) in enumerate(batches):
        if number == stop:
            if opt.phase == "upload":
                opt.upload()
            before = vector(model.parameters())
            with pytest.raises(DivergenceError, match=rf"step {number + 1}: "):
                run(opt, model, [(torch.full_like(x, math.nan), y)])
            assert torch.equal(vector(model.parameters()), before)
        run(opt, model, [(x, y)])
        run(clean, other, [(x, y)])
    assert torch.equal(vector(model.parameters()), vector(other.parameters()))


def test_an_infinite_gradient_names_the_parameter() -> None:
    model = classifier("group")
    opt = QuantumSGD(model.named_parameters(), **CYCLE)
    run(opt, model, image_batches(1))
    opt.zero_grad()
    handle = model[6].weight.register_hook(lambda g: g * math.inf)
    with pytest.raises(DivergenceError, match=r"step 2: .*6\.weight"):
        run(opt, model, image_batches(1))
    handle.remove()


def test_overflowing_jets_drop_the_window_and_leave_the_anchor() -> None:
    model = tanh_network(torch.float32)
    opt = QuantumSGD(model.parameters(), lr=1e12, density=1, window=50, order=3)
    before = vector(model.parameters())
    with pytest.raises(DivergenceError, match="lower lr"):
        run_recorded(opt, model, [(x.float(), y.float()) for x, y in regression(50)])
    assert torch.equal(vector(model.parameters()), before)


def test_a_skipped_nan_batch_does_not_linger_in_cleared_gradients() -> None:
    model = classifier("group")
    opt = QuantumSGD(model.parameters(), **CYCLE)
    batches = image_batches(3)
    run(opt, model, batches[:2])
    opt.zero_grad(set_to_none=False)
    with opt.recording():
        F.cross_entropy(model(batches[2][0] * math.nan), batches[2][1]).backward()
    opt.zero_grad(set_to_none=False)
    with opt.recording():
        F.cross_entropy(model(batches[2][0]), batches[2][1]).backward()
    opt.step()
    assert opt.window_step == 3


# ---- Groups and masks that change -----------------------------------------------------------


@pytest.mark.parametrize("window", [0, 3])
def test_every_parameter_of_a_pruned_network_has_state(window: int) -> None:
    model = classifier()
    opt = QuantumSGD(model.parameters(), density=0.5, window=window)
    opt.upload()
    run(opt, model, image_batches(1))
    assert all("mask" in opt.state[p] for p in model.parameters())
    assert set(opt.masks) == {p for p in model.parameters() if p.dim() > 1}


def test_a_density_of_one_makes_pruned_weights_dense_again() -> None:
    model = classifier("group")
    opt = QuantumSGD(model.parameters(), lr=0.1, density=0.3, window=2, classical_steps=0)
    run(opt, model, image_batches(2))
    opt.param_groups[0]["density"] = 1.0
    before = vector(model.parameters())
    run(opt, model, image_batches(4)[2:])
    assert opt.active == len(before)
    assert (vector(model.parameters()) != before).all()


def test_networks_with_the_same_names_are_both_pruned() -> None:
    first, second = classifier(), classifier(seed=1)
    opt = QuantumSGD(
        [{"params": first.named_parameters()}, {"params": second.named_parameters()}], density=0.2
    )
    opt.upload()
    weights = [p for m in (first, second) for p in m.parameters() if p.dim() > 1]
    assert set(opt.masks) == set(weights)
    kept = sum(int((p != 0).sum()) for p in weights)
    assert kept == round(0.2 * sum(p.numel() for p in weights))


def test_a_parameter_frozen_in_mid_window_keeps_what_it_had_and_leaves_nothing() -> None:
    model = classifier("group")
    opt = QuantumSGD(model.parameters(), lr=0.05, density=1, window=4, classical_steps=0)
    run(opt, model, image_batches(2))
    frozen = model[0].weight
    moved = frozen + sum(opt.state[frozen][f"jet_{k}"] for k in (1, 2))
    frozen.requires_grad_(False)
    frozen.grad = None
    run(opt, model, image_batches(4)[2:])
    torch.testing.assert_close(frozen.detach(), moved.detach())
    frozen.requires_grad_(True)
    opt.upload()
    assert not any(opt.state[frozen][f"jet_{k}"].any() for k in (1, 2))


def test_masked_sgd_in_a_plain_loop_is_told_to_prune_first() -> None:
    model = classifier()
    opt = QuantumSGD(model.parameters(), density=0.3, window=0)
    (x, y), *_ = image_batches(1)
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(GraphError, match=r"opt\.upload\(\)"):
        opt.step()


def test_hooks_outlive_the_loading_of_a_state() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), density=1, window=2, classical_steps=0)
    seen: list[int] = []
    opt.on_download(lambda _, record: seen.append(record.steps))
    opt.load_state_dict(opt.state_dict())
    run_recorded(opt, model, regression(2))
    assert seen == [2]


def test_loading_a_state_does_not_rewind_a_generator_used_elsewhere() -> None:
    generator = torch.Generator().manual_seed(3)
    opt = QuantumSGD(tanh_network().parameters(), generator=generator)
    torch.rand(5, generator=generator)
    expected = generator.clone_state()
    opt.load_state_dict(opt.state_dict())
    assert torch.equal(generator.get_state(), expected.get_state())


def test_a_window_is_not_closed_while_its_prediction_is_looked_at() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), density=1, window=5)
    run_recorded(opt, model, regression(2))
    with opt.predicted_weights():
        for forbidden in (opt.download, opt.upload):
            with pytest.raises(RuntimeError, match="leave the block"):
                forbidden()
    assert opt.window_step == 2


def test_an_empty_window_has_a_record() -> None:
    opt = QuantumSGD(tanh_network().parameters(), density=1)
    opt.upload()
    record = opt.download()
    assert (record.steps, record.jet_ratio, record.displacement) == (0, 0.0, 0.0)


def test_snip_on_a_nan_batch_prunes_nothing() -> None:
    model = classifier()
    opt = QuantumSGD(
        model.parameters(), density=0.5, pruning="snip", model=model, loss_fn=F.cross_entropy
    )
    before = vector(model.parameters())
    (x, y), *_ = image_batches(1)
    with pytest.raises(DivergenceError, match="snip"):
        opt.step(x * math.nan, y)
    assert torch.equal(vector(model.parameters()), before)
