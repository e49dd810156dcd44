"""Second derivatives of the mean loss over batches, with the graphs that memory allows to keep."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from torch_qsgd.batches import Batches, Count, forward
from torch_qsgd.derivatives import second_derivatives
from torch_qsgd.derivatives.coordinates import Coordinates
from torch_qsgd.derivatives.graph import saved_bytes
from torch_qsgd.derivatives.products import CurvatureGraph, GaussNewtonGraph, HessianGraph
from torch_qsgd.errors import DivergenceError, GraphError, SizeError

LossFunction = Callable[..., Tensor]

#: Share of the free memory that batches and graphs may take unless told otherwise.
_SHARE = 0.5


def free_memory(device: torch.device) -> float:
    """Bytes that can still be taken on a device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)


class Curvature:
    """The Hessian (or Gauss–Newton matrix) over all of some parameters, as a sum over batches.

    Args:
        model, loss_fn: ``loss_fn(model(inputs), targets)`` is a batch's loss.
        parameters: the leaves.
        batches: the data.
        kind: ``"hessian"`` or ``"ggn"``.
        count: terms that a batch's mean loss is a mean of; ``None`` where losses are sums.
        keep_graph: ``"auto"``, True, or False.
        memory: bytes that graphs may take; ``None`` for half of what is free.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        parameters: Sequence[Tensor],
        batches: Batches,
        kind: str,
        count: Count | None,
        keep_graph: str | bool,
        memory: float | None,
    ) -> None:
        self.model = model
        self.parameters = list(parameters)
        self.products = 0
        self._loss_fn = loss_fn
        self._batches = batches
        self._kind = kind
        self._count = count
        self._keep_graph = keep_graph
        self._memory = memory
        self._kept: list[tuple[CurvatureGraph, float]] = []
        self._held = 0  # bytes of the kept graphs; measured from the second batch on
        self._whole = False  # whether every batch's graph is kept
        self._versions = self._read_versions()
        device = self.parameters[0].device.type
        #: Graphs made later must be of the same precision as those made now.
        self.autocast = torch.is_autocast_enabled(device)
        self._precision = device, torch.get_autocast_dtype(device)

    def _read_versions(self) -> list[int]:
        return [p._version for p in self.model.parameters()]

    # ---- Graphs ------------------------------------------------------------------------------

    def build(self, index: int, inputs: Any, targets: Any) -> tuple[CurvatureGraph, float]:
        """One batch's graph, and the weight of its loss; the model is left as it was.

        Raises:
            DivergenceError: where the loss is NaN or infinite.
        """
        where = f"batch {index + 1}"
        with (
            _memory_errors(f"the graph of {where}"),
            self._untouched(seed=index),
            second_derivatives(),
            torch.enable_grad(),
        ):
            outputs, loss = self._evaluated(where, inputs, targets)
            graph: CurvatureGraph
            if self._kind == "ggn":
                graph = GaussNewtonGraph(
                    outputs, lambda z: self._loss_fn(z, targets), self.parameters
                )
            else:
                graph = HessianGraph(loss, self.parameters)
        return graph, self.terms(where, inputs, targets)

    def _evaluated(self, where: str, inputs: Any, targets: Any) -> tuple[Any, Tensor]:
        device, dtype = self._precision
        with torch.autocast(device, dtype, enabled=self.autocast, cache_enabled=False):
            outputs = forward(self.model, inputs)
            loss = self._loss_fn(outputs, targets)
        self._require_loss(loss, where)
        return outputs, loss

    def gradient(self, inputs: Any, targets: Any) -> list[Tensor | None]:
        """Of one batch's loss, without a graph; the model is left as it was."""
        with self._untouched(seed=0), torch.enable_grad():
            _, loss = self._evaluated("a part of batch 1", inputs, targets)
            return list(torch.autograd.grad(loss, self.parameters, allow_unused=True))

    def terms(self, where: str, inputs: Any, targets: Any) -> float:
        """The weight of a batch's loss in the sum over batches."""
        terms = 1.0 if self._count is None else float(self._count(inputs, targets))
        if not (math.isfinite(terms) and terms > 0):
            raise ValueError(f"{where} counts {terms} terms: a batch's count must be above 0")
        return terms

    def _require_loss(self, loss: Any, where: str) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss_fn must return one number, got {shape} on {where}")
        if not math.isfinite(loss.detach()):
            raise DivergenceError(
                f"the loss on {where} is {float(loss.detach())}: it has no Hessian. Look at the "
                "weights and at the data"
            )
        if not loss.requires_grad:
            raise GraphError(
                f"the loss on {where} does not depend on the parameters: it was detached, or "
                "computed under torch.no_grad or torch.inference_mode"
            )

    @contextlib.contextmanager
    def _untouched(self, seed: int) -> Iterator[None]:
        """Put back buffers and random states; dropout draws the same numbers for a batch."""
        modules = list(self.model.modules())
        held = [dict(module._buffers) for module in modules]
        buffers = list(self.model.buffers())
        copies = [b.clone() for b in buffers]
        flags = [(module, module.training) for module in self.model.modules()]
        devices = sorted({p.device.index or 0 for p in self.parameters if p.device.type == "cuda"})
        with torch.random.fork_rng(devices=devices):
            # Not torch.manual_seed, which reaches devices that are not put back.
            torch.default_generator.manual_seed(seed)
            for index in devices:
                torch.cuda.default_generators[index].manual_seed(seed)
            try:
                yield
            finally:
                for module, known in zip(modules, held, strict=True):
                    module._buffers.update(known)  # where a new tensor took a buffer's place
                with torch.no_grad():
                    for buffer, copy in zip(buffers, copies, strict=True):
                        # A write, even of the same values, would spoil graphs that hold it.
                        if not torch.equal(buffer, copy):
                            buffer.copy_(copy)
                for module, flag in flags:
                    module.training = flag

    def graphs(self) -> Iterator[tuple[CurvatureGraph, float]]:
        """Every batch's graph and weight; kept ones first, in the batches' order."""
        if self._read_versions() != self._versions:
            raise GraphError(
                "the parameters have changed since this operator was made: make a new one at the "
                "present weights"
            )
        yield from list(self._kept)
        if self._whole:
            return
        known = len(self._kept)
        keeping = self._keep_graph is not False
        with contextlib.closing(iter(self._batches)) as batches:
            for index, batch in enumerate(itertools.islice(batches, known, None), known):
                built = self.build(index, *batch)
                if keeping and self._fits(built[0], index):
                    self._kept.append(built)
                else:
                    keeping = False
                yield built
        self._whole = len(self._kept) == self._batches.length

    def keep(self, graph: CurvatureGraph, terms: float) -> None:
        """Take over the first batch's graph, where graphs are kept."""
        if self._keep_graph is not False and not self._kept:
            self._kept.append((graph, terms))

    def _fits(self, graph: CurvatureGraph, index: int) -> bool:
        # One graph is needed for a product in any case.
        if self._keep_graph is True or index == 0:
            return True
        if index == 1:
            self._held = saved_bytes(self._kept[0][0].roots)
        if self._memory is None:  # what graphs hold already counts as free
            self._memory = _SHARE * (free_memory(self.parameters[0].device) + self._held)
        size = saved_bytes(graph.roots)
        if self._held + size > self._memory:
            return False
        self._held += size
        return True

    def close(self) -> None:
        """Free the graphs; the next product makes them again."""
        self._kept.clear()
        self._whole = False

    # ---- Products ----------------------------------------------------------------------------

    def multiply(
        self, vectors: Tensor, coordinates: Coordinates, chosen: Sequence[int]
    ) -> tuple[Tensor, float, float]:
        """Σ_b c_b/c_1 H_b V, of shape (n, k), then Σ_b c_b/c_1 and c_1: one batch needs no scaling.

        Args:
            vectors: V, of shape (n, k).
            coordinates: of the chosen parameters.
            chosen: their positions.

        Cost: k products a batch, and a gradient for each batch whose graph is not kept.
        """
        k = vectors.shape[1]
        totals: list[Tensor | None] = [None] * k
        first, weight = 0.0, 0.0
        for graph, terms in self.graphs():
            first = first or terms
            kept = any(graph is known for known, _ in self._kept)
            for j in range(k):
                directions = coordinates.unflatten(vectors[:, j])
                with _memory_errors("a product"):
                    tensors = graph.product(directions, chosen, last=not kept and j == k - 1)
                    product = coordinates.flatten(tensors)
                del tensors
                total = totals[j]
                totals[j] = product if total is None else total.add_(product, alpha=terms / first)
            weight += terms / first
        self.products += k
        columns = [total for total in totals if total is not None]
        stacked = columns[0].unsqueeze(1) if k == 1 else torch.stack(columns, dim=1)
        return stacked, weight, first


@contextlib.contextmanager
def _memory_errors(what: str) -> Iterator[None]:
    """PyTorch's out-of-memory errors, with what to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        cause: Exception = error
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        cause = error
    else:
        return
    raise SizeError(
        f"{what} does not fit into memory: give the data in smaller batches (their mean is the "
        f"same), keep_graph=False, or fewer layers. PyTorch says: {cause}"
    ) from cause
