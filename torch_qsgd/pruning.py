"""Masks: which weights stay active, and how to choose them.

A method maps named parameters and a density to boolean masks of their shapes, True where a weight
stays. Every method reaches ``round(density * n)`` active weights of n exactly.

References:
    [Evci2020] Evci et al., *Rigging the Lottery*, ICML 2020 (the ERK allocation).
    [Lee2019] Lee, Ajanthan, Torr, *SNIP*, ICLR 2019.
    [Tanaka2020] Tanaka et al., *Pruning neural networks without any data by iteratively conserving
    synaptic flow*, NeurIPS 2020.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torch_qsgd.errors import DivergenceError

Masks = dict[str, Tensor]

#: Rounds of the exponential schedule of [Tanaka2020].
_SYNFLOW_ROUNDS = 100


@dataclass(frozen=True)
class PruningContext:
    """What a method may look at beside the weights.

    Attributes:
        generator: source of randomness.
        previous: masks chosen last time, by name; empty at first.
        model, loss_fn, batch: for the methods in :data:`NEEDS_MODEL`; batch is (inputs, targets).
    """

    generator: torch.Generator
    previous: Mapping[str, Tensor]
    model: nn.Module | None = None
    loss_fn: Callable[..., Tensor] | None = None
    batch: tuple[Any, Any] | None = None


Method = Callable[[Mapping[str, Tensor], float, PruningContext], Masks]


def _largest(scores: Tensor, count: int) -> Tensor:
    """Mask of the ``count`` largest entries; among equals, the first. Cost: a selection, O(n)."""
    flat = scores.flatten()
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if count >= flat.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = torch.kthvalue(flat, flat.numel() - count + 1).values
    mask = flat > threshold
    ties = torch.nonzero(flat == threshold).flatten()
    mask[ties[: count - int(mask.sum())]] = True
    return mask.view(scores.shape)


def _global(scores: Mapping[str, Tensor], density: float) -> Masks:
    """Keep the largest scores wherever they are."""
    flat = torch.cat([s.flatten() for s in scores.values()])
    kept = _largest(flat, round(density * flat.numel()))
    parts = kept.split([s.numel() for s in scores.values()])
    return {name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


def _by_layer(scores: Mapping[str, Tensor], wanted: Mapping[str, float], density: float) -> Masks:
    """Keep the largest scores of each layer; ``wanted`` counts, rounded so that they add up."""
    total = round(density * sum(s.numel() for s in scores.values()))
    counts = {name: math.floor(w) for name, w in wanted.items()}
    by_remainder = sorted(wanted, key=lambda name: counts[name] - wanted[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return {name: _largest(s, counts[name]) for name, s in scores.items()}


def _absolute(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach().abs() for name, p in parameters.items()}


def magnitude(parameters: Mapping[str, Tensor], density: float, context: PruningContext) -> Masks:
    """The largest weights of all layers together."""
    return _global(_absolute(parameters), density)


def magnitude_layerwise(
    parameters: Mapping[str, Tensor], density: float, context: PruningContext
) -> Masks:
    """The largest weights of each layer, the same density in each."""
    wanted = {name: density * p.numel() for name, p in parameters.items()}
    return _by_layer(_absolute(parameters), wanted, density)


def erk(parameters: Mapping[str, Tensor], density: float, context: PruningContext) -> Masks:
    """The largest weights of each layer, densities by the Erdős–Rényi kernel rule [Evci2020].

    A layer's density is proportional to the sum over the product of its dimensions; a layer that
    would pass 1 is kept whole, and the others share what is left.
    """
    sizes = {name: p.numel() for name, p in parameters.items()}
    affinity = {name: float(sum(p.shape)) for name, p in parameters.items()}
    whole: set[str] = set()
    while True:
        rest = [name for name in sizes if name not in whole]
        budget = density * sum(sizes.values()) - sum(sizes[name] for name in whole)
        scale = budget / sum(affinity[name] for name in rest) if rest else 0.0
        crowded = {name for name in rest if scale * affinity[name] > sizes[name]}
        if not crowded:
            break
        whole |= crowded
    wanted = {
        name: float(sizes[name]) if name in whole else scale * affinity[name] for name in sizes
    }
    return _by_layer(_absolute(parameters), wanted, density)


def random(parameters: Mapping[str, Tensor], density: float, context: PruningContext) -> Masks:
    """Weights drawn at random; those of the previous mask first.

    A mask drawn afresh at each upload would throw the training away, so this control keeps its
    mask for as long as the density stays.
    """
    scores = {}
    for name, p in parameters.items():
        drawn = torch.rand(
            p.shape, generator=context.generator, device=context.generator.device
        ).to(p.device)
        if name in context.previous:
            drawn = drawn + context.previous[name]
        scores[name] = drawn
    return _global(scores, density)


@contextlib.contextmanager
def _borrowed(model: nn.Module, train: bool) -> Iterator[dict[str, Tensor]]:
    """Run the model without leaving a trace; yields copies of its buffers to run it with."""
    training = {module: module.training for module in model.modules()}
    devices = {p.device for p in model.parameters() if p.is_cuda}
    try:
        if not train:
            model.eval()
        with torch.random.fork_rng(devices=sorted(devices, key=str)), torch.enable_grad():
            yield {name: b.detach().clone() for name, b in model.named_buffers()}
    finally:
        for module, flag in training.items():
            module.training = flag


def _call(model: nn.Module, tensors: dict[str, Tensor], inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return torch.func.functional_call(model, tensors, (), dict(inputs))
    return torch.func.functional_call(
        model, tensors, tuple(inputs) if isinstance(inputs, list) else inputs
    )


def snip(parameters: Mapping[str, Tensor], density: float, context: PruningContext) -> Masks:
    """The weights whose removal changes the loss most to first order, \\|θ ∂L/∂θ\\| [Lee2019].

    Cost: one gradient evaluation on the batch.
    """
    assert context.model is not None
    assert context.loss_fn is not None
    assert context.batch is not None
    inputs, targets = context.batch
    with _borrowed(context.model, train=True) as buffers:
        loss = context.loss_fn(_call(context.model, buffers, inputs), targets)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    scores = {
        name: torch.zeros_like(p) if g is None else (p * g).abs().detach()
        for (name, p), g in zip(parameters.items(), gradients, strict=True)
    }
    _require_finite(scores, "snip")
    return _global(scores, density)


class _Linearised(TorchFunctionMode):
    """Leaves normalisations by the input's own statistics with their scale and shift only.

    They would undo the scale of what comes before them, and with it the conservation of flow.
    """

    _FUNCTIONS = (F.group_norm, F.instance_norm, F.layer_norm, F.rms_norm)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in self._FUNCTIONS:
            return func(*args, **(kwargs or {}))
        given = inspect.signature(func).bind(*args, **(kwargs or {})).arguments
        x, weight, bias = given["input"], given.get("weight"), given.get("bias")
        by_channel = func in (F.group_norm, F.instance_norm)
        shape = (-1, *[1] * (x.dim() - 2)) if by_channel else given["normalized_shape"]
        scaled = x if weight is None else x * weight.view(shape)
        return scaled if bias is None else scaled + bias.view(shape)


def synflow(parameters: Mapping[str, Tensor], density: float, context: PruningContext) -> Masks:
    """The weights that carry the most synaptic flow, \\|θ ∂R/∂θ\\| [Tanaka2020].

    R is the sum of the outputs of the network with every weight replaced by its absolute value,
    in eval mode, on an input of ones; normalisations by the input's own statistics keep their scale
    and shift only. The score is taken anew in 100 rounds on an exponential
    schedule of densities, so that no layer is cut off.

    Cost: 100 gradient evaluations on one input, in float64.
    """
    assert context.model is not None
    assert context.batch is not None
    model, inputs = context.model, context.batch[0]
    positive = {
        name: tensor.detach().double().abs() if tensor.is_floating_point() else tensor
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    strangers = [name for name, p in parameters.items() if p not in names]
    if strangers:
        raise ValueError(f"synflow: {', '.join(strangers)} not among the model's parameters")
    ours = {name: names[p] for name, p in parameters.items()}
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in parameters.items()}
    ones = _ones(inputs)
    for round_ in range(1, _SYNFLOW_ROUNDS + 1):
        active = {
            name: (positive[ours[name]] * masks[name]).requires_grad_() for name in parameters
        }
        tensors = {**positive, **{ours[name]: a for name, a in active.items()}}
        with _borrowed(model, train=False), _Linearised():
            flow = _call(model, tensors, ones).sum()
            gradients = torch.autograd.grad(flow, list(active.values()), allow_unused=True)
        scores = {
            name: torch.zeros_like(a) if g is None else (a * g).abs().detach()
            for (name, a), g in zip(active.items(), gradients, strict=True)
        }
        _require_finite(scores, "synflow")
        # What is out stays out, also where a score is zero.
        scores = {name: torch.where(masks[name], s, -1.0) for name, s in scores.items()}
        masks = _global(scores, density ** (round_ / _SYNFLOW_ROUNDS))
    return masks


def _ones(inputs: Any) -> Any:
    """One example of ones in the shape of the inputs; integer inputs (tokens) stay as they are."""
    if isinstance(inputs, Mapping):
        return {name: _ones(value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(_ones(value) for value in inputs)
    if not isinstance(inputs, Tensor):
        return inputs
    if not inputs.is_floating_point():
        return inputs[:1]
    return torch.ones_like(inputs[:1], dtype=torch.float64)


METHODS: dict[str, Method] = {
    "magnitude": magnitude,
    "magnitude-layerwise": magnitude_layerwise,
    "erk": erk,
    "random": random,
    "snip": snip,
    "synflow": synflow,
}

#: Methods that run the model, on a batch.
NEEDS_MODEL = frozenset({"snip", "synflow"})


def _require_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise DivergenceError(f"{what}: {name} holds NaN or infinite values; nothing pruned")


def choose_masks(
    method: str,
    parameters: Mapping[str, Tensor],
    density: float,
    context: PruningContext,
) -> Masks:
    """Choose masks by the named method.

    Args:
        method: a key of :data:`METHODS`.
        parameters: the prunable weights, by name.
        density: share of them that stays active, in (0, 1].
        context: what the method may look at beside the weights.

    Returns:
        Boolean masks, by name, with ``round(density * n)`` True in all.

    Raises:
        DivergenceError: where a weight is NaN or infinite.

    Warns:
        UserWarning: where a layer is left without a weight: nothing flows through it.

    Cost: a selection over all weights; ``snip`` one and ``synflow`` 100 gradient evaluations more.

    Example:
        >>> weights = {"w": torch.tensor([[3.0, -1.0], [0.5, -4.0]])}
        >>> context = PruningContext(torch.Generator(), {})
        >>> choose_masks("magnitude", weights, 0.5, context)["w"]
        tensor([[ True, False],
                [False,  True]])
    """
    _require_finite(parameters, "pruning")
    masks = METHODS[method](parameters, density, context)
    empty = [name for name, mask in masks.items() if not mask.any()]
    if empty:
        warnings.warn(
            f"pruning to density {density:g} by {method!r} left no weight in {', '.join(empty)}: "
            "choose a larger density, or 'magnitude-layerwise', 'erk' or 'synflow'",
            stacklevel=2,
        )
    return masks
