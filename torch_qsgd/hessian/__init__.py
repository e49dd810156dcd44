"""Hessian spectra of any PyTorch model, and the monitor that ends windows by them.

Useful alone: ``hessian_spectrum(model, loss_fn, data)`` needs nothing else of the package.
"""

from torch_qsgd.hessian.dissipativity import ErrorProxy
from torch_qsgd.hessian.eigenpairs import Eigenpairs, eigenpairs_of, top_eigenpairs
from torch_qsgd.hessian.estimate import hessian_spectrum, layer_spectra, spectrum_of
from torch_qsgd.hessian.history import MonitorHistory
from torch_qsgd.hessian.monitor import DissipativityMonitor
from torch_qsgd.hessian.operator import HessianOperator
from torch_qsgd.hessian.spectrum import Spectrum

__all__ = [
    "DissipativityMonitor",
    "Eigenpairs",
    "ErrorProxy",
    "HessianOperator",
    "MonitorHistory",
    "Spectrum",
    "eigenpairs_of",
    "hessian_spectrum",
    "layer_spectra",
    "spectrum_of",
    "top_eigenpairs",
]
