"""How the ledger's totals grow with one of the window's sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch_qsgd.checks import require_integer, require_number, require_one_of
from torch_qsgd.resources.account import SOLVER, ledger
from torch_qsgd.resources.ledger import ScalingCurve
from torch_qsgd.resources.window import WindowSize

#: What can be varied.
OVER = ("active", "steps", "density")
#: How a given κ grows with T.
REGIMES = ("T", "T²", "exponential")

_VALUES: dict[str, tuple[float, ...]] = {
    "active": tuple(round(10 ** (4 + i / 2)) for i in range(17)),
    "steps": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000),
    "density": (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
}


def scaling(
    window: WindowSize,
    over: str,
    values: Sequence[float] | None = None,
    *,
    solver: str = SOLVER,
    regime: str = "T²",
    system_of: Callable[[int], tuple[float, float]] | None = None,
) -> ScalingCurve:
    r"""The ledger's totals over n, T or the density, all else held.

    - ``"active"``: the model grows, at the density that it has. κ and s are held, s up to n;
      ‖A − 1‖_F grows as √n, with entries of the same size.
    - ``"steps"``: a given P(final) falls as states of equal length make it fall; batches grow where
      each step has its own. κ and ‖ℒ‖ are those of ``system_of`` at each T. Without it, a given κ
      is held (``regime="T"``), grows as T + 1 + p (``"T²"``), or as :math:`κ^{T'/T}`
      (``"exponential"``), three extrapolations that no model backs; where none is given, 2(T+1+p)
      grows by itself.
    - ``"density"``: the model is held, and s/n, for a column is pruned as often as a row;
      ‖A − 1‖_F then grows as n.

    Classical FLOPs grow with the model and with T; not with the density, for dense arithmetic
    multiplies zeros too. A physical estimate is left out.

    Args:
        window: the size from which one number is varied.
        over: ``"active"``, ``"steps"`` or ``"density"``.
        values: of that number; by default n = 10⁴ … 10¹², T = 1 … 10⁴, density 0.001 … 1.
        solver: as of :func:`ledger`.
        regime: how a given κ grows with T, see above.
        system_of: κ and ‖ℒ‖ of a window of T steps.

    Raises:
        ValueError: for an unknown name, no values, or one that is out of its range.

    Cost: a ledger a value.

    Example:
        >>> window = WindowSize(parameters=10**6, active=10**5, steps=10)
        >>> curve = scaling(window, "active", [1e5, 1e7])
        >>> [f"{gates:.0e}" for gates in curve.t_gates], curve.dominant
        (['3e+14', '4e+17'], ['copies', 'copies'])
    """
    require_one_of("over", over, OVER)
    require_one_of("regime", regime, REGIMES)
    ascending = sorted(_checked(over, _VALUES[over] if values is None else values))
    resize: dict[str, Callable[[Any], WindowSize]] = {
        "active": lambda n: _with_active(window, n),
        "steps": lambda steps: _with_steps(window, steps, regime, system_of),
        "density": lambda density: _with_density(window, density),
    }
    sizes = [resize[over](value) for value in ascending]
    ledgers = [ledger(replace(size, physical=None), solver) for size in sizes]
    return ScalingCurve(
        over=over,
        values=[float(value) for value in ascending],
        t_gates=[found["total_qroam"] for found in ledgers],
        t_gates_qram=[found["total_qram"] for found in ledgers],
        flops=[found["flops"] for found in ledgers],
        dominant=[found.dominant for found in ledgers],
    )


def crossing(curve: ScalingCurve, memory: bool = False) -> float | None:
    """The first value at which there are fewer T gates than FLOPs; ``None`` where there is none.

    A T gate on a fault-tolerant computer takes far longer than a FLOP: fewer gates are no gain in
    time yet.

    Args:
        curve: made by :func:`scaling`.
        memory: count with QRAM.

    Example:
        >>> window = WindowSize(parameters=10**6, active=10**5, steps=10, batch_size=64)
        >>> print(crossing(scaling(window, "active"), memory=True))
        None
    """
    gates = curve.t_gates_qram if memory else curve.t_gates
    for value, quantum, classical in zip(curve.values, gates, curve.flops, strict=True):
        if quantum < classical:
            return value
    return None


def _checked(over: str, values: Any) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"values must be a list of at least one number, got {values!r}")
    name = f"each of values (over {over!r})"
    if over == "density":
        return [require_number(name, value, 0, math.nextafter(1, 2)) for value in values]
    whole = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    return [require_integer(name, value, 1) for value in whole]


def _with_active(window: WindowSize, active: int) -> WindowSize:
    parameters = max(active, round(active * (window.parameters / window.active)))
    flops = window.flops
    return replace(
        window,
        parameters=parameters,
        active=active,
        row_nonzeros=_row(window.row_nonzeros, 1.0, active),
        change_norm=_times(window.change_norm, math.sqrt(active / window.active)),
        flops=None if flops is None else flops * (parameters / window.parameters),
        bytes=None,
    )


def _with_density(window: WindowSize, density: float) -> WindowSize:
    active = max(1, round(density * window.parameters))
    row = _row(window.row_nonzeros, active / window.active, active)
    norm = _times(window.change_norm, active / window.active)
    return replace(window, active=active, row_nonzeros=row, change_norm=norm, bytes=None)


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _row(nonzeros: float | None, factor: float, active: int) -> float | None:
    return None if nonzeros is None else min(max(nonzeros * factor, 1.0), active + 1.0)


def _with_steps(
    window: WindowSize,
    steps: int,
    regime: str,
    system_of: Callable[[int], tuple[float, float]] | None,
) -> WindowSize:
    own = 1 < window.steps == window.batches
    batches = steps if own else min(window.batches, steps)
    sized = replace(window, steps=steps, batches=batches, bytes=None)
    final = window.final_probability
    if final is not None:
        odds = (1 / final - 1) * (steps / window.steps)
        final = 1 / (1 + odds)
    flops = window.flops
    if system_of is None:
        kappa, norm = _grown(window, sized, regime), window.norm
    else:
        kappa, norm = system_of(steps)
        kappa, norm = max(kappa, math.nextafter(1, 2)), max(norm, 1.0)
    return replace(
        sized,
        kappa=kappa,
        norm=norm,
        final_probability=final,
        flops=None if flops is None else flops * (steps / window.steps),
    )


def _grown(window: WindowSize, sized: WindowSize, regime: str) -> float | None:
    if window.kappa is None or math.isinf(window.kappa) or regime == "T":
        return window.kappa
    if regime == "T²":
        grown = window.kappa * (sized.times / window.times)
    else:
        exponent = math.log(window.kappa) * (sized.steps / window.steps)
        grown = math.exp(exponent) if exponent < 700 else math.inf
    return max(grown, math.nextafter(1, 2))
