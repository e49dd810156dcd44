"""Forward substitution: what a perfect linear solver returns."""

from __future__ import annotations

from torch_qsgd.carleman.jet import summed
from torch_qsgd.solvers.base import JetWindow, Solution, Solver


class Exact(Solver):
    """The solution of the truncated system without any solver error.

    The system is block lower-bidiagonal, so forward substitution solves it, one block row a
    step; the jets have done that as the batches came. What is left is the first block,
    u = Σ_k c_k, and the momentum, Σ_k v_k.

    Cost: N passes over the parameters, or 2N with momentum.

    Example:
        >>> import torch
        >>> jets = [[torch.tensor([1.0])], [torch.tensor([0.25])]]
        >>> Exact().solve(JetWindow(jets, [], steps=3)).displacement
        [tensor([1.2500])]
    """

    name = "exact"

    def solve(self, window: JetWindow) -> Solution:
        """Sum the jets; see the class."""
        return Solution(
            displacement=summed(window.jets),
            momentum=summed(window.velocities) if window.velocities else [],
            error=0.0,
        )
