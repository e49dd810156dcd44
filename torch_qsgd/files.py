"""Files that are there whole, or as they were before."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to, which takes its place on leaving without an error."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def save_json(path: str | Path, plain: Any) -> None:
    """Write plain numbers, lists and strings as JSON; the file is whole, or as before.

    Raises:
        ValueError: for NaN or infinity, which JSON has not.
        OSError: where the file cannot be written.
    """
    text = json.dumps(plain, indent=1, allow_nan=False)
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")


def load_json(path: str | Path) -> Any:
    """Read what :func:`save_json` has written.

    Raises:
        ValueError: where it is no JSON. Who calls this names the file.
        OSError: where the file cannot be read.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no JSON file: {error}") from error
