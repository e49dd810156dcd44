"""When a window has stopped to be dissipative, judged by its latest spectrum and its jets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch_qsgd.checks import require_flag, require_integer, require_number
from torch_qsgd.hessian.dynamics import Dynamics
from torch_qsgd.hessian.spectrum import Spectrum


@dataclass
class Rules:
    """The thresholds of a :class:`.DissipativityMonitor`, which documents them.

    Raises:
        ValueError: for one outside what is allowed.

    Example:
        >>> Rules().reason(None, Dynamics(lr=0.1), jet_norms=[1.0, 0.6], steps=3)
        'jet ratio'
    """

    adapt_window: bool = True
    min_window: int = 1
    negative_mass: float | None = None
    proxy: float | None = 1.0
    jet_ratio: float | None = 0.5

    def __post_init__(self) -> None:
        require_flag("adapt_window", self.adapt_window)
        require_integer("min_window", self.min_window, 1)
        _require("negative_mass", self.negative_mass, 0, 1)
        _require("proxy", self.proxy, 1, math.inf)
        _require("jet_ratio", self.jet_ratio, 0, math.inf, or_equal=False)

    def reason(
        self,
        spectrum: Spectrum | None,
        dynamics: Dynamics,
        jet_norms: Sequence[float],
        steps: int,
    ) -> str | None:
        """The name of the first rule that holds.

        Args:
            spectrum: of the step's matrix; without one only the jets are judged.
            dynamics: of the step, as it is now.
            jet_norms: ‖c_1‖ … ‖c_N‖.
            steps: taken in the window.
        """
        if self.jet_ratio is not None and jet_ratio(jet_norms) > self.jet_ratio:
            return "jet ratio"
        if spectrum is None or steps < self.min_window:
            return None
        if self.negative_mass is not None and spectrum.negative_mass > self.negative_mass:
            return "negative mass"
        if self.adapt_window and steps >= dynamics.best_window(spectrum):
            return "best window"
        if self.proxy is not None and dynamics.error_proxy(spectrum, steps).total > self.proxy:
            return "error proxy"
        return None


def jet_ratio(norms: Sequence[float]) -> float:
    """‖c_N‖/‖c_1‖; 0 at order 1, where it says nothing, and before a window's first step."""
    return norms[-1] / norms[0] if len(norms) > 1 and norms[0] > 0 else 0.0


def _require(
    name: str, given: float | None, least: float, below: float, or_equal: bool = True
) -> None:
    """A number from ``least`` on, below ``below``; or ``None``."""
    if given is None or (or_equal and given == least and not isinstance(given, bool)):
        return
    require_number(name, given, least, below, otherwise=", or None")
