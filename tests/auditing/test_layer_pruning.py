"""What pruning costs, against losses computed by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases import classifier, image_batches, randn, regression, tanh_network
from torch_qsgd.auditing.layer_pruning import measure_pruning
from torch_qsgd.optim import QuantumSGD

Masks = dict[str, Tensor]


def pruned_copy(model: nn.Module, masks: Masks) -> nn.Module:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if name in masks:
                p.copy_(torch.where(masks[name], p, 0.0))
    return twin


def mean_loss(model: nn.Module, batches: Any, loss_fn: Any) -> float:
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        losses = [(loss_fn(model(x), y).item(), len(y)) for x, y in batches]
    return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)


def share_right(model: nn.Module, batches: Any) -> float:
    model = copy.deepcopy(model).eval()
    right = [int(i.argmax() == c) for x, y in batches for i, c in zip(model(x), y, strict=True)]
    return sum(right) / len(right)


def random_masks(model: nn.Module, names: list[str]) -> Masks:
    parameters = dict(model.named_parameters())
    return {n: randn(*parameters[n].shape, seed=i) > 0.3 for i, n in enumerate(names)}


def test_every_number_is_what_a_plain_loop_finds() -> None:
    model, batches = classifier("batch"), [*image_batches(2), *image_batches(1, batch=5)]
    masks = random_masks(model, ["0.weight", "3.weight", "6.weight"])
    pruned = pruned_copy(model, masks)
    ticks: list[tuple[int, int]] = []
    found = measure_pruning(
        model, pruned, masks, F.cross_entropy, batches, tick=lambda *now: ticks.append(now)
    )
    for measured, network in (("_dense", model), ("", pruned)):
        loss = getattr(found, f"loss{measured}")
        assert loss == pytest.approx(mean_loss(network, batches, F.cross_entropy), rel=1e-12)
        assert getattr(found, f"accuracy{measured}") == share_right(network, batches)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.prunable == sum(m.numel() for m in masks.values())
    kept = sum(int(m.sum()) for m in masks.values())
    assert found.active == found.parameters - found.prunable + kept
    assert found.density == found.active / found.parameters
    assert [layer.name for layer in found.layers] == list(masks)
    for layer in found.layers:
        mask = masks[layer.name]
        values = dict(model.named_parameters())[layer.name].detach()
        assert (layer.weights, layer.active) == (mask.numel(), int(mask.sum()))
        removed = float((values[~mask] ** 2).sum() / (values**2).sum())
        assert layer.norm_removed == pytest.approx(removed, rel=1e-12)
        alone = pruned_copy(model, {layer.name: mask})
        assert layer.loss == pytest.approx(mean_loss(alone, batches, F.cross_entropy), rel=1e-12)
        assert layer.accuracy == share_right(alone, batches)
    assert ticks == [(k, 5) for k in range(1, 6)]


def test_the_models_are_left_as_they_were() -> None:
    model, batches = classifier("batch"), image_batches(1)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = -0.0  # type: ignore[index]
        model[0].weight[0, 0, 0, 1] = 1e-320  # type: ignore[index]
    masks = random_masks(model, ["0.weight", "6.weight"])
    pruned = pruned_copy(model, masks)
    before = [copy.deepcopy(m.state_dict()) for m in (model, pruned)]
    state = torch.get_rng_state()
    measure_pruning(model, pruned, masks, F.cross_entropy, batches)
    for network, kept in zip((model, pruned), before, strict=True):
        assert network.training
        for name, tensor in network.state_dict().items():
            bits = [
                t.flatten().view(torch.uint8) for t in (tensor.reshape(-1), kept[name].reshape(-1))
            ]
            assert torch.equal(*bits), name
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("call", [3, 4])
def test_weights_are_put_back_where_the_evaluation_fails(call: int) -> None:
    model, batches = tanh_network(), regression(1)
    masks = random_masks(model, ["0.weight", "2.weight"])
    masks["2.weight"][:] = False
    calls = 0

    def failing(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return F.mse_loss(outputs, targets)

    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        measure_pruning(model, pruned_copy(model, masks), masks, failing, batches)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())
    assert model.training


def test_a_tensor_that_keeps_all_weights_is_not_evaluated() -> None:
    model, batches = tanh_network(), regression(1)
    masks = {"0.weight": torch.ones(2, 2, dtype=torch.bool)}
    ticks: list[tuple[int, int]] = []
    found = measure_pruning(
        model, model, masks, F.mse_loss, batches, tick=lambda *now: ticks.append(now)
    )
    (layer,) = found.layers
    assert (layer.active, layer.weights, layer.norm_removed) == (4, 4, 0.0)
    assert layer.loss == found.loss == found.loss_dense
    assert math.isnan(layer.accuracy)  # targets are no classes
    assert math.isnan(found.accuracy)
    assert found.density == 1.0
    assert ticks == [(1, 2), (2, 2)]


def test_without_masks_nothing_is_prunable() -> None:
    found = measure_pruning(tanh_network(), tanh_network(), {}, F.mse_loss, regression(1))
    assert (found.parameters, found.prunable, found.active, found.layers) == (9, 0, 9, [])


def test_frozen_and_zero_tensors() -> None:
    model = tanh_network()
    model[2].weight.requires_grad_(False)  # type: ignore[index]
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[index]
    masks = {"0.weight": torch.tensor([[True, False], [True, True]])}
    found = measure_pruning(model, pruned_copy(model, masks), masks, F.mse_loss, regression(1))
    assert (found.parameters, found.active) == (7, 6)
    assert found.layers[0].norm_removed == 0.0


def test_masks_of_the_optimizer() -> None:
    dense, batches = classifier("group"), image_batches(1)
    model = copy.deepcopy(dense)
    optimizer = QuantumSGD(
        model.parameters(), lr=0.01, density=0.3, window=3, model=model, loss_fn=F.cross_entropy
    )
    optimizer.upload(*batches[0])
    names = {p: name for name, p in model.named_parameters()}
    masks = {names[p]: mask for p, mask in optimizer.masks.items()}
    found = measure_pruning(dense, model, masks, F.cross_entropy, batches)
    assert found.active == optimizer.active
    assert found.loss == pytest.approx(
        mean_loss(pruned_copy(dense, masks), batches, F.cross_entropy)
    )
    removed = sum(
        layer.norm_removed * float((dense.state_dict()[layer.name] ** 2).sum())
        for layer in found.layers
    )
    gone = sum(
        float(((p - q).detach() ** 2).sum())
        for p, q in zip(dense.parameters(), model.parameters(), strict=True)
    )
    assert removed == pytest.approx(gone)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            {"0.wieght": torch.ones(2, 2) > 0},
            r"no parameter of the model; did you mean '0\.weight'",
        ),
        ({"0.weight": torch.ones(2, 2)}, r"must be bool, of shape \(2, 2\): got torch\.float32"),
        ({"0.weight": torch.ones(4) > 0}, r"must be bool, of shape \(2, 2\)"),
    ],
)
def test_bad_masks_are_refused(masks: Masks, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_pruning(tanh_network(), tanh_network(), masks, F.mse_loss, regression(1))


def test_frozen_parameters_and_empty_data_are_refused() -> None:
    model = tanh_network()
    with pytest.raises(ValueError, match="held_out holds no batch"):
        measure_pruning(model, model, {}, F.mse_loss, [])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="has requires_grad=False"):
        measure_pruning(model, model, {"0.weight": torch.ones(2, 2) > 0}, F.mse_loss, regression(1))
