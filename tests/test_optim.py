"""QuantumSGD against torch.optim.SGD and against plain loops."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import (
    classifier,
    image_batches,
    masked_sgd,
    regression,
    run_recorded,
    tanh_network,
    vector,
)
from torch_qsgd import GraphError, QuantumSGD

#: Every combination of options that torch.optim.SGD allows.
SGD_OPTIONS = [
    {
        "momentum": momentum,
        "dampening": dampening,
        "nesterov": nesterov,
        "weight_decay": decay,
        "maximize": maximize,
    }
    for momentum, dampening, nesterov, decay, maximize in itertools.product(
        (0.0, 0.9), (0.0, 0.4), (False, True), (0.0, 0.01), (False, True)
    )
    if not nesterov or (momentum > 0 and dampening == 0)
]


def named(options: dict[str, Any]) -> str:
    return ",".join(f"{k}={v}" for k, v in options.items() if v) or "plain"


@pytest.mark.parametrize("options", SGD_OPTIONS, ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_window_and_pruning_it_is_sgd_to_the_bit(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    theirs = tanh_network(dtype)
    ours = copy.deepcopy(theirs)
    a = torch.optim.SGD(theirs.parameters(), lr=0.05, **options)
    b = QuantumSGD(ours.parameters(), lr=0.05, window=0, density=1.0, **options)
    schedules = [torch.optim.lr_scheduler.StepLR(opt, 10, 0.5) for opt in (a, b)]
    for x, y in regression(50):
        for model, opt in ((theirs, a), (ours, b)):
            opt.zero_grad()
            F.mse_loss(model(x.to(dtype)), y.to(dtype)).backward()
            opt.step()
        for schedule in schedules:
            schedule.step()
    assert torch.equal(vector(theirs.parameters()), vector(ours.parameters()))
    if options["momentum"]:
        for p, q in zip(theirs.parameters(), ours.parameters(), strict=True):
            assert torch.equal(a.state[p]["momentum_buffer"], b.state[q]["momentum_buffer"])


@pytest.mark.parametrize("options", SGD_OPTIONS, ids=named)
def test_a_window_of_one_step_is_one_masked_sgd_step(options: dict[str, Any]) -> None:
    ours = classifier("group")
    plain = copy.deepcopy(ours)
    batches = image_batches(4)
    opt = QuantumSGD(
        ours.parameters(),
        lr=0.1,
        density=0.3,
        window=1,
        order=1,
        classical_steps=0,
        pruning="magnitude-layerwise",
        **options,
    )
    opt.upload()
    masks = [opt.masks.get(p) for p in ours.parameters()]
    with torch.no_grad():
        for p, mask in zip(plain.parameters(), masks, strict=True):
            if mask is not None:
                p *= mask
    assert torch.equal(vector(plain.parameters()), vector(ours.parameters()))
    # Pruning again keeps the mask, for what is pruned is zero; so the windows chain.
    run_recorded(opt, ours, batches, F.cross_entropy)
    assert len(opt.windows) == len(batches)
    masked_sgd(plain, F.cross_entropy, batches, masks, 0.1, **options)
    torch.testing.assert_close(
        vector(ours.parameters()), vector(plain.parameters()), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("options", SGD_OPTIONS[:8], ids=named)
def test_masked_sgd_is_what_a_window_of_zero_gives(options: dict[str, Any]) -> None:
    ours = classifier("batch")
    plain = copy.deepcopy(ours)
    batches = image_batches(12)
    opt = QuantumSGD(ours.parameters(), lr=0.1, density=0.2, window=0, **options)
    opt.upload()
    plain.load_state_dict(ours.state_dict())
    masks = [opt.masks.get(p) for p in ours.parameters()]
    for x, y in batches:
        opt.zero_grad()
        F.cross_entropy(ours(x), y).backward()
        opt.step()
    masked_sgd(plain, F.cross_entropy, batches, masks, 0.1, **options)
    torch.testing.assert_close(
        vector(ours.parameters()), vector(plain.parameters()), rtol=1e-12, atol=1e-12
    )
    for p, mask in opt.masks.items():
        assert not p[~mask].any()


def test_a_high_order_window_with_a_schedule_momentum_and_masks_follows_true_sgd() -> None:
    """η_t, μ, τ and λ act on the jets as on SGD: only then does order 7 agree to 1e-6."""
    ours = classifier("group", nn.Tanh)
    plain = copy.deepcopy(ours)
    batches = image_batches(12)
    options = {"momentum": 0.8, "dampening": 0.1, "weight_decay": 0.02}
    opt = QuantumSGD(ours.parameters(), lr=0.02, density=0.5, window=12, order=7, **options)
    rates = [0.02 * 0.9**t for t in range(12)]
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.9)
    opt.upload()
    plain.load_state_dict(ours.state_dict())
    anchor = vector(ours.parameters())
    masks = [opt.masks.get(p) for p in ours.parameters()]
    for batch in batches:
        run_recorded(opt, ours, [batch], F.cross_entropy)
        schedule.step()
    masked_sgd(plain, F.cross_entropy, batches, masks, rates, **options)
    target = vector(plain.parameters())
    assert (vector(ours.parameters()) - target).norm() < 1e-6 * (target - anchor).norm()


def test_groups_keep_their_own_options_and_dense_vectors() -> None:
    model = classifier("group")
    backbone, head = list(model[:4].parameters()), list(model[6].parameters())
    opt = QuantumSGD(
        [
            {"params": backbone, "lr": 0.1, "density": 0.25},
            {"params": head, "lr": 0.2, "density": 0.5, "weight_decay": 0.1},
        ],
        window=3,
        order=2,
    )
    opt.upload()
    assert {p.dim() for p in opt.masks} == {2, 4}
    kept = sum(int(opt.masks[p].sum()) for p in backbone if p in opt.masks)
    assert kept == round(0.25 * sum(p.numel() for p in backbone if p.dim() > 1))
    assert int(opt.masks[head[0]].sum()) == round(0.5 * head[0].numel())
    # One step: each group moves by its own rate and decay.
    (batch,) = image_batches(1)
    anchor = [p.detach().clone() for p in model.parameters()]
    gradients = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), model.parameters())
    run_recorded(opt, model, [batch], F.cross_entropy)
    opt.download()
    for p, a, g in zip(model.parameters(), anchor, gradients, strict=True):
        in_head = any(p is q for q in head)
        rate, decay = (0.2, 0.1) if in_head else (0.1, 0.0)
        keep = opt.masks.get(p, torch.ones_like(p))
        torch.testing.assert_close(p.detach(), a - rate * keep * (g + decay * a))


def test_vectors_are_pruned_when_asked_for() -> None:
    model = classifier("group")
    opt = QuantumSGD(model.parameters(), density=0.5, prune_vectors=True, pruning="erk")
    opt.upload()
    assert len(opt.masks) == len(list(model.parameters()))
    assert opt.active == round(0.5 * sum(p.numel() for p in model.parameters()))


def test_pruned_weights_stay_exactly_zero_through_a_window_and_come_back_after() -> None:
    model = classifier("batch")
    opt = QuantumSGD(
        model.parameters(), lr=0.05, momentum=0.9, density=0.2, window=5, classical_steps=3
    )
    batches = image_batches(16)
    phases = []
    for x, y in batches:
        run_recorded(opt, model, [(x, y)], F.cross_entropy)
        phases.append(opt.phase)
        pruned = torch.cat([p.detach()[~mask] for p, mask in opt.masks.items()])
        if opt.phase == "window" or (phases[-2:-1] == ["window"] and opt.phase == "classical"):
            assert not pruned.any()
        else:
            assert pruned.any()
    cycle = ["window"] * 4 + ["classical"] * 3 + ["upload"]
    assert phases == cycle * 2


def test_weights_rest_at_the_anchor_and_predictions_leave_no_trace() -> None:
    model = classifier("batch")
    opt = QuantumSGD(
        model.parameters(), lr=0.05, density=0.5, window=6, model=model, loss_fn=F.cross_entropy
    )
    batches = image_batches(6)
    run_recorded(opt, model, batches[:3], F.cross_entropy)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    jets = sum(vector([opt.state[p][f"jet_{k}"] for p in model.parameters()]) for k in (1, 2))
    anchor = vector(model.parameters())
    with opt.predicted_weights():
        torch.testing.assert_close(vector(model.parameters()), anchor + jets, rtol=0, atol=0)
        model(batches[0][0])  # in train mode: it moves running statistics
        with pytest.raises(RuntimeError, match="inside"), opt.predicted_weights():
            pass
        with pytest.raises(RuntimeError, match="leave the block"):
            opt.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    run_recorded(opt, model, batches[3:], F.cross_entropy)
    assert opt.phase == "classical"
    weights = vector(model.parameters())
    with opt.predicted_weights():
        assert torch.equal(vector(model.parameters()), weights)


def test_the_predicted_weights_are_restored_after_an_error() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), lr=0.05, density=1, window=6)
    run_recorded(opt, model, regression(3))
    before = vector(model.parameters())
    with pytest.raises(ZeroDivisionError), opt.predicted_weights():
        raise ZeroDivisionError
    assert torch.equal(vector(model.parameters()), before)


def test_the_tolerance_ends_a_window_early() -> None:
    model = tanh_network()
    free = QuantumSGD(model.parameters(), lr=0.05, density=1, window=10, classical_steps=1)
    ratios = []
    for batch in regression(9):
        run_recorded(free, model, [batch])
        ratios.append(free.jet_norms[-1] / free.jet_norms[0])
    assert ratios == sorted(ratios)
    limit = (ratios[3] + ratios[4]) / 2
    model = tanh_network()
    opt = QuantumSGD(
        model.parameters(), lr=0.05, density=1, window=10, classical_steps=1, tolerance=limit
    )
    run_recorded(opt, model, regression(5))
    (record,) = opt.windows
    assert (record.steps, record.reason, opt.phase) == (5, "tolerance", "classical")
    assert record.jet_ratio == pytest.approx(ratios[4], rel=1e-12)


def test_a_windows_record_holds_what_happened() -> None:
    model = classifier("group")
    opt = QuantumSGD(model.parameters(), lr=0.02, density=0.5, window=6, order=3)
    opt.upload()
    anchor = vector(model.parameters())
    batches = image_batches(6)
    run_recorded(opt, model, batches[:5], F.cross_entropy)
    with opt.predicted_weights():
        at_prediction = F.cross_entropy(model(batches[5][0]), batches[5][1]).item()
    at_anchor = F.cross_entropy(model(batches[5][0]), batches[5][1]).item()
    run_recorded(opt, model, batches[5:], F.cross_entropy)
    (record,) = opt.windows
    moved = vector(model.parameters()) - anchor
    assert record.steps == 6
    assert record.reason == "length"
    assert record.displacement == pytest.approx(float(moved.norm()))
    assert record.active == sum(
        int(opt.masks[p].sum()) if p in opt.masks else p.numel() for p in model.parameters()
    )
    assert len(record.jet_norms) == 3
    assert record.loss == pytest.approx(at_anchor)
    assert record.predicted_loss == pytest.approx(at_prediction, rel=1e-4)
    assert record.predicted_loss != record.loss
    assert record.solver_error == 0


def test_hooks_see_uploads_and_downloads_and_can_be_removed() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), density=0.5, window=2, classical_steps=0)
    seen: list[Any] = []
    handle = opt.on_upload(lambda o: seen.append(("up", o.phase, o.window_step)))
    opt.on_download(lambda o, record: seen.append(("down", o.phase, record.steps)))
    run_recorded(opt, model, regression(4))
    assert seen == [("up", "window", 0), ("down", "upload", 2)] * 2
    handle.remove()
    run_recorded(opt, model, regression(2))
    assert seen[4:] == [("down", "upload", 2)]


def test_uploads_and_downloads_by_hand() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.parameters(), lr=0.1, density=0.5, window=10, classical_steps=0)
    with pytest.raises(RuntimeError, match="no window is open"):
        opt.download()
    opt.upload()
    with pytest.raises(RuntimeError, match="download"):
        opt.upload()
    run_recorded(opt, model, regression(3))
    assert opt.download().reason == "requested"
    assert opt.phase == "upload"
    opt.upload()
    assert opt.window_step == 0


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_running_statistics_move_once_a_step_as_under_sgd(norm: str) -> None:
    ours = classifier(norm)
    (batch,) = image_batches(1)
    opt = QuantumSGD(ours.parameters(), lr=0.0, density=1, window=10)
    plain = copy.deepcopy(ours)
    for _ in range(4):
        run_recorded(opt, ours, [batch], F.cross_entropy)
        plain(batch[0])
    statistics = dict(plain.named_buffers())
    for name, value in ours.named_buffers():
        torch.testing.assert_close(value, statistics[name], msg=name)
    assert any("running" in name for name in statistics)


def test_a_learning_rate_may_be_a_tensor() -> None:
    weights = []
    for rate in (
        0.05,
        torch.tensor(0.05, dtype=torch.float64),
        torch.tensor([0.05], dtype=torch.float64),
    ):
        model = tanh_network()
        opt = QuantumSGD(model.parameters(), lr=rate, density=1, window=4, classical_steps=2)
        run_recorded(opt, model, regression(8))
        weights.append(vector(model.parameters()))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-13, atol=0)
    torch.testing.assert_close(weights[0], weights[2], rtol=1e-13, atol=0)


def test_a_group_added_in_mid_window_joins_it() -> None:
    first, second = tanh_network(), nn.Linear(1, 1).double()
    with torch.no_grad():
        second.weight.fill_(1.0)
        second.bias.zero_()
    model = nn.Sequential(first, second)
    plain = copy.deepcopy(model)
    batches = regression(6)
    opt = QuantumSGD(first.parameters(), lr=0.02, density=1, window=6, order=6)
    run_recorded(opt, model, batches[:3])
    opt.add_param_group({"params": second.parameters()})
    run_recorded(opt, model, batches[3:])
    masked_sgd(plain[0], lambda out, y: F.mse_loss(plain[1](out), y), batches[:3], [None] * 4, 0.02)
    masked_sgd(plain, F.mse_loss, batches[3:], [None] * 6, 0.02)
    torch.testing.assert_close(
        vector(model.parameters()), vector(plain.parameters()), rtol=1e-6, atol=1e-6
    )


def test_frozen_and_unused_parameters_do_not_move() -> None:
    model = tanh_network()
    model[0].bias.requires_grad_(False)
    unused = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
    opt = QuantumSGD([*model.parameters(), unused], lr=0.1, density=0.9, window=3, weight_decay=0.1)
    frozen = model[0].bias.clone()
    run_recorded(opt, model, regression(3))
    assert torch.equal(model[0].bias, frozen)
    assert opt.windows[0].steps == 3
    # Pruned at upload, like any weight, but never stepped: not even decayed, as under SGD.
    assert set(unused.detach().flatten().tolist()) <= {0.0, 1.0}


def test_named_parameters_give_their_names_to_errors() -> None:
    model = tanh_network()
    opt = QuantumSGD(model.named_parameters(), density=1, window=3)
    with pytest.raises(FloatingPointError, match=r"step 1: the loss is"):
        run_recorded(
            opt, model, [(torch.full((2, 2), torch.inf).double(), torch.zeros(2, 1).double())]
        )
    opt.zero_grad()
    F.mse_loss(model(regression(1)[0][0]), regression(1)[0][1]).backward()
    with pytest.raises(GraphError, match=r"recording\(\)"):
        opt.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_lower_precision_follows_float64_within_its_own(dtype: torch.dtype) -> None:
    moved = {}
    for kind in (torch.float64, dtype):
        model = classifier("group").to(kind)
        anchor = vector(model.parameters()).double()
        opt = QuantumSGD(model.parameters(), lr=0.05, density=1, window=8, order=2)
        run_recorded(opt, model, [(x.to(kind), y) for x, y in image_batches(8)], F.cross_entropy)
        moved[kind] = vector(model.parameters()).double() - anchor
    reference = moved[torch.float64]
    allowed = 0.15 if dtype == torch.bfloat16 else 1e-4
    assert (moved[dtype] - reference).norm() < allowed * reference.norm()
