r"""Masked SGD beside a window, whose displacement is not rounded to the weights' precision.

In float32 a weight of 1 takes no step shorter than 6e-8: SGD's weights themselves then say nothing
of a small learning rate. So the displacement u, and the momentum, are held in float64, and the
gradient is taken at θ* + u rounded to the model's data type.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_qsgd.auditing.borrowing import untouched
from torch_qsgd.batches import forward
from torch_qsgd.derivatives.coordinates import working_dtype
from torch_qsgd.optim import QuantumSGD
from torch_qsgd.training import LossFunction


class Twin:
    """SGD by the rule of ``torch.optim.SGD``, which can take its last step back for good.

    Args:
        model: at the anchor; it is copied.
        optimizer: in a window that has just been opened: masks, options and momentum are its own.
        loss_fn: of outputs and targets.

    Attributes:
        model: the copy, whose weights are θ* + u, rounded.
        steps: how many it has taken.

    Cost: a copy of the model, and of its weights, and u and its momentum in float64; one gradient
    evaluation a step.
    """

    def __init__(self, model: nn.Module, optimizer: QuantumSGD, loss_fn: LossFunction) -> None:
        memo: dict[int, Any] = {}
        self.model = copy.deepcopy(model, memo)
        self.steps = 0
        self._optimizer, self._loss_fn = optimizer, loss_fn
        self._sources = optimizer._trainable()
        self._weights: list[Tensor] = [memo[id(p)] for p in self._sources]
        self._anchor = [p.detach().clone() for p in self._sources]
        self._moved = [torch.zeros_like(p, dtype=torch.float64) for p in self._anchor]
        self._velocity: list[Tensor | None] = []
        for p in self._sources:
            buffer = optimizer.state[p].get("momentum_buffer")
            self._velocity.append(None if buffer is None else buffer.double())
        self._before = (self._moved, [b.clone() for b in self.model.buffers()])

    def step(self, inputs: Any, targets: Any) -> None:
        """One step of masked SGD."""
        self._before = (list(self._moved), [b.clone() for b in self.model.buffers()])
        gradients = self._gradients(inputs, targets)
        for group, places in self._optimizer._by_group(self._sources):
            for i in places:
                gradient = gradients[i]
                if gradient is not None:
                    step = self._slope(i, gradient, group)
                    self._moved[i] = self._moved[i] - float(group["lr"]) * step
        self._settle()
        self.steps += 1

    def step_back(self) -> None:
        """Weights and buffers as before the last step; momentum is not put back."""
        self._moved, buffers = list(self._before[0]), self._before[1]
        with torch.no_grad():
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        self._settle()
        self.steps -= 1

    def displacement(self) -> list[Tensor]:
        """u, of each trainable parameter, in float64."""
        return list(self._moved)

    def finite(self) -> bool:
        """Whether u and the weights are finite."""
        return math.isfinite(length(self._moved)) and math.isfinite(length(self._weights))

    def rounding(self, inputs: Any, targets: Any) -> float:
        r"""Relative error of u that comes of the weights' precision, an estimate.

        .. math::
            \frac{T}{\|u\|} \Bigl\|\frac{\eta}{1 - \mu} (g' - g)\Bigr\| + \sqrt T \epsilon

        of the gradient g and of g′ at weights that are moved by one unit of rounding each, to
        random sides, as if all T steps made this error to the same side; and of jets that round
        by ε a step, each to a side of its own. With momentum μ, 1/(1 − μ) is T at most.

        Args:
            inputs, targets: a batch to take both gradients on; each draws the same random numbers.

        Returns:
            The estimate: NaN before the first step, infinite where u is zero.

        Cost: two gradient evaluations.
        """
        way = length(self._moved)
        if not self.steps:
            return math.nan
        if way == 0:
            return math.inf
        with untouched(self.model):
            here = self._gradients(inputs, targets)
        generator = torch.Generator().manual_seed(0)
        try:
            with torch.no_grad():
                for weight in self._weights:
                    sides = torch.randint(2, weight.shape, generator=generator) * 2 - 1
                    unit = torch.finfo(weight.dtype).eps * weight.double().abs()
                    weight.copy_(weight.double() + unit * sides.to(weight.device))
            with untouched(self.model):
                there = self._gradients(inputs, targets)
        finally:
            self._settle()
        gaps = []
        for group, places in self._optimizer._by_group(self._sources):
            counted = min(1 / max(1 - group["momentum"], 1e-12), self.steps)
            for i in places:
                pair = here[i], there[i]
                if pair[0] is not None and pair[1] is not None:
                    gaps.append(float(group["lr"]) * counted * (pair[1] - pair[0]))
        coarsest = max(torch.finfo(working_dtype(p.dtype)).eps for p in self._weights)
        return self.steps * length(gaps) / way + math.sqrt(self.steps) * coarsest

    def _gradients(self, inputs: Any, targets: Any) -> list[Tensor | None]:
        """Of the loss, masked, in float64; none for weights that it does not depend on."""
        self.model.zero_grad()
        with torch.enable_grad():
            self._loss_fn(forward(self.model, inputs), targets).backward()
        found: list[Tensor | None] = []
        for p, source in zip(self._weights, self._sources, strict=True):
            mask = self._optimizer.masks.get(source)
            gradient = None if p.grad is None else p.grad.double()
            found.append(gradient if gradient is None or mask is None else gradient * mask)
        return found

    def _slope(self, i: int, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """What the learning rate multiplies."""
        slope = -gradient if group["maximize"] else gradient
        if group["weight_decay"]:
            slope = slope + group["weight_decay"] * (self._anchor[i] + self._moved[i])
        momentum = group["momentum"]
        if not momentum:
            return slope
        before = self._velocity[i]
        velocity = slope if before is None else momentum * before + (1 - group["dampening"]) * slope
        self._velocity[i] = velocity
        return slope + momentum * velocity if group["nesterov"] else velocity

    def _settle(self) -> None:
        with torch.no_grad():
            for p, anchor, moved in zip(self._weights, self._anchor, self._moved, strict=True):
                p.copy_(anchor + moved)


def length(tensors: Sequence[Tensor]) -> float:
    """Euclidean length in float64, in which lengths of float32 do not overflow."""
    lengths = (torch.linalg.vector_norm(t.detach(), dtype=torch.float64) for t in tensors)
    return math.hypot(*map(float, lengths))
