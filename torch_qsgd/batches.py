"""Batches of data: one, a list, or a loader; each pass over them sees the same."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Batch = tuple[Any, Any]

#: Number of terms that a batch's mean loss is a mean of.
Count = Callable[[Any, Any], float]


def forward(model: nn.Module, inputs: Any) -> Any:
    """Call the model: a tuple or list of inputs is unpacked, a mapping is passed by keyword."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in tuples, lists and mappings of tensors."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same tuples, lists and mappings, with the function of every tensor in them."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: mapped(part, function) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(part, function) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(part, function) for part in value)
    return value


def digest(tensors: Iterable[Tensor]) -> str:
    """A checksum of the bits of some tensors. Cost: one pass, about a second for 1 GB."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        bits = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        found.update(bits.numpy().data)
    return found.hexdigest()


def samples(inputs: Any, targets: Any) -> float:
    """Length of the first dimension of the targets, or of the inputs where there is none."""
    for tensor in (*tensors_in(targets), *tensors_in(inputs)):
        if tensor.dim():
            return float(len(tensor))
    raise ValueError(
        "a batch holds no tensor whose length tells its number of samples: give `count=`, a "
        "function of inputs and targets"
    )


class Batches:
    """Data as batches ``(inputs, targets)``; each pass over them gives the same ones.

    Args:
        data: one batch as a tuple ``(inputs, targets)``; or batches, as a list or a
            ``DataLoader``. A batch that is a mapping stands for ``(mapping, None)``.
        device: where they are moved to.
        memory: bytes of batches from a loader that may be kept. Beyond, it is iterated again at
            each pass, with the random states it had at the first: the same order and the same
            augmentation. What still differs, by its checksum, is refused.

    Raises:
        ValueError: where there is no batch, a batch is no pair, or a pass gives other batches.

    Cost: one pass over the data, the first time; a checksum a batch.
    """

    def __init__(self, data: Any, device: torch.device, memory: float) -> None:
        self._device = device
        self._memory = memory
        self._kept: list[Batch] | None = None
        self._digests: list[str] = []
        if isinstance(data, Iterator):
            raise ValueError(
                "data is an iterator, which can be gone through only once: give list(data), or "
                "what it was made from"
            )
        if _is_one_batch(data):
            self._kept = [self._checked(data)]
        elif isinstance(data, Tensor) or not isinstance(data, Iterable):
            raise ValueError(
                "data must be one batch as a tuple (inputs, targets), or an iterable of such "
                f"batches, got {type(data).__name__}; a Dataset belongs into a DataLoader"
            )
        self._data = data
        #: Whether there may be more than one batch.
        self.several = self._kept is None and not (isinstance(data, Sized) and len(data) == 1)
        self._states = _RandomStates(self._data)
        self.length: int | None = len(self._kept) if self._kept else None

    def __iter__(self) -> Generator[Batch, None, None]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Batch] | None = [] if self.length is None else None
        used, length = 0.0, 0
        with self._states.replayed():
            for given in self._data:
                self._compare(length, given)
                batch = self._checked(given)
                length += 1
                if kept is not None:
                    used += sum(t.numel() * t.element_size() for t in tensors_in(batch))
                    kept.append(batch)
                    kept = kept if used <= self._memory else None
                yield batch
        if self.length is not None and length != self.length:
            raise ValueError(
                f"data gave {self.length} batches at first and {length} now: give batches that "
                "are the same at each pass"
            )
        if not length:
            raise ValueError("data holds no batch")
        self.length = length
        self._kept = kept

    def _compare(self, index: int, batch: Any) -> None:
        found = digest(tensors_in(batch))
        if index == len(self._digests):
            self._digests.append(found)
        elif found != self._digests[index]:
            raise ValueError(
                f"batch {index + 1} differs from the one that an earlier pass gave, for the data "
                "draws random numbers that cannot be replayed (NumPy generators of its own, "
                "persistent workers): switch that off, or give a list of batches"
            )

    def _checked(self, batch: Any) -> Batch:
        if isinstance(batch, Mapping):
            batch = (batch, None)
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            what = f"a sequence of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise ValueError(
                "a batch must be a pair (inputs, targets), got "
                f"{what or type(batch).__name__}; inputs that are several belong into a tuple or "
                "a mapping"
            )
        inputs, targets = (
            mapped(part, lambda t: t.to(self._device, non_blocking=True)) for part in batch
        )
        return inputs, targets


def _is_one_batch(data: Any) -> bool:
    """A tuple or a mapping is a batch; so is what a loader yields, a list of two with a tensor."""
    if isinstance(data, (tuple, Mapping)):
        return True
    return isinstance(data, list) and len(data) == 2 and any(isinstance(d, Tensor) for d in data)


class _RandomStates:
    """The random states that iterating over data depends on, as they were at construction."""

    def __init__(self, data: Any) -> None:
        holders = [data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None)]
        holders.append(getattr(holders[2], "sampler", None))
        found = [getattr(holder, "generator", None) for holder in holders]
        self._generators = {id(g): g for g in found if isinstance(g, torch.Generator)}.values()
        self._start = self._read()

    def _read(self) -> tuple[Any, ...]:
        own = [generator.get_state() for generator in self._generators]
        return torch.get_rng_state(), random.getstate(), np.random.get_state(), own  # noqa: NPY002

    def _write(self, states: tuple[Any, ...]) -> None:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
        for generator, state in zip(self._generators, states[3], strict=True):
            generator.set_state(state)

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Start from the states at construction; on leaving, all are what they were."""
        before = self._read()
        self._write(self._start)
        try:
            yield
        finally:
            self._write(before)
