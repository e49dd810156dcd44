"""The window as an explicit linear system in few coordinates: Krylov, or all active ones."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from torch_qsgd.carleman.explicit import BASES, CLOSURES, LIMIT, CarlemanSystem, system_size
from torch_qsgd.carleman.krylov import coordinates, krylov_basis, lift, unit_basis
from torch_qsgd.carleman.polynomial import PolynomialMap
from torch_qsgd.derivatives import loss_along_path, projected_derivatives
from torch_qsgd.errors import SizeError
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


@dataclass(frozen=True)
class Subspace(Representation):
    """Base of :class:`Krylov` and :class:`Explicit`: u = V w, and the map of w written out.

    Args:
        closure, basis, idle, limit: as in :class:`CarlemanSystem`.
        rescaling: γ, or ``"auto"``, as there; ``None`` for the length of the displacement itself,
            so that it weighs as much as the constant beside it.
    """

    closure: str = "homogeneous"
    basis: str = "monomial"
    idle: int = 0
    rescaling: float | str | None = None
    limit: int = LIMIT

    def __post_init__(self) -> None:
        if self.closure not in CLOSURES or self.basis not in BASES:
            raise ValueError(
                f"closure must be one of {', '.join(CLOSURES)} and basis of {', '.join(BASES)}, "
                f"got {self.closure!r} and {self.basis!r}"
            )
        if isinstance(self.idle, bool) or not isinstance(self.idle, int) or self.idle < 0:
            raise ValueError(f"idle must be an integer of at least 0, got {self.idle!r}")

    def check(self, group: dict[str, Any], first: dict[str, Any], solver: Solver) -> None:
        """No momentum; one learning rate, decay and sign for all groups."""
        if group["momentum"]:
            raise ValueError(
                f"momentum is served by representation='jet' only, got momentum="
                f"{group['momentum']!r} with {self.name!r}"
            )
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
    ) -> list[list[Tensor]]: ...

    @abc.abstractmethod
    def _basis(self, opt: WindowState, members: list[Tensor]) -> list[list[Tensor]]: ...

    def differentiate(
        self, opt: WindowState, gradients: Gradients, params: list[Tensor], continued: bool
    ) -> Rows:
        """∇²L, ∇³L, … along the basis, which the window's first gradient chooses."""
        cycle = opt._cycle
        if opt.window_step == 0 and not continued:
            basis = self._choose_basis(opt, gradients, params)
            everything = opt._every()
            cycle["members"] = [i for i, p in enumerate(everything) if any(p is q for q in params)]
            cycle["dimension"] = len(basis)
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
        if rows is None:
            raise RuntimeError("a subspace window cannot advance without derivatives")
        cycle, order = opt._cycle, first["order"]
        sign = -1.0 if first["maximize"] else 1.0
        decay = first["weight_decay"]
        members = self._members(opt)
        basis = self._basis(opt, members)
        anchor = coordinates(basis, members) if decay else None
        gradient = coordinates(basis, gradients)
        tensors = [sign * t for t in (gradient, *(row[0].numpy() for row in rows))]
        step = PolynomialMap.from_derivatives(
            tensors, lr=float(first["lr"]), weight_decay=decay, anchor=anchor
        )
        jets = cycle["path"]
        if jets is None:
            jets = torch.zeros(order, len(tensors[0]), dtype=torch.float64)
        # With unit rate the step is w − ∇L, whose Taylor coefficients hold those of ∇L.
        slopes = -PolynomialMap.from_derivatives(tensors, lr=1.0).taylor(jets.numpy())
        slopes[1:] += jets.numpy()
        change = loss_along_path([[torch.from_numpy(row)] for row in slopes], [[c] for c in jets])
        series = step.taylor(jets.numpy())
        series[1] += series[0]
        moved = torch.from_numpy(series[1:])
        cycle["path"] = moved
        cycle["maps"].append([torch.from_numpy(np.array(c)) for c in step.coefficients])
        return Advance(sign * float(change), moved.norm(dim=1).tolist())

    def displacement(self, opt: WindowState) -> tuple[list[Tensor], list[Tensor]]:
        """V Σ_k c_k."""
        members = self._members(opt)
        return members, lift(self._basis(opt, members), opt._cycle["path"].sum(0).numpy())

    def system(self, opt: WindowState) -> CarlemanSystem:
        """The open window's linear system, of m coordinates."""
        maps: list[PolynomialMap] = []
        previous: list[Tensor] = []
        for tensors in opt._cycle["maps"]:
            same = previous and all(map(torch.equal, tensors, previous))
            maps.append(maps[-1] if same else PolynomialMap(*(t.numpy() for t in tensors)))
            previous = tensors
        length = float(opt._cycle["path"].sum(0).norm()) or 1.0
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
        members = self._members(opt)
        if not opt._cycle["maps"]:  # no step has been taken
            return Outcome([], [])
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
        return Outcome(members, lift(self._basis(opt, members), w), facts=facts)

    def clear(self, opt: WindowState) -> None:
        """Drop the maps."""
        opt._cycle.update(maps=[], path=None, members=[], dimension=0)

    def _members(self, opt: WindowState) -> list[Tensor]:
        everything = opt._every()
        return [everything[i] for i in opt._cycle["members"]]

    def _require_size(self, group: dict[str, Any], dimension: int, solver: Solver) -> None:
        """Raise before a window is opened that the solver would refuse at its end."""
        if group["window"] == 0:
            return
        size = system_size(
            PolynomialMap(np.zeros(dimension), None),
            group["window"],
            group["order"],
            idle=self.idle,
            closure=self.closure,
            basis=self.basis,
        )
        if size.unknowns > solver.largest:
            raise SizeError(
                f"a window of {group['window']} steps at order {group['order']} in {dimension} "
                f"coordinates is a system of {size.unknowns:,} unknowns, and solver "
                f"{solver.name!r} takes {solver.largest:,.0f} at most: shorten the window, lower "
                "the order or the dimension, or use solver='qsvt' or 'exact'"
            )


@dataclass(frozen=True)
class Krylov(Subspace):
    """Descent on the Krylov space of the window's first Hessian and gradient.

    Batches after the first are projected on the same space: hand in the same batch each time, or
    expect their gradients to be cut.

    Args:
        dimension: m; see :mod:`torch_qsgd.carleman.krylov`.
        closure, basis, idle, rescaling, limit: as in :class:`Subspace`.
    """

    dimension: int = 4

    name = "krylov"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.dimension
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise ValueError(f"dimension must be an integer of at least 1, got {given!r}")

    def check(self, group: dict[str, Any], first: dict[str, Any], solver: Solver) -> None:
        """Also the system's size, which is known before anything is built."""
        super().check(group, first, solver)
        self._require_size(group, self.dimension, solver)

    def tensors(self, group: dict[str, Any]) -> list[str]:
        """The basis, ``basis_1 … basis_m``."""
        return [f"basis_{i}" for i in range(1, self.dimension + 1)]

    def _choose_basis(
        self, opt: WindowState, gradients: Gradients, params: list[Tensor]
    ) -> list[list[Tensor]]:
        first = opt.param_groups[0]
        basis = krylov_basis(
            gradients,
            params,
            self.dimension,
            masks=[opt.masks.get(p) for p in params],
            # Maximising climbs L − λ|θ|²/2.
            weight_decay=-first["weight_decay"] if first["maximize"] else first["weight_decay"],
        )
        opt._allocate(params)
        for i, direction in enumerate(basis, start=1):
            for p, v in zip(params, direction, strict=True):
                opt.state[p][f"basis_{i}"].copy_(v)
        return basis

    def _basis(self, opt: WindowState, members: list[Tensor]) -> list[list[Tensor]]:
        count = opt._cycle["dimension"]
        return [[opt.state[p][f"basis_{i}"] for p in members] for i in range(1, count + 1)]


@dataclass(frozen=True)
class Explicit(Subspace):
    """Descent on all active coordinates, written out: for validation, of some fifty at most.

    Args:
        coordinates: the most active coordinates allowed.
        closure, basis, idle, rescaling, limit: as in :class:`Subspace`.
    """

    coordinates: int = 64

    name = "explicit"

    def _choose_basis(
        self, opt: WindowState, gradients: Gradients, params: list[Tensor]
    ) -> list[list[Tensor]]:
        basis = self._basis(opt, params)
        self._require_size(opt.param_groups[0], len(basis), opt.solver)
        return basis

    def _basis(self, opt: WindowState, members: list[Tensor]) -> list[list[Tensor]]:
        return unit_basis(members, [opt.masks.get(p) for p in members], self.coordinates)


def _require_common(group: dict[str, Any], first: dict[str, Any], name: str) -> None:
    for option in _COMMON:
        if float(group[option]) != float(first[option]):
            raise ValueError(
                f"representation {name!r} needs one {option} for all groups, got "
                f"{group[option]!r} beside {first[option]!r}: use representation='jet'"
            )
