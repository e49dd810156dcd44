"""Eigenvalues at the ends of a Hessian's spectrum, with their vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from torch_qsgd.batches import Count
from torch_qsgd.checks import (
    checked_generator,
    require_flag,
    require_integer,
    require_number,
    require_one_of,
)
from torch_qsgd.hessian.curvature import LossFunction
from torch_qsgd.hessian.masses import counted
from torch_qsgd.hessian.operator import HessianOperator, Masks
from torch_qsgd.hessian.thick_restart import ENDS, SymmetricOperator, ThickRestart, rounding

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Vector = TypeVar("Vector", Tensor, dict[str, Tensor])


@dataclass(frozen=True, eq=False, repr=False)
class Eigenpairs(Generic[Vector]):
    """Eigenvalues, best first, and their vectors.

    Attributes:
        values: shape (k,), float64. ``"largest"`` and ``"both"`` descend, ``"smallest"`` ascends,
            ``"magnitude"`` descends in size.
        vectors: k orthonormal ones, flat or as ``{name: tensor}``.
        residuals: ‖Hv − λv‖, shape (k,), by the Lanczos recurrence, and no less than rounding: an
            eigenvalue lies within ± this of the value.
        converged: bool, shape (k,): whether the residual is within the tolerance.
        searched: whether the search for further copies of equal eigenvalues has ended; without it
            some may be missing.
        products: matrix–vector products spent.
    """

    values: Array
    vectors: list[Vector]
    residuals: Array
    converged: NDArray[np.bool_]
    searched: bool
    products: int

    def __repr__(self) -> str:
        count, missing = len(self.values), int((~self.converged).sum())
        state = "all converged" if missing == 0 else f"{missing} not converged: allow more products"
        if missing == 0 and not self.searched:
            state += ", copies of equal ones not looked for: allow more products"
        head = f"{counted(count, 'eigenpair')} after {counted(self.products, 'product')}, {state}"
        lines = [head]
        for value, residual, settled in zip(
            self.values, self.residuals, self.converged, strict=True
        ):
            mark = "" if settled else "  not converged"
            lines.append(f"  {value:>13.6g} ± {residual:.1e}{mark}")
        return "\n".join(lines)


def top_eigenpairs(
    model: nn.Module,
    loss_fn: LossFunction,
    data: Any,
    k: int,
    *,
    which: str = "both",
    tolerance: float = 1e-5,
    most_products: int = 1000,
    basis_size: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
    parameters: Iterable[Tensor] | None = None,
    masks: Masks | None = None,
    layers: str | Sequence[str] | None = None,
    kind: str = "hessian",
    reduction: str = "mean",
    keep_graph: str | bool = "auto",
    memory: float | None = None,
    count: Count | None = None,
    process_group: dist.ProcessGroup | None = None,
    check: bool = True,
) -> Eigenpairs[dict[str, Tensor]]:
    """Eigenvalues at the ends of a loss's Hessian, with vectors in the shape of a state dict.

    Args:
        model, loss_fn, data, parameters, masks, layers, kind, reduction, keep_graph, memory, count,
            process_group, check: of :class:`.HessianOperator`.
        k, which, tolerance, most_products, basis_size, generator, progress: as in
            :func:`eigenpairs_of`.

    Returns:
        An :class:`Eigenpairs`; vectors are ``{name: tensor}``, zero at pruned weights.

    Raises:
        ValueError, GraphError, DivergenceError, SizeError: as the operator and
            :func:`eigenpairs_of` do.

    Cost: as :func:`eigenpairs_of`, and the operator's own.

    Source: Wu and Simon, see :mod:`.thick_restart`.

    Example:
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> found = top_eigenpairs(
        ...     nn.Linear(2, 1, bias=False), nn.functional.mse_loss, (x, torch.zeros(2, 1)), 2
        ... )
        >>> found.values.round(5)
        array([9., 1.])
        >>> found.vectors[0]["weight"].abs().round(decimals=5)
        tensor([[1., 0.]])
    """
    with HessianOperator(
        model,
        loss_fn,
        data,
        parameters=parameters,
        masks=masks,
        layers=layers,
        kind=kind,
        reduction=reduction,
        keep_graph=keep_graph,
        memory=memory,
        count=count,
        process_group=process_group,
        check=check,
    ) as operator:
        flat = eigenpairs_of(
            operator,
            k,
            which=which,
            tolerance=tolerance,
            most_products=most_products,
            basis_size=basis_size,
            generator=generator,
            progress=progress,
        )
        named = [operator.unflatten(vector) for vector in flat.vectors]
    return Eigenpairs(
        flat.values, named, flat.residuals, flat.converged, flat.searched, flat.products
    )


def eigenpairs_of(
    operator: SymmetricOperator,
    k: int,
    *,
    which: str = "both",
    tolerance: float = 1e-5,
    most_products: int = 1000,
    basis_size: int | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Eigenpairs[Tensor]:
    """Eigenvalues at the ends of any symmetric operator, with flat vectors.

    Args:
        operator: with ``dimension`` n, ``dtype``, ``device``, and ``@`` for a vector (n,).
        k: number of pairs, at most n.
        which: ``"largest"``, ``"smallest"``, ``"magnitude"`` (largest in size), or ``"both"``:
            half of them at each end, where k is odd one more of the largest.
        tolerance: of the residual, relative to ‖H‖. Eigenvalues are mostly far more accurate, to
            its square over the gap to the next.
        most_products: matrix–vector products, at least k. Where they do not suffice, what there
            is is returned, marked in ``converged``.
        basis_size: vectors held, from 2k + 2; by default 2k + 30. More means fewer products.
        generator: source of the first vectors; by default one with seed 0.
        progress: whether to show a bar, in a terminal.

    Returns:
        An :class:`Eigenpairs` of k flat vectors (n,).

    Raises:
        ValueError: for an argument outside what is allowed.
        TypeError: for a generator that is not PyTorch's.
        DivergenceError: where a product is NaN or infinite.

    Cost: memory for ``basis_size`` vectors, and k more at the end; for each product four passes
    over them. Ten outliers well apart from the bulk take about 19 products, and 5 to look for
    copies; crowded ends take many more.

    Source: Wu and Simon, see :mod:`.thick_restart`; the search for copies is ours.

    Example:
        >>> from types import SimpleNamespace
        >>> class Diagonal(SimpleNamespace):
        ...     def __matmul__(self, v):
        ...         return self.entries * v
        >>> entries = torch.tensor([5.0, 5.0, -2.0, 1.0, 0.0])
        >>> matrix = Diagonal(
        ...     entries=entries, dimension=5, dtype=entries.dtype, device=entries.device
        ... )
        >>> eigenpairs_of(matrix, 3).values.round(4)
        array([ 5.,  5., -2.])
    """
    n = operator.dimension
    k = require_integer("k", k, 1, n)
    require_one_of("which", which, ENDS)
    tolerance = require_number("tolerance", tolerance, rounding(operator.dtype), 1)
    most_products = require_integer("most_products", most_products, k)
    least = min(n, 2 * k + 2)
    size = 2 * k + 30 if basis_size is None else require_integer("basis_size", basis_size, least)
    require_flag("progress", progress)
    generator = checked_generator(generator)
    run = ThickRestart(operator, k, which, tolerance, min(size, n), generator)
    console = Console(stderr=True)
    shown = progress and console.is_terminal
    with Progress(console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=k)
        while not run.done and run.products < most_products:
            run.advance()
            bar.update(
                task,
                completed=run.settled,
                description=f"eigenpairs: {run.settled} of {k} after {run.products} products",
            )
    values, rows, residuals = run.best()
    return Eigenpairs(
        values=values,
        vectors=list(rows),
        residuals=residuals,
        converged=residuals <= tolerance * run.norm,
        searched=run.done,
        products=run.products,
    )
