"""Aligned columns of text, for commands that print tables.

What is shown comes from files and from plugins' metadata, so characters that would move
the cursor, break the line or turn the direction of the text are written as escapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Final

WIDEST: Final = 60
"""The width from which on a cell no longer widens its column, in character cells."""

_GAP = "  "
_HARMFUL_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
_TURNS_DIRECTION = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def columns(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield each row as one line, with the cells of a column below one another.

    A cell wider than `WIDEST` pushes the rest of its own row aside, and no other row.

    Args:
        rows: the cells of each row; rows may differ in length.

    Yields:
        Lines without line breaks, and without blanks at their ends.
    """
    table = [[harmless(cell) for cell in row] for row in rows]
    widths = [
        max((width for cell in column if (width := _width(cell)) <= WIDEST), default=0)
        for column in zip_longest(*table, fillvalue="")
    ]
    for row in table:
        padded = (
            cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=False)
        )
        yield _GAP.join(padded).rstrip(" ")


def harmless(text: str) -> str:
    r"""Return `text` with what does something to a terminal written as an escape: `\n`, `\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if _does_something(char) else char for char in text
    )


def visible(text: str) -> str:
    r"""Return text of several lines as `harmless` does, with its line breaks and tabs as they are.

    A carriage return before a line break goes.
    """
    if text.isprintable():
        return text
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join("\t".join(map(harmless, line.split("\t"))) for line in lines)


def _does_something(char: str) -> bool:
    # Here, and not above: `truthgpt --help` writes no such text and waits for each import.
    import unicodedata

    return (
        unicodedata.category(char) in _HARMFUL_CATEGORIES
        or unicodedata.bidirectional(char) in _TURNS_DIRECTION
    )


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(
        0
        if unicodedata.category(char) in {"Mn", "Me", "Cf"}
        else 2
        if unicodedata.east_asian_width(char) in "WF"
        else 1
        for char in text
    )
