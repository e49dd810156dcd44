"""Derivatives of a loss that are right at every order."""

from torch_qsgd.derivatives.mode import higher_derivatives, keep_graph
from torch_qsgd.derivatives.taylor import loss_along_path, taylor_coefficients

__all__ = ["higher_derivatives", "keep_graph", "loss_along_path", "taylor_coefficients"]
