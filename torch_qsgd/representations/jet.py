"""The window in jets: N vectors of the parameters' size, whatever that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torch_qsgd.carleman.jet import gram, jet_sgd, norm, summed
from torch_qsgd.checks import require_integer, require_number
from torch_qsgd.derivatives import loss_along_path, taylor_coefficients
from torch_qsgd.readout import PostSelection, post_selection
from torch_qsgd.representations.base import (
    Advance,
    Gradients,
    Outcome,
    Representation,
    Rows,
    reported,
)
from torch_qsgd.solvers import Exact, JetWindow

if TYPE_CHECKING:
    from torch_qsgd.state import WindowState


@dataclass(frozen=True)
class Jet(Representation):
    r"""The homogeneous Carleman system by its first block, at any model size.

    Args:
        idle: p, steps that hold the final state, for the probability of finding it.
        rescaling: γ, in the parameters' unit; ``None`` for the length of the displacement itself
            (with momentum, of both together), so that it weighs as much as the constant.
    """

    idle: int = 0
    rescaling: float | None = None

    name = "jet"

    def __post_init__(self) -> None:
        require_integer("idle", self.idle, 0)
        if self.rescaling is not None:
            require_number("rescaling", self.rescaling, 0)

    def tensors(self, group: dict[str, Any]) -> list[str]:
        """``jet_k``, and with momentum ``velocity_k``."""
        kinds = ("jet", "velocity") if group["momentum"] else ("jet",)
        return [f"{kind}_{k}" for kind in kinds for k in range(1, group["order"] + 1)]

    def needs_derivatives(self, opt: WindowState) -> bool:
        """Not in the first step, for all jets are zero."""
        return opt.window_step > 0

    def differentiate(
        self, opt: WindowState, gradients: Gradients, params: list[Tensor], continued: bool
    ) -> Rows:
        """Taylor coefficients of the gradient along the jets."""
        return taylor_coefficients(gradients, params, opt._jets(params))

    def advance(
        self, opt: WindowState, params: Sequence[Tensor], gradients: Gradients, rows: Rows | None
    ) -> Advance:
        """SGD's own rule on every jet."""
        jets, masks = opt._jets(params), opt.masks
        change = float(loss_along_path([gradients, *rows], jets)) if rows else 0.0
        if not opt._cycle["grams"]:
            opt._cycle["momentum_scales"] = [float(group["lr"]) for group in opt.param_groups]
            opt._cycle["grams"] = [self._gram(opt).tolist()]
        for group, positions in opt._by_group(params):
            used = [i for i in positions if gradients[i] is not None]
            if not used:
                continue
            states = [opt.state[params[i]] for i in used]
            anchor = [params[i] for i in used]
            jet_sgd(
                anchor,
                [g for i in used if (g := gradients[i]) is not None],
                [[row[i] for i in used] for row in rows] if rows else None,
                [[jet[i] for i in used] for jet in jets],
                opt._series("velocity", anchor) if group["momentum"] else None,
                [masks.get(p) for p in anchor],
                [s.get("momentum_buffer") is None for s in states],
                lr=float(group["lr"]),
                momentum=group["momentum"],
                dampening=group["dampening"],
                weight_decay=group["weight_decay"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
            )
            if group["momentum"]:
                for p, state in zip(anchor, states, strict=True):
                    state.setdefault("momentum_buffer", torch.zeros_like(p))
        inner = gram(opt._series("jet", opt._held("jet_1")))
        opt._cycle["grams"].append(self._gram(opt, inner).tolist())
        return Advance(change, inner.diagonal().sqrt().tolist())

    def _gram(self, opt: WindowState, inner: Tensor | None = None) -> Tensor:
        """Of the jets of z = (1, u), or (1, u, ηv), without the constant."""
        total = gram(opt._series("jet", opt._held("jet_1"))) if inner is None else inner
        for group, scale in zip(opt.param_groups, self._scales(opt), strict=True):
            moving = [p for p in group["params"] if "velocity_1" in opt.state[p]]
            if moving and scale:
                total = total + scale**2 * gram(opt._series("velocity", moving))
        return total

    @staticmethod
    def _scales(opt: WindowState) -> list[float]:
        """η of each group at the window's first step; groups that joined later have their own."""
        known = opt._cycle["momentum_scales"]
        return [*known, *(float(group["lr"]) for group in opt.param_groups[len(known) :])]

    def displacement(self, opt: WindowState) -> tuple[list[Tensor], list[Tensor]]:
        """Σ_k c_k."""
        params = opt._held("jet_1")
        return params, summed(opt._series("jet", params))

    def download(self, opt: WindowState) -> Outcome:
        """Solve, and read (u, ηv) out of the final block row.

        The momentum is held as ηv, which is as long as u's own steps: beside v itself, u would
        be lost in errors that are relative to both. Where η was zero at first, v is taken exactly.
        """
        opt._allocate(opt._trainable())
        params = [p for p in opt._held("jet_1") if p.requires_grad or self._moved(opt, p)]
        if not params:  # everything was frozen before a step was taken
            return Outcome([], [])
        scale_of = {
            p: scale
            for group, scale in zip(opt.param_groups, self._scales(opt), strict=True)
            for p in group["params"]
        }
        moving = [p for p in opt._held("velocity_1") if p.requires_grad or self._moved(opt, p)]
        # What is taken exactly needs no copy at another scale.
        exactly = opt.readout is None and isinstance(opt.solver, Exact)
        scaled = [p for p in moving if scale_of[p] and not exactly]
        scales = [scale_of[p] for p in scaled]
        odds = self._odds(opt._cycle["grams"])
        window = JetWindow(
            jets=opt._series("jet", params),
            velocities=[
                list(torch._foreach_mul(row, scales)) for row in opt._series("velocity", scaled)
            ]
            if scaled
            else [],
            steps=opt.window_step,
            masks=[opt._mask(p) for p in (*params, *scaled)],
            idle=self.idle,
            history=odds,
        )
        solution = opt.solver.solve(window, opt._generator)
        both = [*solution.displacement, *solution.momentum]
        reading, error = None, 0.0
        count = len(params)
        if opt.readout is not None and odds is not None:
            reading = opt.readout.measure(both, opt._generator, support=window.masks)
            gap = list(torch._foreach_sub(reading.estimate[:count], both[:count]))
            length = float(norm(both[:count]))
            error = float(norm(gap)) / length if length else 0.0
            both = reading.estimate
        facts = reported(solution, reading)
        if reading is not None:
            facts["readout_error"] = error  # of u, where momentum was read with it
        if odds is not None:
            facts.update(final_probability=odds.final, level_one_probability=odds.level_one)
        read = dict(zip(scaled, both[count:], strict=True))
        momentum = [
            read[p] / scale_of[p] if p in read else summed(opt._series("velocity", [p]))[0]
            for p in moving
        ]
        return Outcome(params, both[:count], moving, momentum, facts)

    @staticmethod
    def _moved(opt: WindowState, p: Tensor) -> bool:
        """Whether a frozen parameter has jets of this window, from before it was frozen."""
        return any(bool(row[0].any()) for row in opt._series("jet", [p]))

    def _odds(self, grams: list[list[list[float]]]) -> PostSelection | None:
        """``None`` where nothing has moved: there is nothing to read then."""
        if len(grams) < 2 or np.sum(grams[-1]) <= 0:
            return None
        rescaling = self.rescaling or math.sqrt(np.sum(grams[-1]))
        return post_selection(grams, rescaling, self.idle)

    def clear(self, opt: WindowState) -> None:
        """Zero the jets."""
        for kind in ("jet", "velocity"):
            kept = opt._held(f"{kind}_1")
            for row in opt._series(kind, kept) if kept else ():
                torch._foreach_zero_(row)
        opt._cycle.update(grams=[], momentum_scales=[])
