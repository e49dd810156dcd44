"""What an audit is asked to measure, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch_qsgd.checks import require_integer, require_number, require_one_of
from torch_qsgd.pruning import METHODS

#: Used where an option is None: in full, and with ``quick``.
_FULL = {
    "window": 100,
    "windows": 3,
    "lanczos_steps": 40,
    "probes": 2,
    "spectrum_batches": 2,
    "held_out_samples": 1024,
    "rows": 60,
    "cubic_iterations": 10,
}
_QUICK = {
    "window": 15,
    "windows": 2,
    "lanczos_steps": 12,
    "probes": 2,
    "spectrum_batches": 1,
    "held_out_samples": 128,
    "rows": 6,
    "cubic_iterations": 3,
}


@dataclass(frozen=True)
class Plan:
    """Options of :func:`torch_qsgd.auditing.audit`, all of them set.

    Attributes:
        lr, momentum, weight_decay: of SGD.
        density, pruning: share of the prunable weights that stays, and how they are chosen.
        window, order, classical_steps: T, N, and the dense steps between windows.
        windows: of the training run.
        lanczos_steps, probes, spectrum_batches: of each spectrum.
        held_out_samples: to evaluate on, in whole batches.
        rows: of the Hessian to probe.
        cubic_iterations: of the power iteration for ‖G_2‖; 0 leaves it out.
        solver_error: ε of the history state, for the ledger.
        readout_error: ε of the displacement.
        seed: of all randomness.

    Raises:
        ValueError: for one outside what is allowed.
    """

    lr: float
    momentum: float
    weight_decay: float
    density: float
    pruning: str
    window: int
    order: int
    classical_steps: int
    windows: int
    lanczos_steps: int
    probes: int
    spectrum_batches: int
    held_out_samples: int
    rows: int
    cubic_iterations: int
    solver_error: float
    readout_error: float
    seed: int

    @classmethod
    def of(cls, quick: bool, **given: Any) -> Plan:
        """The options given, with defaults for those that are ``None``."""
        defaults = _QUICK if quick else _FULL
        options: dict[str, Any] = {k: defaults[k] if v is None else v for k, v in given.items()}
        return cls(**options)

    def __post_init__(self) -> None:
        require_number("lr", self.lr, 0)
        for name in ("momentum", "weight_decay"):
            if (value := getattr(self, name)) != 0:
                below = 1 if name == "momentum" else float("inf")
                require_number(name, value, 0, below, otherwise=", or 0")
        if self.density != 1:
            require_number("density", self.density, 0, 1, otherwise=", or 1 for no pruning")
        require_one_of("pruning", self.pruning, tuple(METHODS))
        for name in (
            "window",
            "order",
            "windows",
            "lanczos_steps",
            "probes",
            "spectrum_batches",
            "held_out_samples",
            "rows",
        ):
            require_integer(name, getattr(self, name), 1)
        for name in ("classical_steps", "cubic_iterations", "seed"):
            require_integer(name, getattr(self, name), 0)
        for name in ("solver_error", "readout_error"):
            require_number(name, getattr(self, name), 0, 1)
