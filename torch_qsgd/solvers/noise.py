"""An error model of a quantum linear solver, for windows of any size."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from torch_qsgd.carleman.explicit import CarlemanSystem
from torch_qsgd.carleman.jet import norm, summed
from torch_qsgd.checks import require_number, require_one_of
from torch_qsgd.linear_system import LinearSystem, length
from torch_qsgd.solvers.base import (
    JetSolution,
    JetWindow,
    Solution,
    Solver,
    numpy_generator,
    solution_of,
)

PLACEMENTS = ("readout", "isotropic")


class Noise(Solver):
    r"""The exact solution and a random error of the solver's size, without an algorithm.

    A solver of precision ε returns a history state Ŷ with :math:`\|\hat Y - Y\| \le \varepsilon
    \|Y\|`. The error of exactly that length is put, with a random direction,

    - ``"readout"``: wholly into the p + 1 copies of what is read, equally: the worst case. Then
      :math:`\|\hat u - u\| = \gamma\,\varepsilon\,\|Y\| / \sqrt{p+1}`, or with momentum that of
      (u, ηv) together.
    - ``"isotropic"``: over all D unknowns evenly, of which block 1 is a small part. Then each of
      the n coordinates of u is off by :math:`\gamma\,\varepsilon\,\|Y\| / \sqrt{D (p+1)}`.

    It counts no queries, and takes success for certain.

    Args:
        epsilon: ε, above 0 and below 1.
        placement: ``"readout"`` or ``"isotropic"``.

    Raises:
        ValueError: for an argument outside what is allowed.

    Cost: one pass of random numbers over what is solved.

    Source: ours.

    Example:
        >>> system = LinearSystem([[2.0, 0.0], [0.0, 1.0]], [2.0, 1.0])
        >>> round(Noise(epsilon=0.01).solve(system).error, 12)
        0.01
    """

    name = "noise"
    representations = frozenset({"jet", "krylov", "explicit"})

    def __init__(self, epsilon: float = 1e-3, placement: str = "readout") -> None:
        self.epsilon = require_number("epsilon", epsilon, 0, 1)
        require_one_of("placement", placement, PLACEMENTS)
        self.placement = placement

    def __repr__(self) -> str:
        return f"{type(self).__name__}(epsilon={self.epsilon}, placement={self.placement!r})"

    def _solve_linear(self, system: LinearSystem, generator: torch.Generator) -> Solution:
        exact = system.solution
        error = np.zeros_like(exact)
        source = numpy_generator(generator)
        if self.placement == "readout" and isinstance(system, CarlemanSystem):
            read = np.zeros_like(system.blocks(error))
            read[system.steps :, system.displacement_slots] = source.standard_normal(
                system.dimension
            )
            error = read.ravel()
        else:
            error = source.standard_normal(exact.size)
        error *= self.epsilon * length(exact) / length(error)
        return solution_of(system, exact + error, success_probability=1.0, queries=0)

    def _solve_jets(self, window: JetWindow, generator: torch.Generator) -> JetSolution:
        exact = [*summed(window.jets), *(summed(window.velocities) if window.velocities else [])]
        count = len(window.jets[0])
        if window.history is None:  # nothing has moved: the state is known
            return JetSolution(exact[:count], exact[count:], 1.0, 0, 0.0)
        masks = list(window.masks or [None] * len(exact))
        noise = [_normal(x, mask, generator) for x, mask in zip(exact, masks, strict=True)]
        coordinates = sum(
            x.numel() if mask is None else int(mask.sum())
            for x, mask in zip(exact, masks, strict=True)
        )
        history = window.history
        total = self.epsilon * history.norm * history.rescaling / math.sqrt(window.idle + 1)
        if self.placement == "readout":
            scale = total / float(norm(noise))
        else:
            scale = total / math.sqrt(_unknowns(coordinates, window))
        torch._foreach_mul_(noise, scale)
        noisy = list(torch._foreach_add(exact, noise))
        moved = float(norm(exact[:count]))
        made = float(norm(noise[:count]))
        return JetSolution(
            displacement=noisy[:count],
            momentum=noisy[count:],
            success_probability=1.0,
            queries=0,
            error=made / moved if moved else math.inf,
        )


def _unknowns(coordinates: int, window: JetWindow) -> float:
    """Of the whole homogeneous system, whose blocks hold (1 + n)^j; too many for an integer."""
    block = sum(float(coordinates + 1) ** j for j in range(1, len(window.jets) + 1))
    return (window.steps + 1 + window.idle) * block


def _normal(like: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(
        like.shape, generator=generator, device=generator.device, dtype=like.dtype
    ).to(like.device)
    return drawn if mask is None else drawn * mask
