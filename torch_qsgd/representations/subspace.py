"""The window as an explicit linear system in few coordinates: Krylov, or all active ones."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torch_qsgd.carleman.bases import Basis, DirectionBasis, UnitBasis, add_decay, krylov_basis
from torch_qsgd.carleman.explicit import BASES, CLOSURES, LIMIT, CarlemanSystem, system_size
from torch_qsgd.carleman.polynomial import PolynomialMap
from torch_qsgd.checks import require_integer, require_number, require_one_of
from torch_qsgd.derivatives import loss_along_path, projected_derivatives
from torch_qsgd.errors import GraphError, SizeError
from torch_qsgd.representations.base import (
    Advance,
    Gradients,
    Outcome,
    Representation,
    Rows,
    reported,
)
from torch_qsgd.solvers import Solver

if TYPE_CHECKING:
    from torch_qsgd.state import WindowState

#: Options of SGD that all groups must share, for the directions mix their parameters.
_COMMON = ("lr", "weight_decay", "maximize")
#: Of a number in a list, with its place there.
_BYTES = 32


@dataclass(frozen=True)
class Subspace(Representation):
    """Base of :class:`Krylov` and :class:`Explicit`: u = V w, and the map of w written out.

    The jets that ``tolerance``, ``jet_norms`` and ``predicted_weights()`` look at are those of the
    homogeneous closure, whichever is solved.

    Args:
        closure, basis, idle, limit: as in :class:`CarlemanSystem`; ``limit`` also holds for the
            maps kept in mid-window.
        rescaling: γ, or ``"auto"``, as there; ``None`` for the length of the displacement itself,
            so that it weighs as much as the constant beside it.
    """

    closure: str = "homogeneous"
    basis: str = "monomial"
    idle: int = 0
    rescaling: float | str | None = None
    limit: int = LIMIT

    def __post_init__(self) -> None:
        require_one_of("closure", self.closure, CLOSURES)
        require_one_of("basis", self.basis, BASES)
        require_integer("idle", self.idle, 0)
        require_integer("limit", self.limit, 1)
        if self.rescaling not in (None, "auto"):
            require_number("rescaling", self.rescaling, 0, otherwise=", 'auto' or None")

    def check(self, group: dict[str, Any], first: dict[str, Any], solver: Solver) -> None:
        """No momentum; one learning rate, decay and sign for all groups."""
        _require_common(group, first, self.name)

    def tensors(self, group: dict[str, Any]) -> list[str]:
        """None, unless the basis is kept."""
        return []

    def needs_derivatives(self, opt: WindowState) -> bool:
        """Always: the map is written out at each step."""
        return True

    @abc.abstractmethod
    def _choose_basis(
        self, opt: WindowState, gradients: Gradients, params: list[Tensor]
    ) -> Basis: ...

    @abc.abstractmethod
    def _basis(self, opt: WindowState, members: list[Tensor]) -> Basis: ...

    def _require_whole_gradient(self) -> None:
        """Raise where the basis may not be chosen from a part of a step's gradient."""

    def differentiate(
        self, opt: WindowState, gradients: Gradients, params: list[Tensor], continued: bool
    ) -> Rows:
        """∇²L, ∇³L, … along the basis, which the window's first gradient chooses."""
        cycle = opt._cycle
        unsettled = cycle["dimension"] == 0 or cycle["chosen_at"] == opt.window_step
        if unsettled and continued:
            self._require_whole_gradient()
        if cycle["dimension"] == 0 or (unsettled and not continued):
            basis = self._choose_basis(opt, gradients, params)
            positions = [i for i, p in enumerate(opt._every()) if any(p is q for q in params)]
            cycle.update(members=positions, dimension=basis.size, chosen_at=opt.window_step)
            if not basis.size:
                return []
        else:
            members = self._members(opt)
            if len(members) != len(params) or any(
                p is not q for p, q in zip(members, params, strict=True)
            ):
                raise ValueError(
                    "parameters were added or frozen in mid-window, which only "
                    "representation='jet' follows: call opt.download() before that"
                )
            basis = self._basis(opt, params)
        order = opt.param_groups[0]["order"]
        # Without ∇L itself, for `.grad` holds also what earlier passes have accumulated.
        return [[t] for t in projected_derivatives(gradients, params, basis, order)[1:]]

    def advance(
        self, opt: WindowState, params: Sequence[Tensor], gradients: Gradients, rows: Rows | None
    ) -> Advance:
        """One step of the map, and of its jets."""
        first = opt.param_groups[0]
        for group in opt.param_groups:
            _require_common(group, first, self.name)
        cycle, order = opt._cycle, first["order"]
        if not rows:  # nothing moves before the first gradient that is not zero
            cycle["rest"] += 1
            return Advance(0.0, [0.0] * order)
        sign = -1.0 if first["maximize"] else 1.0
        basis = self._basis(opt, self._members(opt))
        tensors = [basis.coordinates(gradients), *(row[0].numpy() for row in rows)]
        jets = np.array(cycle["path"] or np.zeros((order, basis.size)))
        # With unit rate the step is w − ∇L, whose Taylor coefficients hold those of ∇L.
        slopes = -PolynomialMap.from_derivatives(tensors, lr=1.0).taylor(jets)
        slopes[1:] += jets
        change = loss_along_path(
            [[torch.from_numpy(row)] for row in slopes], [[torch.from_numpy(c)] for c in jets]
        )
        tensors = [sign * t for t in tensors]
        moving = [None if g is None else p for g, p in zip(gradients, params, strict=True)]
        add_decay(tensors, basis, moving, first["weight_decay"])
        step = PolynomialMap.from_derivatives(tensors, lr=float(first["lr"]))
        series = step.taylor(jets)
        series[1] += series[0]
        cycle["path"] = series[1:].tolist()
        cycle["maps"].append([c.ravel().tolist() for c in step.coefficients])
        return Advance(float(change), np.linalg.norm(series[1:], axis=1).tolist())

    def displacement(self, opt: WindowState) -> tuple[list[Tensor], list[Tensor]]:
        """V Σ_k c_k."""
        if not opt._cycle["path"]:
            return [], []
        members = self._members(opt)
        return members, self._basis(opt, members).lift(np.sum(opt._cycle["path"], axis=0))

    def system(self, opt: WindowState) -> CarlemanSystem:
        """The open window's linear system, of m coordinates."""
        cycle = opt._cycle
        m = cycle["dimension"]
        maps = [PolynomialMap(np.zeros(m), np.eye(m))] * cycle["rest"]
        previous: list[list[float]] | None = None
        for flat in cycle["maps"]:
            if flat != previous:  # one map for equal steps, which are then advanced together
                shaped = [np.reshape(c, (m, -1) if q else m) for q, c in enumerate(flat)]
                latest = PolynomialMap(*shaped)
            maps.append(latest)
            previous = flat
        length = float(np.linalg.norm(np.sum(cycle["path"], axis=0))) or 1.0
        return CarlemanSystem(
            maps,
            len(maps),
            order=opt.param_groups[0]["order"],
            idle=self.idle,
            closure=self.closure,
            basis=self.basis,
            rescaling=length if self.rescaling is None else self.rescaling,
            limit=self.limit,
        )

    def download(self, opt: WindowState) -> Outcome:
        """Write the system out, solve it, read w out of its final block, and lift it."""
        if not np.any(opt._cycle["path"]):  # no step has been taken, or none that moved
            return Outcome([], [])
        members = self._members(opt)
        system = self.system(opt)
        solution = opt.solver.solve(system, opt._generator)
        w = system.displacement(solution.vector)
        reading = None
        if opt.readout is not None and w.any():
            reading = opt.readout.measure(w, opt._generator)
            w = reading.estimate
        facts = {
            **reported(solution, reading),
            "final_probability": system.final_probability(solution.vector),
            "level_one_probability": system.level_one_probability(solution.vector),
        }
        return Outcome(members, self._basis(opt, members).lift(w), facts=facts)

    def clear(self, opt: WindowState) -> None:
        """Drop the maps."""
        opt._cycle.update(maps=[], path=[], members=[], dimension=0, chosen_at=-1, rest=0)

    def _members(self, opt: WindowState) -> list[Tensor]:
        everything = opt._every()
        return [everything[i] for i in opt._cycle["members"]]

    def _require_size(self, group: dict[str, Any], dimension: int, solver: Solver) -> None:
        """Raise before a window is opened that would not fit, or that its solver would refuse."""
        if group["window"] == 0:
            return
        steps, order = group["window"], group["order"]
        size = system_size(
            PolynomialMap(np.zeros(dimension), None),
            steps,
            order,
            idle=self.idle,
            closure=self.closure,
            basis=self.basis,
        )
        maps = _BYTES * steps * sum(dimension ** (q + 1) for q in range(order + 1))
        what = (
            f"a window of {steps} steps at order {order} in {dimension} coordinates is a system "
            f"of {size.unknowns:,} unknowns"
        )
        less = "shorten the window, lower the order or the number of coordinates"
        if max(size.vector_bytes, maps) > self.limit:
            raise SizeError(
                f"{what}: a vector takes {size.vector_bytes / 2**20:,.3g} MiB, its maps "
                f"{maps / 2**20:,.3g} MiB, over {self.limit / 2**20:,.3g} MiB; {less}, "
                "raise `limit`, or use representation='jet'"
            )
        if size.unknowns > solver.largest:
            raise SizeError(
                f"{what}, and solver {solver.name!r} takes {solver.largest:,.0f} at most: {less}, "
                "or use solver='qsvt' or 'exact'"
            )


@dataclass(frozen=True)
class Krylov(Subspace):
    """Descent on the Krylov space of the window's first Hessian and gradient.

    Batches after the first are projected on the same space: hand in the same batch each time, or
    expect their gradients to be cut. The first step's gradient must come from one recording.

    Args:
        dimension: m; see :mod:`torch_qsgd.carleman.krylov`.
        closure, basis, idle, rescaling, limit: as in :class:`Subspace`.
    """

    dimension: int = 4

    name = "krylov"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("dimension", self.dimension, 1)

    def check(self, group: dict[str, Any], first: dict[str, Any], solver: Solver) -> None:
        """Also the system's size, which is known before anything is built."""
        super().check(group, first, solver)
        self._require_size(group, self.dimension, solver)

    def tensors(self, group: dict[str, Any]) -> list[str]:
        """The basis, ``basis_1 … basis_m``."""
        return [f"basis_{i}" for i in range(1, self.dimension + 1)]

    def _require_whole_gradient(self) -> None:
        raise GraphError(
            "the Krylov space of a window is chosen by its first gradient, which must not be "
            "accumulated over several recordings: put all backward passes of that step into one "
            "`with opt.recording():` block"
        )

    def _choose_basis(self, opt: WindowState, gradients: Gradients, params: list[Tensor]) -> Basis:
        basis = krylov_basis(
            gradients,
            params,
            self.dimension,
            masks=[opt._mask(p) for p in params],
            weight_decay=opt.param_groups[0]["weight_decay"] != 0,
        )
        opt._allocate(params)
        for i, direction in enumerate(basis.directions, start=1):
            for p, v in zip(params, direction, strict=True):
                opt.state[p][f"basis_{i}"].copy_(v)
        return basis

    def _basis(self, opt: WindowState, members: list[Tensor]) -> Basis:
        names = self.tensors({})[: opt._cycle["dimension"]]
        return DirectionBasis([[opt.state[p][name] for p in members] for name in names])


@dataclass(frozen=True)
class Explicit(Subspace):
    """Descent on all active coordinates, written out: for validation, of some fifty at most.

    Args:
        coordinates: the most active coordinates allowed.
        closure, basis, idle, rescaling, limit: as in :class:`Subspace`.
    """

    coordinates: int = 64

    name = "explicit"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("coordinates", self.coordinates, 1)

    def _choose_basis(self, opt: WindowState, gradients: Gradients, params: list[Tensor]) -> Basis:
        basis = self._basis(opt, params)
        self._require_size(opt.param_groups[0], basis.size, opt.solver)
        return basis

    def _basis(self, opt: WindowState, members: list[Tensor]) -> Basis:
        return UnitBasis(members, [opt._mask(p) for p in members], self.coordinates)


def _require_common(group: dict[str, Any], first: dict[str, Any], name: str) -> None:
    if group["momentum"]:
        raise ValueError(
            f"momentum is served by representation='jet' only, got momentum={group['momentum']!r} "
            f"with {name!r}"
        )
    for option in _COMMON:
        if float(group[option]) != float(first[option]):
            raise ValueError(
                f"representation {name!r} needs one {option} for all groups, got "
                f"{group[option]!r} beside {first[option]!r}: use representation='jet'"
            )
