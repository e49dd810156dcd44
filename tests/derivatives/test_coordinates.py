"""Vectors of active coordinates and the tensors they stand for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.cases import randn
from torch_qsgd.derivatives.coordinates import Coordinates


@given(st.integers(0, 2**12 - 1), st.integers(0, 2**6 - 1))
def test_there_and_back(first: int, second: int) -> None:
    parameters = [randn(3, 4), randn(6, seed=1)]
    masks = [
        torch.tensor([bool(first >> i & 1) for i in range(12)]).view(3, 4),
        torch.tensor([bool(second >> i & 1) for i in range(6)]),
    ]
    coordinates = Coordinates(parameters, masks)
    keep = torch.cat([m.flatten() for m in masks])
    assert coordinates.size == int(keep.sum())
    vector = randn(coordinates.size, seed=2)
    tensors = coordinates.unflatten(vector)
    whole = torch.cat([t.flatten() for t in tensors])
    assert torch.equal(whole[keep], vector)
    assert not whole[~keep].any()
    assert torch.equal(coordinates.flatten(tensors), vector)


def test_channels_last_keeps_order_and_format() -> None:
    weight = randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    coordinates = Coordinates([weight])
    vector = randn(48)
    (tensor,) = coordinates.unflatten(vector)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(tensor.flatten(), vector)
    assert torch.equal(coordinates.flatten([weight]), weight.flatten())
    (plain,) = coordinates.unflatten(vector, keep_format=False)
    assert plain.is_contiguous()


def test_dtypes_and_missing_tensors() -> None:
    coordinates = Coordinates([torch.ones(2, dtype=torch.bfloat16), torch.ones(3)])
    assert coordinates.dtype == torch.float32
    assert coordinates.flatten([None, torch.ones(3)]).tolist() == [0, 0, 1, 1, 1]
    half, single = coordinates.unflatten(torch.arange(5.0))
    assert (half.dtype, single.dtype) == (torch.bfloat16, torch.float32)
    assert Coordinates([torch.ones(2).double(), torch.ones(3)]).dtype == torch.float64


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a mask has shape \(3,\) beside a parameter of shape"):
        Coordinates([torch.ones(2)], [torch.ones(3, dtype=torch.bool)])
