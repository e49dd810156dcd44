"""Linear solvers for a window's Carleman system, behind one interface."""

from torch_qsgd.names import by_name
from torch_qsgd.solvers.base import (
    ConditionWarning,
    JetSolution,
    JetWindow,
    Solution,
    Solver,
)
from torch_qsgd.solvers.circuit import Circuit
from torch_qsgd.solvers.exact import Exact
from torch_qsgd.solvers.hhl import HHL
from torch_qsgd.solvers.noise import Noise
from torch_qsgd.solvers.qsvt import QSVT

__all__ = [
    "HHL",
    "QSVT",
    "Circuit",
    "ConditionWarning",
    "Exact",
    "JetSolution",
    "JetWindow",
    "Noise",
    "Solution",
    "Solver",
    "resolve",
]

_SOLVERS: dict[str, type[Solver]] = {
    solver.name: solver for solver in (Exact, HHL, QSVT, Circuit, Noise)
}


def resolve(solver: str | Solver) -> Solver:
    """Return the solver of that name, or the instance itself.

    Raises:
        ValueError: for a name that is not known.
        TypeError: for anything but a name or a :class:`Solver`.

    Example:
        >>> resolve("exact").name
        'exact'
    """
    return by_name(solver, Solver, _SOLVERS, "solver")  # type: ignore[type-abstract]
