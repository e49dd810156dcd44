"""Checks of arguments, in the words of a user."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from torch_qsgd.names import suggestion


def require_integer(name: str, given: Any, least: int, most: float = math.inf) -> int:
    """Return an integer (Python's or NumPy's) from ``least`` to ``most``.

    Raises:
        ValueError: for anything else; bools are no integers.

    Example:
        >>> require_integer("steps", 3, 1)
        3
    """
    integer = isinstance(given, Integral) and not isinstance(given, bool)
    if not integer or not least <= int(given) <= most:
        upper = "" if math.isinf(most) else f" and at most {most:,}"
        raise ValueError(f"{name} must be an integer of at least {least}{upper}, got {given!r}")
    return int(given)


def require_number(
    name: str, given: Any, above: float, below: float = math.inf, otherwise: str = ""
) -> float:
    """Return a finite real number strictly between two others.

    Args:
        name, given: of the argument.
        above, below: the bounds, themselves excluded.
        otherwise: what else is allowed, for the message.

    Raises:
        ValueError: for anything else; bools and strings are no numbers.

    Example:
        >>> require_number("epsilon", 0.5, 0, 1)
        0.5
    """
    real = isinstance(given, Real) and not isinstance(given, bool)
    try:
        value = float(given) if real else math.nan
    except OverflowError:  # an integer beyond all floats
        value = math.inf
    if not math.isfinite(value) or not above < value < below:
        upper = "" if math.isinf(below) else f" and below {below:g}"
        raise ValueError(
            f"{name} must be a number above {above:g}{upper}{otherwise}, got {given!r}"
        )
    return value


def require_one_of(name: str, given: Any, allowed: tuple[str, ...]) -> None:
    """Raise ``ValueError`` for a name that is not allowed, with the nearest that is."""
    if not isinstance(given, str) or given not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(allowed)}, got {given!r}{suggestion(given, allowed)}"
        )


def require_flag(name: str, given: Any) -> bool:
    """Return a bool, Python's or NumPy's.

    Raises:
        ValueError: for anything else; numbers are no flags.

    Example:
        >>> require_flag("guard_band", True)
        True
    """
    if not isinstance(given, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, got {given!r}")
    return bool(given)


def require_equal_lengths(holder: Any, *names: str) -> None:
    """Raise ``ValueError`` where an object's lists differ in length, with each one's."""
    lengths = {name: len(getattr(holder, name)) for name in names}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"lists of one length are needed, got: {listed}")


def checked_generator(generator: torch.Generator | None) -> torch.Generator:
    """The generator given, or one with seed 0.

    Raises:
        TypeError: for anything else.
    """
    if generator is None:
        return torch.Generator().manual_seed(0)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    return generator
