"""What the optimizer's cycle keeps: where it stands, and a record of each finished window."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class WindowRecord:
    """One finished window.

    Attributes:
        steps: T, the steps taken in it.
        jet_norms: ‖c_1‖ … ‖c_N‖ at its end.
        displacement: ‖u‖, the Euclidean length of the downloaded displacement.
        active: the number of active coordinates.
        reason: why it ended: ``"length"``, ``"tolerance"``, ``"requested"``, or what the trigger
            returned.
        loss: loss of the last step's batch at the anchor, in the units of what ``backward`` was
            called on; ``None`` where no loss was seen.
        predicted_loss: the same batch's loss at the weights that step started from, by the
            jets' own Taylor series to order N; ``None`` where no loss was seen.
        solver_error: relative error made by the linear solver; of the displacement in jets, of
            the whole history state where a system was written out.
        success_probability: of one run of the solver.
        queries: calls of the system's block encoding, or of its exponential, in one run.
        final_probability: P(final), of finding the history state at its final time; ``None``
            where nothing moved.
        level_one_probability: P(u | final), of finding the displacement there; with momentum, the
            displacement or ηv.
        copies: of the displacement's state that the readout used; 0 for an exact readout.
        expected_copies, guaranteed_copies: those that reach its precision in practice, and by the
            theorem; see :class:`torch_qsgd.readout.Reading`.
        readout_error: relative ℓ2 error made by the readout.
    """

    steps: int
    jet_norms: tuple[float, ...]
    displacement: float
    active: int
    reason: str
    loss: float | None
    predicted_loss: float | None
    solver_error: float = 0.0
    success_probability: float = 1.0
    queries: int = 0
    final_probability: float | None = None
    level_one_probability: float | None = None
    copies: int = 0
    expected_copies: int = 0
    guaranteed_copies: int = 0
    readout_error: float = 0.0

    @property
    def jet_ratio(self) -> float:
        """‖c_N‖/‖c_1‖: how fast the Taylor series falls. 0 where nothing moved."""
        moved = self.jet_norms and self.jet_norms[0]
        return self.jet_norms[-1] / self.jet_norms[0] if moved else 0.0

    def to_state(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, as a ``state_dict`` may hold."""
        return {**asdict(self), "jet_norms": list(self.jet_norms)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> WindowRecord:
        """The inverse of :meth:`to_state`."""
        return cls(**{**state, "jet_norms": tuple(state["jet_norms"])})


def new_cycle(generator_state: Any, representation: str) -> dict[str, Any]:
    """The cycle's state before the first step, as it stands in the first parameter group.

    ``due`` is the reason of a download that has not succeeded yet.

    The open window's own: ``grams``, Gram matrices of the jets after 0 … t steps, and
    ``momentum_scales``, the groups' η at the first. Where a system is written out: ``maps``, the
    coefficients of each step's map after ``rest`` steps without a gradient, and ``path``, its
    jets, in ``dimension`` coordinates, chosen at step ``chosen_at``, of the parameters with
    positions ``members``. All as plain numbers and lists, of which a checkpoint of any kind takes
    any length.

    It lives there because only ``state`` and ``param_groups`` survive every wrapper, pickle,
    and distributed checkpoint.
    """
    return {
        "phase": "upload",
        "representation": representation,
        "due": "",
        "step": 0,
        "window_step": 0,
        "classical_step": 0,
        "loss": None,
        "predicted_loss": None,
        "jet_norms": [],
        "grams": [],
        "momentum_scales": [],
        "maps": [],
        "path": [],
        "members": [],
        "dimension": 0,
        "chosen_at": -1,
        "rest": 0,
        "windows": [],
        "generator": generator_state,
    }
