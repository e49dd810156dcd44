"""Derivatives of a loss that are right at every order."""

from torch_qsgd.derivatives.mode import (
    checkpoint_contexts,
    higher_derivatives,
    keep_graph,
    second_derivatives,
)
from torch_qsgd.derivatives.projected import projected_derivatives
from torch_qsgd.derivatives.taylor import loss_along_path, taylor_coefficients

__all__ = [
    "checkpoint_contexts",
    "higher_derivatives",
    "keep_graph",
    "loss_along_path",
    "projected_derivatives",
    "second_derivatives",
    "taylor_coefficients",
]
