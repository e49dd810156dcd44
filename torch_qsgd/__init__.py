"""Quantum SGD for PyTorch: train a pruned network by windows of a truncated Carleman system."""

from torch_qsgd.auditing import AuditReport, Thresholds, audit
from torch_qsgd.errors import DivergenceError, GraphError
from torch_qsgd.hessian import (
    DissipativityMonitor,
    HessianOperator,
    Spectrum,
    hessian_spectrum,
    layer_spectra,
    top_eigenpairs,
)
from torch_qsgd.optim import QuantumSGD
from torch_qsgd.records import WindowRecord

__all__ = [
    "AuditReport",
    "DissipativityMonitor",
    "DivergenceError",
    "GraphError",
    "HessianOperator",
    "QuantumSGD",
    "Spectrum",
    "Thresholds",
    "WindowRecord",
    "audit",
    "hessian_spectrum",
    "layer_spectra",
    "top_eigenpairs",
]
