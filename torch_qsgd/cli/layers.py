"""Layers of a model by name."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from torch_qsgd.hessian import HessianOperator
from torch_qsgd.names import nearest

_MOST_NAMED = 20


def owner(parameter: str) -> str:
    """Name of the module that owns a parameter; the parameter's own where that is the model."""
    return parameter.rpartition(".")[0] or parameter


def require_layers(model: nn.Module, patterns: Sequence[str]) -> None:
    """Refuse a pattern that no layer of the model matches.

    Args:
        model: whose layers are meant.
        patterns: names of modules or parameters, or patterns, as
            :class:`.HessianOperator` takes them.

    Raises:
        ValueError: with the layers that there are.

    Example:
        >>> require_layers(nn.Sequential(nn.Linear(2, 1), nn.Tanh()), ["1"])
        Traceback (most recent call last):
            ...
        ValueError: no layer '1'. Layers: 0
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    layers = list(dict.fromkeys(map(owner, names)))
    for pattern in patterns:
        if any(
            fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.*")
            for name in names
        ):
            continue
        near = nearest(pattern, [*layers, *names])
        hint = f"; did you mean {near!r}?" if near else "."
        some = ", ".join([*layers[:_MOST_NAMED], *(["…"] if len(layers) > _MOST_NAMED else [])])
        raise ValueError(f"no layer {pattern!r}{hint} Layers: {some}")


def layer_blocks(
    operator: HessianOperator, masks: Mapping[str, Tensor] | None
) -> dict[str, HessianOperator]:
    """The diagonal block of every module that owns active weights, by the module's name."""
    owned: dict[str, list[str]] = {}
    for name in operator.parameter_names:
        if masks is None or name not in masks or bool(masks[name].any()):
            owned.setdefault(owner(name), []).append(name)
    return {layer: operator.block(names) for layer, names in owned.items()}
