"""Members of a family by their names, and objects by the names of their modules."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


#: Shorter names are part of too many others.
_SHORTEST_PART = 3


def nearest(given: str, known: Iterable[str]) -> str | None:
    """The known name most like the given one; ``None`` where none is like it.

    Case does not matter. Where no name is alike as a whole, it is the first that begins with the
    given one, else the first that contains it; of a given name of three letters or more.

    Example:
        >>> nearest("hll", ["exact", "hhl", "qsvt"])
        'hhl'
        >>> nearest("qsvt", ["exact", "hhl", "qsvt-relative"])
        'qsvt-relative'
    """
    names = list(known)
    lowered = {name.lower(): name for name in reversed(names)}
    wanted = given.lower()
    if near := difflib.get_close_matches(wanted, lowered, n=1):
        return lowered[near[0]]
    if len(wanted) < _SHORTEST_PART:
        return None
    parts = [name for name in names if wanted in name.lower()]
    return next((n for n in parts if n.lower().startswith(wanted)), parts[0] if parts else None)


def suggestion(given: object, known: Iterable[str]) -> str:
    """The end of a message that refuses a name: the nearest known one, or nothing.

    Example:
        >>> "unknown solver 'hll'" + suggestion("hll", ["exact", "hhl", "qsvt"])
        "unknown solver 'hll'; did you mean 'hhl'?"
    """
    near = nearest(given, known) if isinstance(given, str) else None
    return "" if near is None else f"; did you mean {near!r}?"


def by_name(given: str | T, kind: type[T], known: Mapping[str, type[T]], what: str) -> T:
    """Return the member of that name, made with its defaults, or the instance itself.

    Args:
        given: a name, or an instance of ``kind``.
        kind: the family's base class.
        known: its members by name.
        what: what the family is called in messages.

    Raises:
        ValueError: for a name that is not known, with the nearest known one.
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
        raise ValueError(
            f"unknown {what} {given!r}; known: {', '.join(sorted(known))}{suggestion(given, known)}"
        )
    raise TypeError(f"{what} must be a name or a {kind.__name__}, got {type(given).__name__}")


def from_module(reference: str, what: str) -> Any:
    """Return what a module calls by a name.

    Args:
        reference: ``"module:name"``; modules of the current folder are found too.
        what: what it is to be, for messages.

    Raises:
        ValueError: where there is no such module, it cannot be imported, or it has no such name.

    Example:
        >>> from_module("math:sqrt", "function")(9.0)
        3.0
    """
    place, _, name = reference.partition(":")
    if not place or not name:
        raise ValueError(f"{what} {reference!r} is not of the form module:function")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(place)
    except Exception as error:  # whatever a user's module raises
        raise ValueError(
            f"{what} {reference!r}: module {place!r} cannot be imported "
            f"({type(error).__name__}: {error})"
        ) from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    for part in name.split("."):
        if not hasattr(found, part):
            hint = suggestion(part, dir(found))
            raise ValueError(f"{what} {reference!r}: {place} has no {part!r}{hint}")
        found = getattr(found, part)
    return found
