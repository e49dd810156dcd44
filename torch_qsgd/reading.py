"""Data classes from plain numbers, lists and strings, each checked by its annotation."""

from __future__ import annotations

import math
import types
from collections.abc import ItemsView, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

#: What stands for the numbers that JSON has not.
WORDS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def read_as(kind: Any, value: Any, name: str, *, null: bool = False) -> Any:
    """A value of an annotated type, from what JSON holds of it.

    Args:
        kind: a data class, ``int``, ``float``, ``bool``, ``str``, ``Any``, a ``Literal``, and
            lists, tuples of one type, mappings and optional ones of these.
        value: numbers may be words of :data:`WORDS`. An integer is taken as it is where a float is
            asked for, and a whole float where an integer is.
        name: of the place, for messages.
        null: whether ``None`` stands for NaN where a float must be.

    Returns:
        The value; for ``Any`` as it is, with words turned to numbers.

    Raises:
        TypeError: for a value of another type, and for a data class's part that is missing or
            not known; the message names the place.

    Example:
        >>> from torch_qsgd.report.measurements import OrderError
        >>> read_as(OrderError, {"order": 1, "errors": [0.1, "NaN"], "loss": 2}, "order")
        OrderError(order=1, errors=[0.1, nan], loss=2)
        >>> read_as(OrderError, {"order": 1, "errors": 0.1, "loss": 2}, "order")
        Traceback (most recent call last):
        ...
        TypeError: order.errors must be a list, got 0.1
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return _numbers(value)
    if origin in (Union, types.UnionType):
        return None if value is None else read_as(parts[0], value, name, null=null)
    if is_dataclass(kind):
        return _data_class(kind, value, name, null)
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise TypeError(f"{name} must be a list, got {value!r}")
        found = [read_as(parts[0], v, f"{name}[{i}]", null=null) for i, v in enumerate(value)]
        return found if origin is list else tuple(found)
    if origin is dict:
        return {k: read_as(parts[1], v, f"{name}.{k}", null=null) for k, v in _parts(value, name)}
    if kind in (int, float):
        return _number(kind, value, name, null)
    wanted = str if origin is Literal else kind
    if not isinstance(value, wanted):
        raise TypeError(f"{name} must be a {wanted.__name__}, got {value!r}")
    return value


def _parts(value: Any, name: str) -> ItemsView[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be an object, got {value!r}")
    return value.items()


def _data_class(kind: Any, value: Any, name: str, null: bool) -> Any:
    hints = get_type_hints(kind)
    given = dict(_parts(value, name))
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [part for part in needed if part not in given]:
        raise TypeError(f"{name} lacks {', '.join(map(repr, missing))}")
    if unknown := [part for part in given if part not in hints]:
        raise TypeError(f"{name} has an unknown part {', '.join(map(repr, unknown))}")
    return kind(
        **{
            part: read_as(hints[part], inner, f"{name}.{part}", null=null)
            for part, inner in given.items()
        }
    )


def _number(kind: Any, value: Any, name: str, null: bool) -> Any:
    if value is None and null and kind is float:
        return math.nan
    found = WORDS.get(value, value) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if kind is int and not (isinstance(found, int) or found.is_integer()):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    return found


def _numbers(value: Any) -> Any:
    """The same, with numbers for words."""
    if isinstance(value, Mapping):
        return {key: _numbers(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    return WORDS.get(value, value) if isinstance(value, str) else value
