"""What a form of the window must do, so that the cycle need not know which it is."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from torch_qsgd.errors import RepresentationError
from torch_qsgd.readout import Reading
from torch_qsgd.solvers import JetSolution, Solution, Solver

if TYPE_CHECKING:
    from torch_qsgd.state import WindowState

Gradients = Sequence[Tensor | None]
Rows = list[list[Tensor]]


@dataclass(frozen=True)
class Advance:
    """What one step has done to an open window.

    Attributes:
        loss_change: the batch's loss at the weights the step started from, less its loss at the
            anchor, by the window's own series.
        jet_norms: ‖c_1‖ … ‖c_N‖ after the step.
    """

    loss_change: float
    jet_norms: list[float]


@dataclass(frozen=True)
class Outcome:
    """A solved window, as read out.

    Attributes:
        params: the parameters that move.
        displacement: u, one tensor each.
        with_momentum, momentum: the parameters with momentum, and their buffers.
        facts: what the solver and the readout report, by the names of ``WindowRecord``.
    """

    params: list[Tensor]
    displacement: list[Tensor]
    with_momentum: list[Tensor] = field(default_factory=list)
    momentum: list[Tensor] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def reported(solution: Solution | JetSolution, reading: Reading[Any] | None) -> dict[str, Any]:
    """What solver and readout report, by the names of ``WindowRecord``."""
    facts: dict[str, Any] = {
        "solver_error": solution.error,
        "success_probability": solution.success_probability,
        "queries": solution.queries,
    }
    if reading is not None:
        facts.update(
            copies=reading.copies,
            expected_copies=reading.expected_copies,
            guaranteed_copies=reading.guaranteed_copies,
            readout_error=reading.error,
        )
    return facts


class Representation(abc.ABC):
    """A form of the window. Members hold options only; what lasts is in the optimizer's state."""

    #: The name by which ``QuantumSGD(representation=...)`` finds it.
    name: ClassVar[str]

    def require_solver(self, solver: Solver) -> None:
        """Raise ``RepresentationError`` where the solver cannot serve this form."""
        if self.name not in solver.representations:
            served = " or ".join(repr(name) for name in sorted(solver.representations))
            raise RepresentationError(
                f"solver {solver.name!r} cannot serve representation {self.name!r}: use "
                f"representation={served}, or another solver"
            )

    def check(self, group: dict[str, Any], first: dict[str, Any], solver: Solver) -> None:  # noqa: B027
        """Raise ``ValueError`` for a group's options that this form cannot serve."""

    @abc.abstractmethod
    def tensors(self, group: dict[str, Any]) -> list[str]:
        """Names of the tensors in a parameter's state, each of its shape."""

    @abc.abstractmethod
    def needs_derivatives(self, opt: WindowState) -> bool:
        """Whether the next step of the open window needs more than a gradient."""

    @abc.abstractmethod
    def differentiate(
        self, opt: WindowState, gradients: Gradients, params: list[Tensor], continued: bool
    ) -> Rows:
        """The derivatives one step needs, linear in the loss, without a graph.

        Args:
            opt: the optimizer.
            gradients: one a parameter, with their graph.
            params: the trainable parameters.
            continued: whether derivatives of this step's earlier backward passes will be added.
        """

    @abc.abstractmethod
    def advance(
        self, opt: WindowState, params: Sequence[Tensor], gradients: Gradients, rows: Rows | None
    ) -> Advance:
        """Take one step; ``rows`` are the derivatives, ``None`` where none were needed."""

    @abc.abstractmethod
    def displacement(self, opt: WindowState) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters that move, and u as an emulator may see it in mid-window."""

    @abc.abstractmethod
    def download(self, opt: WindowState) -> Outcome:
        """Solve the open window and read it out; the state is left as it was."""

    @abc.abstractmethod
    def clear(self, opt: WindowState) -> None:
        """Forget the window."""
