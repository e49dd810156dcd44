"""Tables of GitHub-flavoured Markdown that line up in plain text too."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

#: Characters that would be marks: of tables, code, emphasis, links, HTML, formulas. Underscores
#: between letters or digits are none.
_MARKS = re.compile(r"[\\`*|<\[\]$~&]|(?<![^\W_])_|_(?![^\W_])")
_SPACES = re.compile(r"[^\S\u00a0\u202f]+")  # but for those at which no line breaks


def plain(text: object) -> str:
    """Text that Markdown shows as it is, on one line.

    Example:
        >>> print(plain("a|b\\n*c* layer1.conv_2"))
        a\\|b \\*c\\* layer1.conv_2
    """
    return _MARKS.sub(r"\\\g<0>", _SPACES.sub(" ", str(text)).strip())


def pipe_table(head: Sequence[str], rows: Sequence[Sequence[object]], right: str = "") -> list[str]:
    """The lines of a table whose cells are padded to the width of their column.

    Args:
        head: names of the columns.
        rows: cells, as many each; they are made plain.
        right: a letter a column, ``"r"`` for those that align right; left by default.

    Example:
        >>> print("\\n".join(pipe_table(["T", "layer"], [["100", "conv"], ["1", "a|b"]], "r")))
        |   T | layer |
        | --: | :---- |
        | 100 | conv  |
        |   1 | a\\|b  |
    """
    cells = [[plain(cell) for cell in row] for row in (head, *rows)]
    sides = [right[i : i + 1] == "r" for i in range(len(head))]
    widths = [max(3, *map(_width, column)) for column in zip(*cells, strict=True)]
    rule = [
        "-" * (w - 1) + ":" if r else ":" + "-" * (w - 1)
        for w, r in zip(widths, sides, strict=True)
    ]
    lines = [
        [_padded(cell, w, r) for cell, w, r in zip(row, widths, sides, strict=True)]
        for row in cells
    ]
    return [f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])]


def _width(text: str) -> int:
    """Columns that a text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _padded(text: str, width: int, right: bool) -> str:
    gap = " " * (width - _width(text))
    return gap + text if right else text + gap
