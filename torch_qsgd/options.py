"""The options of a parameter group: their checks, in the words of a user."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torch_qsgd.checks import require_one_of
from torch_qsgd.pruning import METHODS

#: Options of the cycle, which all parameters go through together: equal in every group.
SHARED = ("window", "order", "classical_steps", "tolerance")


def _require(holds: bool, name: str, given: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {given!r}")


def _require_integer(options: dict[str, Any], name: str, least: int) -> None:
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    _require(value >= least, name, value, f"at least {least}")


def check_options(options: dict[str, Any]) -> None:
    """Raise ``ValueError`` or ``TypeError`` for an option outside what is allowed."""
    lr = options["lr"]
    if isinstance(lr, Tensor):
        _require(lr.numel() == 1, "lr", lr, "a number or a one-element tensor")
    for name in ("lr", "momentum", "dampening", "weight_decay", "density", "tolerance"):
        if isinstance(options[name], bool) or not isinstance(options[name], (int, float, Tensor)):
            raise TypeError(f"{name} must be a number, got {type(options[name]).__name__}")
    for name in ("lr", "momentum", "weight_decay"):
        value = float(options[name])
        _require(value >= 0 and math.isfinite(value), name, options[name], "finite and at least 0")
    _require(math.isfinite(options["dampening"]), "dampening", options["dampening"], "finite")
    _require(
        not options["nesterov"] or (options["momentum"] > 0 and options["dampening"] == 0),
        "nesterov",
        True,
        "used with momentum > 0 and dampening = 0",
    )
    _require(0 < options["density"] <= 1, "density", options["density"], "in (0, 1]")
    require_one_of("pruning", options["pruning"], tuple(METHODS))
    _require_integer(options, "window", 0)
    _require_integer(options, "order", 1)
    _require_integer(options, "classical_steps", 0)
    _require(options["tolerance"] > 0, "tolerance", options["tolerance"], "above 0")
    _require(
        options["order"] > 1 or math.isinf(options["tolerance"]),
        "tolerance",
        options["tolerance"],
        "inf at order 1, where the ratio ‖c_N‖/‖c_1‖ is always 1",
    )


def check_parameters(group: dict[str, Any]) -> None:
    """Raise for a group without parameters, or with one that cannot be trained here."""
    params = group["params"]
    if not params:
        raise ValueError("a parameter group is empty: give it at least one parameter")
    for p in params:
        if not torch.is_floating_point(p):
            raise TypeError(
                f"parameters must be real floating-point tensors, got one of dtype {p.dtype} and "
                f"shape {tuple(p.shape)}: leave it out of the optimizer"
            )


def check_shared(group: dict[str, Any], first: dict[str, Any]) -> None:
    """Raise where a group asks for another cycle than the first group."""
    for name in SHARED:
        if group[name] != first[name]:
            raise ValueError(
                f"{name} is shared by all parameter groups, which one window holds together: "
                f"got {group[name]!r} beside {first[name]!r}"
            )
