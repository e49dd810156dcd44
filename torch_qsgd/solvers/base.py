"""What a linear solver is given, and what it returns."""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, overload

import numpy as np
import torch
from torch import Tensor

from torch_qsgd.checks import checked_generator, require_integer
from torch_qsgd.errors import RepresentationError
from torch_qsgd.linear_system import LinearSystem, Vector, length

if TYPE_CHECKING:
    from torch_qsgd.readout import PostSelection


class ConditionWarning(UserWarning):
    """A solver was given a κ below the system's: its error may exceed what it promises."""


@dataclass(frozen=True)
class JetWindow:
    """The final block row of a window's Carleman system, in the jet representation.

    Attributes:
        jets: :math:`c_1 … c_N` after the window's last step, each one tensor a parameter.
        velocities: the momentum's jets, likewise; empty without momentum.
        steps: T, the number of block rows solved.
        masks: bool, True on active coordinates, one for each tensor of a jet, then of a velocity;
            ``None`` where all are. Empty where all are dense.
        idle: p, the steps that hold the final state.
        history: the length ‖Y‖ of the whole history state, and its rescaling γ; ``None`` where
            nothing has moved.

    Raises:
        ValueError: for no jets, or numbers of steps, tensors or masks that do not fit.
    """

    jets: Sequence[Sequence[Tensor]]
    velocities: Sequence[Sequence[Tensor]]
    steps: int
    masks: Sequence[Tensor | None] = ()
    idle: int = 0
    history: PostSelection | None = None

    def __post_init__(self) -> None:
        require_integer("steps", self.steps, 0)
        require_integer("idle", self.idle, 0)
        for name, rows in (("jets", self.jets), ("velocities", self.velocities)):
            if len({len(row) for row in rows}) > 1:
                raise ValueError(f"all {name} must have the same number of tensors")
        if not self.jets or not self.jets[0]:
            raise ValueError("a window needs one jet of one tensor at least")
        tensors = len(self.jets[0]) + (len(self.velocities[0]) if self.velocities else 0)
        if self.masks and len(self.masks) != tensors:
            raise ValueError(
                f"give a mask, or None, for each of {tensors} tensors, or none at all: got "
                f"{len(self.masks)}"
            )


@dataclass(frozen=True)
class Solution:
    r"""What a solver returns of :math:`\mathcal{L} x = b`.

    Attributes:
        vector: :math:`\approx \mathcal{L}^{-1} b`, of shape (D,), float64; its length and sign
            are recovered, not only its direction.
        scale: :math:`\|x\|`, as the algorithm recovers it: the length of ``vector``.
        success_probability: of one run's post-selection, in (0, 1].
        queries: how often one run calls :math:`\mathcal{L}` (its block encoding, or
            :math:`e^{i\mathcal{L}t}`, or their inverses); 0 for a classical solver.
        error: :math:`\|vector − x\| / \|x\|` with the exact x.
    """

    vector: Vector
    scale: float
    success_probability: float
    queries: int
    error: float


@dataclass(frozen=True)
class JetSolution:
    """What a solver returns of a window in the jet representation.

    Attributes:
        displacement: u = θ − θ*, one tensor a parameter, in the jets' dtype.
        momentum: the momentum buffer at the window's end; empty without momentum.
        success_probability, queries: as in :class:`Solution`.
        error: Euclidean error made by the solver, relative to the displacement; 0 if exact.
    """

    displacement: list[Tensor]
    momentum: list[Tensor]
    success_probability: float
    queries: int
    error: float


class Solver(abc.ABC):
    """Solves linear systems. Members are small, stateless and picklable."""

    #: The name by which ``QuantumSGD(solver=...)`` finds the solver.
    name: ClassVar[str]
    #: The forms of a window it can solve.
    representations: ClassVar[frozenset[str]] = frozenset({"krylov", "explicit"})

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @property
    def largest(self) -> float:
        """The most unknowns of a system without symmetry that it takes."""
        return math.inf

    @overload
    def solve(self, system: LinearSystem, generator: torch.Generator | None = None) -> Solution: ...
    @overload
    def solve(self, system: JetWindow, generator: torch.Generator | None = None) -> JetSolution: ...
    def solve(
        self, system: LinearSystem | JetWindow, generator: torch.Generator | None = None
    ) -> Solution | JetSolution:
        """Solve a system, or a window in the jet representation; it is left as it was.

        Args:
            system: what to solve.
            generator: the source of all randomness; by default one with seed 0.

        Raises:
            RepresentationError: for a window in jets, where the solver needs a linear system.
            SingularSystemError: where there is no solution.
            ValueError: where the solution over- or underflows.
            TypeError: for anything else than these.
        """
        generator = checked_generator(generator)
        if isinstance(system, JetWindow):
            return self._solve_jets(system, generator)
        if not isinstance(system, LinearSystem):
            raise TypeError(
                f"a solver takes a LinearSystem or a JetWindow, got {type(system).__name__}"
            )
        return self._solve_linear(system, generator)

    @abc.abstractmethod
    def _solve_linear(self, system: LinearSystem, generator: torch.Generator) -> Solution: ...

    def _solve_jets(self, window: JetWindow, generator: torch.Generator) -> JetSolution:
        raise RepresentationError(
            f"the {self.name!r} solver needs a linear system, which the jet representation never "
            "builds: use representation='krylov' or 'explicit'"
        )


def solution_of(
    system: LinearSystem, vector: Vector, success_probability: float, queries: int
) -> Solution:
    """A :class:`Solution` with its error measured against the exact one."""
    exact = system.solution
    return Solution(
        vector=vector,
        scale=length(vector),
        success_probability=success_probability,
        queries=queries,
        error=length(vector - exact) / length(exact),
    )


def warn_of_kappa(given: float | None, measured: float, consequence: str) -> None:
    """Warn where the κ that a solver was given is less than the system's.

    Warns:
        ConditionWarning: of the caller's caller.
    """
    if given is not None and given < measured * (1 - 1e-9):
        warnings.warn(
            f"kappa={given:.6g} is less than the system's {measured:.6g}: {consequence}",
            ConditionWarning,
            stacklevel=3,
        )


def numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """A NumPy generator seeded by PyTorch's, which moves on by one draw."""
    seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
    return np.random.default_rng(int(seed))
