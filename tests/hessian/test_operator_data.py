"""Data and models that an operator must take as they are, or refuse in plain words."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from tests.cases import classifier, image_batches, randn, seeded, tanh_network
from tests.hessian.test_operator import dense_hessian, identity, small_batch, unequal
from torch_qsgd.errors import GraphError
from torch_qsgd.hessian.operator import HessianOperator

# ---- Passes over the data ------------------------------------------------------------------------


class OwnOrder(Sampler[int]):
    """Draws from a generator of its own, which nobody can replay."""

    def __init__(self, count: int) -> None:
        self._count, self._draws = count, np.random.default_rng(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self._draws.permutation(self._count).tolist())

    def __len__(self) -> int:
        return self._count


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Augments by PyTorch's random numbers, which can be replayed."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = small_batch(6)
        return x[index] + 0.1 * torch.randn(2, dtype=torch.float64), y[index]


@pytest.mark.parametrize("memory", [None, 1.0])
def test_data_that_differs_at_each_pass_is_refused(memory: float | None) -> None:
    data = TensorDataset(*small_batch(12))
    loader = DataLoader(data, batch_size=4, sampler=OwnOrder(12))
    with pytest.raises(ValueError, match="batch 1 differs from the one that an earlier pass gave"):
        HessianOperator(tanh_network(), F.mse_loss, loader, memory=memory) @ randn(9)


def test_augmentation_by_pytorch_is_replayed() -> None:
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True)
    operator = HessianOperator(tanh_network(), F.mse_loss, loader, memory=1.0)
    first = operator @ identity(operator)
    torch.testing.assert_close(first, first.T)
    assert torch.equal(first, operator @ identity(operator))


def test_shapes_of_batches() -> None:
    x, y = small_batch()
    model = tanh_network()
    reference = dense_hessian(model, F.mse_loss, (x, y))
    Pair = namedtuple("Pair", ["input", "unused"])

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input: Tensor, unused: Any = None, labels: Any = None) -> Tensor:
            return self.inner(input)  # type: ignore[no-any-return]

    def with_labels(outputs: Tensor, targets: Any) -> Tensor:
        return F.mse_loss(outputs, y if targets is None else targets)

    shapes: list[Any] = [
        [x, y],  # as a loader yields it
        [[x, None], y],
        (Pair(x, None), y),
        {"input": x, "labels": y},  # as Hugging Face's collators yield it
        [{"input": x, "labels": y}],
        [(x, y)],
    ]
    for data in shapes:
        operator = HessianOperator(Named(), with_labels, data)
        torch.testing.assert_close(operator @ identity(operator), reference)
    with pytest.raises(ValueError, match="an iterator, which can be gone through only once"):
        HessianOperator(model, F.mse_loss, iter([(x, y)]))


# ---- Weights of batches --------------------------------------------------------------------------


def test_a_loss_that_sums_is_seen_where_batches_are_several() -> None:
    model, batch = tanh_network().eval(), small_batch()

    def summed(z: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(z, y, reduction="sum")

    with pytest.raises(ValueError, match="give reduction='sum'"):
        HessianOperator(model, summed, unequal(batch, (4, 1, 2)))
    with pytest.raises(ValueError, match="not that of its two parts"):
        HessianOperator(model, F.mse_loss, unequal(batch, (4, 1, 2)), reduction="sum")
    HessianOperator(model, summed, batch)  # of one batch it is a matter of scale


def test_targets_that_do_not_count_need_a_count() -> None:
    model = seeded(lambda: nn.Linear(2, 3)).double().eval()
    x = randn(8, 2)
    y = torch.tensor([0, 1, 2, 1, -100, -100, -100, 2])
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    with pytest.raises(ValueError, match="count="):
        HessianOperator(model, F.cross_entropy, batches)
    operator = HessianOperator(
        model, F.cross_entropy, batches, count=lambda x, y: float((y >= 0).sum())
    )
    reference = dense_hessian(model, F.cross_entropy, (x, y))
    torch.testing.assert_close(operator @ identity(operator), reference)


# ---- Masks and names -----------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))  # type: ignore[no-any-return]


def test_masks_and_layers_know_tied_names_and_refuse_unknown_ones() -> None:
    model = seeded(Tied).double()
    data = randn(5, 3), randn(5, 3, seed=1)
    reference = dense_hessian(model, F.mse_loss, data)
    mask = torch.eye(3, dtype=torch.bool)
    keep = mask.flatten()
    for name in ("a.weight", "b.weight"):
        operator = HessianOperator(model, F.mse_loss, data, masks={name: mask})
        torch.testing.assert_close(operator @ identity(operator), reference[keep][:, keep])
    assert HessianOperator(model, F.mse_loss, data, layers="b").dimension == 9
    with pytest.raises(ValueError, match=r"no parameter 'a.weigth'; did you mean 'a.weight'"):
        HessianOperator(model, F.mse_loss, data, masks={"a.weigth": mask})
    with pytest.raises(
        ValueError, match=r"a mask of shape \(3, 3\) belongs to a tensor that is no"
    ):
        HessianOperator(model, F.mse_loss, data, masks={randn(3, 3): mask})


# ---- Models --------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Puts a new tensor in a buffer's place at each pass, and has a buffer that holds NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tanh_network()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("empty", torch.full((2,), torch.nan))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return self.inner(x)  # type: ignore[no-any-return]


def test_buffers_that_are_replaced_are_put_back() -> None:
    model = Counting()
    count = model.count
    operator = HessianOperator(model, F.mse_loss, small_batch())
    operator @ randn(9)
    assert model.count is count
    assert float(count) == 0


def test_autocast_is_part_of_the_operator() -> None:
    model, (x, y) = classifier("group").float().eval(), image_batches(1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        inside = HessianOperator(model, F.cross_entropy, (x.float(), y), keep_graph=False)
        v = randn(inside.dimension).float()
        first = inside @ v
    assert torch.equal(first, inside @ v)  # graphs made outside the block are the same
    plain = HessianOperator(model, F.cross_entropy, (x.float(), y)) @ v
    assert 1e-4 < (first - plain).norm() / plain.norm() < 0.2


def test_what_cannot_be_differentiated_is_refused_by_name() -> None:
    x, y = small_batch()
    model = tanh_network()
    handle = model[0].weight.register_hook(lambda g: 2 * g)  # type: ignore[index,union-attr]
    with pytest.raises(ValueError, match=r"0.weight has a hook on its gradient"):
        HessianOperator(model, F.mse_loss, (x, y))
    handle.remove()
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        HessianOperator(model, F.mse_loss, (x, y))
    words = nn.Sequential(nn.Embedding(4, 2, sparse=True), nn.Flatten(), nn.Linear(6, 1)).double()
    with pytest.raises(GraphError, match="sparse=False"):
        HessianOperator(words, F.mse_loss, (torch.randint(4, (7, 3)), y))


def test_a_frozen_parameter_that_moves_is_noticed() -> None:
    model, batch = tanh_network(), small_batch()
    model[2].requires_grad_(False)  # type: ignore[index]
    operator = HessianOperator(model, F.mse_loss, batch)
    before = operator.fingerprint
    with torch.no_grad():
        model[2].weight.mul_(2)  # type: ignore[index,union-attr,operator]
    assert operator.fingerprint != before
    with pytest.raises(GraphError, match="parameters have changed"):
        operator @ randn(6)
