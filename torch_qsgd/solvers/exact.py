"""Forward substitution: what a perfect linear solver returns."""

from __future__ import annotations

import torch

from torch_qsgd.carleman.jet import summed
from torch_qsgd.linear_system import LinearSystem
from torch_qsgd.solvers.base import JetSolution, JetWindow, Solution, Solver, solution_of


class Exact(Solver):
    """The solution of the truncated system without any solver error.

    The system is block lower-bidiagonal, so forward substitution solves it, one block row a
    step; the jets have done that as the batches came. What is left is the first block,
    u = Σ_k c_k, and the momentum, Σ_k v_k.

    Cost: one forward substitution; in jets N passes over the parameters, or 2N with momentum.
    It makes no quantum query, and always succeeds.

    Example:
        >>> jets = [[torch.tensor([1.0])], [torch.tensor([0.25])]]
        >>> Exact().solve(JetWindow(jets, [], steps=3)).displacement
        [tensor([1.2500])]
    """

    name = "exact"
    representations = frozenset({"jet", "krylov", "explicit"})

    def _solve_linear(self, system: LinearSystem, generator: torch.Generator) -> Solution:
        return solution_of(system, system.solution.copy(), success_probability=1.0, queries=0)

    def _solve_jets(self, window: JetWindow, generator: torch.Generator) -> JetSolution:
        return JetSolution(
            displacement=summed(window.jets),
            momentum=summed(window.velocities) if window.velocities else [],
            success_probability=1.0,
            queries=0,
            error=0.0,
        )
