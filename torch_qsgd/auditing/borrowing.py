"""Leaving a model as it was: its weights, its buffers, and the random states."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from torch_qsgd.cycle import displace


@contextlib.contextmanager
def displaced(params: Sequence[Tensor], displacement: Sequence[Tensor]) -> Iterator[None]:
    """Hold the weights elsewhere; on leaving, they are what they were, to the bit."""
    saved = [p.detach().clone() for p in params]
    try:
        with torch.no_grad():
            displace(params, displacement)
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(params), saved)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put the model's buffers back on leaving, and draw random numbers as :func:`drawing`."""
    buffers = list(model.buffers())
    saved = [b.clone() for b in buffers]
    with drawing(model, seed=0):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, copy in zip(buffers, saved, strict=True):
                    # A write, even of the same values, would spoil a graph that holds it.
                    if not torch.equal(buffer, copy):
                        buffer.copy_(copy)


@contextlib.contextmanager
def drawing(model: nn.Module, seed: int) -> Iterator[None]:
    """Draw the model's random numbers from a seed; the global states are what they were after."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed, which reaches devices that are not put back.
        torch.default_generator.manual_seed(seed)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
