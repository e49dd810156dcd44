"""Representations of a window of SGD as a truncated discrete Carleman system."""

from torch_qsgd.carleman.bounds import (
    Certificate,
    NoCertificate,
    certificate,
    homogeneous_bound,
    required_order,
)
from torch_qsgd.carleman.conditioning import condition_bound
from torch_qsgd.carleman.explicit import CarlemanSystem, SystemSize, system_size
from torch_qsgd.carleman.krylov import KrylovWindow, krylov_window
from torch_qsgd.carleman.polynomial import PolynomialMap, trajectory

__all__ = [
    "CarlemanSystem",
    "Certificate",
    "KrylovWindow",
    "NoCertificate",
    "PolynomialMap",
    "SystemSize",
    "certificate",
    "condition_bound",
    "homogeneous_bound",
    "krylov_window",
    "required_order",
    "system_size",
    "trajectory",
]
