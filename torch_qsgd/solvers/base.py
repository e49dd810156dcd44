"""What a linear solver is given, and what it returns."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class JetWindow:
    """The final block row of a window's Carleman system, in the jet representation.

    Attributes:
        jets: :math:`c_1 … c_N` after the window's last step, each one tensor a parameter.
        velocities: the momentum's jets, likewise; empty without momentum.
        steps: T, the number of block rows solved.
    """

    jets: Sequence[Sequence[Tensor]]
    velocities: Sequence[Sequence[Tensor]]
    steps: int


@dataclass(frozen=True)
class Solution:
    """What is read out of a solved window.

    Attributes:
        displacement: u = θ − θ*, one tensor a parameter, in the jets' dtype.
        momentum: the momentum buffer at the window's end; empty without momentum.
        error: Euclidean error made by the solver, relative to the displacement; 0 if exact.
    """

    displacement: list[Tensor]
    momentum: list[Tensor]
    error: float


class Solver(abc.ABC):
    """Solves a window's linear system. Members are small, stateless and picklable."""

    #: The name by which ``QuantumSGD(solver=...)`` finds the solver.
    name: str

    @abc.abstractmethod
    def solve(self, window: JetWindow) -> Solution:
        """Return the first block of the final block row; ``window`` is left as it was."""
