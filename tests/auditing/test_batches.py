"""How an audit shares out its data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from torch_qsgd.auditing.batches import split_batches
from torch_qsgd.auditing.plan import Plan

CPU = torch.device("cpu")


def plan(**given: int) -> Plan:
    options = dict.fromkeys(Plan.__annotations__)
    fixed = {
        "lr": 0.1,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "density": 0.5,
        "pruning": "magnitude",
        "order": 2,
        "classical_steps": 1,
        "solver_error": 1e-3,
        "readout_error": 0.1,
        "seed": 0,
    }
    return Plan.of(True, **{**options, **fixed, **given})


def numbered(count: int, size: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Batches that hold their own number."""
    return [(torch.full((size, 1), float(i)), torch.full((size,), i)) for i in range(count)]


def numbers(batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    return [int(targets[0]) for _, targets in batches]


def test_no_batch_is_in_two_sets_where_there_are_enough() -> None:
    found = split_batches(
        numbered(20), None, plan(window=5, spectrum_batches=2, held_out_samples=6), CPU
    )
    assert numbers(found.spectrum) == [0, 1]
    assert numbers(found.steps) == [2, 3, 4, 5, 6]
    assert numbers(found.held_out) == [7, 8, 9]  # three batches of two hold six samples
    assert found.notes == []
    assert found.size == 2


def test_validation_is_held_out_and_no_training_batch() -> None:
    found = split_batches(
        numbered(9), numbered(50, 3), plan(window=4, spectrum_batches=1, held_out_samples=7), CPU
    )
    assert numbers(found.steps) == [1, 2, 3, 4]
    assert numbers(found.held_out) == [0, 1, 2]
    assert len(found.held_out[0][1]) == 3


def test_few_batches_are_shared_out_and_it_is_said() -> None:
    found = split_batches(numbered(8), None, plan(window=20, spectrum_batches=1), CPU)
    assert numbers(found.held_out) == [6, 7]
    assert numbers(found.steps) == [1, 2, 3, 4, 5]
    assert found.notes == ["The 20 steps of a window take 5 different batches in turn."]


def test_one_batch_serves_for_all_and_it_is_said() -> None:
    found = split_batches(numbered(1)[0], None, plan(window=3), CPU)
    assert numbers(found.spectrum) == numbers(found.steps) == numbers(found.held_out) == [0]
    assert len(found.notes) == 3


def test_a_shuffling_loader_is_left_with_its_random_states() -> None:
    generator = torch.Generator().manual_seed(5)
    data = TensorDataset(torch.arange(40.0).unsqueeze(1), torch.arange(40))
    loader = DataLoader(data, 2, shuffle=True, generator=generator)
    before, globally = generator.get_state(), torch.get_rng_state()
    first, second = (
        split_batches(loader, None, plan(window=3, held_out_samples=4), CPU) for _ in range(2)
    )
    assert numbers(first.steps) == numbers(second.steps)
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), globally)


def test_an_iterator_is_refused() -> None:
    with pytest.raises(ValueError, match="only once"):
        split_batches(iter(numbered(3)), None, plan(), CPU)


def test_no_data_is_refused() -> None:
    with pytest.raises(ValueError, match="no batch"):
        split_batches([], None, plan(), CPU)
