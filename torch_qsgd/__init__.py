"""Quantum SGD for PyTorch: train a pruned network by windows of a truncated Carleman system."""

from torch_qsgd.errors import DivergenceError, GraphError
from torch_qsgd.optim import QuantumSGD
from torch_qsgd.records import WindowRecord

__all__ = ["DivergenceError", "GraphError", "QuantumSGD", "WindowRecord"]
