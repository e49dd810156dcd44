"""What a quantum computer would cost: the ledger."""

from torch_qsgd.resources.account import SOLVER, SOLVERS, ledger
from torch_qsgd.resources.ledger import Entry, Ledger, ScalingCurve
from torch_qsgd.resources.plots import plot_ledger, plot_scaling
from torch_qsgd.resources.scaling import crossing, scaling
from torch_qsgd.resources.window import WindowSize

__all__ = [
    "SOLVER",
    "SOLVERS",
    "Entry",
    "Ledger",
    "ScalingCurve",
    "WindowSize",
    "crossing",
    "ledger",
    "plot_ledger",
    "plot_scaling",
    "scaling",
]
