"""The Hessian operator against dense Hessians, and what it leaves behind: nothing."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.cases import classifier, image_batches, randn, seeded, tanh_network, vector
from torch_qsgd.derivatives.graph import saved_bytes
from torch_qsgd.hessian.operator import HessianOperator

Batch = tuple[Tensor, Tensor]


def dense_hessian(model: nn.Module, loss_fn: Callable[..., Tensor], batch: Batch) -> Tensor:
    """By two reverse passes a row, on a copy of the model."""
    twin = copy.deepcopy(model)
    parameters = list(twin.parameters())
    loss = loss_fn(twin(batch[0]), batch[1])
    gradient = torch.autograd.grad(loss, parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True) for entry in flat]
    return torch.stack([vector(row) for row in rows])


def identity(operator: HessianOperator) -> Tensor:
    return torch.eye(operator.dimension, dtype=operator.dtype)


def small_batch(count: int = 7) -> Batch:
    return randn(count, 2, seed=1), randn(count, 1, seed=2)


def unequal(batch: Batch, sizes: tuple[int, ...] = (1, 4, 2)) -> list[Batch]:
    return list(zip(batch[0].split(sizes), batch[1].split(sizes), strict=True))


# ---- The matrix ----------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("keep_graph", ["auto", True, False])
def test_is_the_dense_hessian(train: bool, keep_graph: str | bool) -> None:
    model, batch = classifier().train(train), image_batches(1)[0]
    reference = dense_hessian(model, F.cross_entropy, batch)
    operator = HessianOperator(model, F.cross_entropy, batch, keep_graph=keep_graph)
    torch.testing.assert_close(operator @ identity(operator), reference, rtol=1e-10, atol=1e-12)


def test_channels_last_changes_nothing() -> None:
    model, (x, y) = classifier().eval(), image_batches(1)[0]
    reference = dense_hessian(model, F.cross_entropy, (x, y))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    operator = HessianOperator(model, F.cross_entropy, (x.to(memory_format=torch.channels_last), y))
    torch.testing.assert_close(operator @ identity(operator), reference, rtol=1e-10, atol=1e-12)


def test_gauss_newton_is_j_h_j() -> None:
    model, (x, y) = classifier("group"), image_batches(1)[0]
    twin = copy.deepcopy(model)
    z = twin(x)
    rows = [torch.autograd.grad(e, list(twin.parameters()), retain_graph=True) for e in z.flatten()]
    J = torch.stack([vector(row) for row in rows])
    p = torch.softmax(z.detach(), 1)
    H = torch.block_diag(*[(torch.diag(q) - torch.outer(q, q)) / len(y) for q in p])
    operator = HessianOperator(model, F.cross_entropy, (x, y), kind="ggn")
    torch.testing.assert_close(operator @ identity(operator), J.T @ H @ J, rtol=1e-10, atol=1e-12)


def test_float32_and_bfloat16_are_near() -> None:
    model, (x, y) = classifier("group"), image_batches(1)[0]
    reference = dense_hessian(model, F.cross_entropy, (x, y))
    v = randn(len(reference))
    for dtype, allowed in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        twin = copy.deepcopy(model).to(dtype)
        operator = HessianOperator(twin, F.cross_entropy, (x.to(dtype), y))
        product = (operator @ v.float()).double()
        assert operator.dtype == torch.float32
        assert (product - reference @ v).norm() < allowed * (reference @ v).norm()


# ---- Data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [None, 1.0])
@pytest.mark.parametrize("shape", ["list", "loader"])
def test_unequal_batches_are_one_large_batch(shape: str, memory: float | None) -> None:
    model, batch = tanh_network(), small_batch()
    reference = dense_hessian(model, F.mse_loss, batch)
    data: Any = unequal(batch)
    if shape == "loader":
        data = DataLoader(TensorDataset(*batch), batch_size=3, shuffle=True)
    operator = HessianOperator(model, F.mse_loss, data, memory=memory)
    for _ in range(2):  # the second time from what was kept, if anything was
        torch.testing.assert_close(operator @ identity(operator), reference)


def test_sums_are_summed_and_counts_weigh() -> None:
    model, batch = tanh_network(), small_batch()

    def summed(z: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(z, y, reduction="sum")

    total = HessianOperator(model, summed, unequal(batch), reduction="sum")
    torch.testing.assert_close(total @ identity(total), dense_hessian(model, summed, batch))
    parts = unequal(batch)
    counts = {len(y): float(i + 1) for i, (_, y) in enumerate(parts)}
    weighted = HessianOperator(model, F.mse_loss, parts, count=lambda x, y: counts[len(y)])
    reference = sum(counts[len(b[1])] * dense_hessian(model, F.mse_loss, b) for b in parts) / sum(
        counts.values()
    )
    torch.testing.assert_close(weighted @ identity(weighted), reference)


def test_a_shuffled_loader_leaves_its_random_state() -> None:
    batch = small_batch()
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*batch), batch_size=3, shuffle=True, generator=generator)
    before = generator.get_state(), torch.get_rng_state(), random.getstate()
    operator = HessianOperator(tanh_network(), F.mse_loss, loader, memory=1.0)
    first = operator @ randn(9)
    assert torch.equal(first, operator @ randn(9))
    assert torch.equal(before[0], generator.get_state())
    assert torch.equal(before[1], torch.get_rng_state())
    assert before[2] == random.getstate()


def test_inputs_that_are_mappings_and_tuples() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tanh_network()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.inner(a + b)  # type: ignore[no-any-return]

    x, y = small_batch()
    model = Two()
    reference = dense_hessian(model.inner, F.mse_loss, (2 * x, y))
    for inputs in ((x, x), {"a": x, "b": x}):
        operator = HessianOperator(model, F.mse_loss, (inputs, y))
        torch.testing.assert_close(operator @ identity(operator), reference)


def test_memory_keeps_some_graphs_and_makes_the_others_anew() -> None:
    model, batches = classifier().eval(), image_batches(4)
    whole = HessianOperator(model, F.cross_entropy, batches, keep_graph=True)
    v = randn(whole.dimension)
    product = whole @ v
    one = saved_bytes(whole._curvature._kept[0][0].roots)
    assert one > 8 * sum(p.numel() for p in model.parameters())
    some = HessianOperator(model, F.cross_entropy, batches, memory=2.5 * one)
    torch.testing.assert_close(some @ v, product)
    assert len(some._curvature._kept) == 2
    assert len(whole._curvature._kept) == 4
    none = HessianOperator(model, F.cross_entropy, batches, keep_graph=False)
    torch.testing.assert_close(none @ v, product)
    assert not none._curvature._kept


# ---- Parts ---------------------------------------------------------------------------------------


def test_masks_give_the_submatrix() -> None:
    model, batch = classifier(), image_batches(1)[0]
    reference = dense_hessian(model, F.cross_entropy, batch)
    generator = torch.Generator().manual_seed(5)
    named = dict(model.named_parameters())
    masks = {
        name: torch.rand(p.shape, generator=generator) < 0.3
        for name, p in named.items()
        if p.dim() > 1
    }
    keep = torch.cat(
        [masks.get(n, torch.ones_like(p, dtype=torch.bool)).flatten() for n, p in named.items()]
    )
    by_tensor = {named[name]: mask for name, mask in masks.items()}
    for given in (masks, by_tensor):
        operator = HessianOperator(model, F.cross_entropy, batch, masks=given)
        assert operator.dimension == int(keep.sum())
        torch.testing.assert_close(operator @ identity(operator), reference[keep][:, keep])
    v = randn(operator.dimension)
    tensors = operator.unflatten(v)
    assert all(not tensors[name][~mask].any() for name, mask in masks.items())
    assert torch.equal(operator.flatten(tensors), v)


@pytest.mark.parametrize("layers", ["0", ["0", "6.bias"], "*.weight"])
def test_layers_give_the_diagonal_block(layers: str | list[str]) -> None:
    model, batch = classifier(), image_batches(1)[0]
    reference = dense_hessian(model, F.cross_entropy, batch)
    whole = HessianOperator(model, F.cross_entropy, batch)
    chosen = HessianOperator(model, F.cross_entropy, batch, layers=layers)
    keep = whole.flatten(
        {n: torch.ones_like(model.get_parameter(n)) for n in chosen.parameter_names}
    ).bool()
    assert 0 < chosen.dimension < whole.dimension
    block = whole.block(layers)
    for operator in (chosen, block):
        torch.testing.assert_close(operator @ identity(operator), reference[keep][:, keep])
    assert block.products == whole.products  # one count, for the graph is one


def test_frozen_and_unused_parameters() -> None:
    model, batch = tanh_network(), small_batch()
    reference = dense_hessian(model, F.mse_loss, batch)
    model[0].bias.requires_grad_(False)  # type: ignore[index,union-attr]
    operator = HessianOperator(model, F.mse_loss, batch)
    keep = torch.tensor([0, 1, 2, 3, 6, 7, 8])
    torch.testing.assert_close(operator @ identity(operator), reference[keep][:, keep])
    with pytest.raises(ValueError, match="requires_grad=False"):
        HessianOperator(model, F.mse_loss, batch, parameters=model.parameters())
    lonely = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)}).double()
    lonely.forward = lambda x: lonely["used"](x)  # type: ignore[method-assign,operator]
    dense = HessianOperator(lonely, F.mse_loss, batch) @ torch.eye(6, dtype=torch.float64)
    assert dense[:3, :3].abs().min() > 0
    assert not dense[3:].any()


def test_a_loss_that_is_linear_has_a_zero_hessian() -> None:
    model = nn.Linear(2, 1).double()
    operator = HessianOperator(model, lambda z, y: (z * y).sum(), small_batch(), reduction="sum")
    assert not (operator @ identity(operator)).any()


# ---- What it leaves behind -----------------------------------------------------------------------


def test_the_model_is_left_bit_identical() -> None:
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 3)
        )
    ).double()
    model[1].eval()  # type: ignore[index]
    batch = image_batches(1)[0]
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    state = copy.deepcopy(model.state_dict())
    gradients = [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
    flags = [m.training for m in model.modules()]
    seeds = torch.get_rng_state()
    operator = HessianOperator(model, F.cross_entropy, [batch, image_batches(2)[1]])
    first = operator @ randn(operator.dimension)
    assert torch.equal(first, operator @ randn(operator.dimension))  # the same dropout
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert len(gradients) == len(list(model.parameters()))
    for p, (grad, value) in zip(model.parameters(), gradients, strict=True):
        assert p.grad is grad
        assert torch.equal(grad, value)
    assert flags == [m.training for m in model.modules()]
    assert torch.equal(seeds, torch.get_rng_state())


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_nothing_is_kept_alive(kind: str) -> None:
    def graphs() -> int:
        return sum(isinstance(o, torch.Tensor) and o.grad_fn is not None for o in gc.get_objects())

    model, batch = classifier(), image_batches(1)[0]
    gc.collect()
    before = graphs()
    gc.disable()
    try:
        for _ in range(20):
            operator = HessianOperator(model, F.cross_entropy, batch, kind=kind)
            operator @ randn(operator.dimension)
            held = weakref.ref(operator._curvature)
            del operator
            assert held() is None  # by counting references alone
        assert graphs() == before
    finally:
        gc.enable()


def test_close_frees_and_later_products_still_work() -> None:
    with HessianOperator(tanh_network(), F.mse_loss, small_batch()) as operator:
        first = operator @ randn(9)
        assert operator._curvature._kept
    assert not operator._curvature._kept
    assert torch.equal(operator @ randn(9), first)


# ---- SciPy ---------------------------------------------------------------------------------------


def test_scipy_finds_the_ends() -> None:
    from scipy.sparse.linalg import eigsh

    model, batch = classifier(), image_batches(1)[0]
    reference = torch.linalg.eigvalsh(dense_hessian(model, F.cross_entropy, batch))
    operator = HessianOperator(model, F.cross_entropy, batch).to_scipy()
    assert eigsh(operator, k=1, which="LA", return_eigenvectors=False)[0] == pytest.approx(
        float(reference[-1])
    )
    assert eigsh(operator, k=1, which="SA", return_eigenvectors=False)[0] == pytest.approx(
        float(reference[0])
    )
    assert operator.matmat(np.eye(operator.shape[0])[:, :2]).shape == (operator.shape[0], 2)
