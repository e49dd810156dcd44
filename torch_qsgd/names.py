"""Members of a family by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def by_name(given: str | T, kind: type[T], known: Mapping[str, type[T]], what: str) -> T:
    """Return the member of that name, made with its defaults, or the instance itself.

    Args:
        given: a name, or an instance of ``kind``.
        kind: the family's base class.
        known: its members by name.
        what: what the family is called in messages.

    Raises:
        ValueError: for a name that is not known.
        TypeError: for anything but a name or an instance.

    Example:
        >>> by_name("zero", int, {"zero": int}, "number")
        0
    """
    if isinstance(given, str) and given in known:
        return known[given]()
    if isinstance(given, kind):
        return given
    if isinstance(given, str):
        raise ValueError(f"unknown {what} {given!r}; known: {', '.join(sorted(known))}")
    raise TypeError(f"{what} must be a name or a {kind.__name__}, got {type(given).__name__}")
