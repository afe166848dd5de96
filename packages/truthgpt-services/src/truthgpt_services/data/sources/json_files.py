"""The values of JSON files, one at a time: JSON Lines, or one array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final

from truthgpt_services.data.sources.files import read_lines
from truthgpt_services.errors import DataError

OBJECTS: Final = "JSON Lines has one object on each line."
_ARRAY: Final = "A file that begins with [ is read as one array of objects: [{...}, {...}]."
_SPACE: Final = re.compile(r"[ \t\r\n]*")


def read_json(path: Path) -> Iterator[tuple[Any, str]]:
    """Yield the values of a file with what errors call each of them.

    A file whose first character is `[` is one array; else each line that is not blank is a
    value. No more than a value, or the line that it is on, is in memory at a time.

    Args:
        path: the file, in UTF-8.

    Raises:
        DataError: it cannot be read, or is no JSON; the error names the line or the item.
    """
    lines = enumerate(read_lines(path), start=1)
    first = next(((at, line) for at, line in lines if line.strip()), None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):
        yield from _array(chain([first[1]], (line for _, line in lines)), path)
        return
    for at, line in chain([first], lines):
        if line.strip():
            yield _line(line, f"{path}:{at}"), f"{path}:{at}"


def _line(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is no JSON: {error.msg} at column {error.colno}", hint=OBJECTS
        ) from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits; brackets in thousands of brackets.
        raise DataError(f"{where} cannot be read: {error}", hint=OBJECTS) from None


def _array(lines: Iterator[str], path: Path) -> Iterator[tuple[Any, str]]:
    text = _Text(lines)
    text.take()
    number, separator = 0, "["
    while (found := text.peek()) != "]" or separator == ",":
        where = f"{path}, item {number}"
        yield text.value(where), where
        separator = text.peek()
        if separator not in (",", "]"):
            raise DataError(f"{where} is followed by neither , nor ]", hint=_ARRAY)
        if separator == ",":
            text.take()
        number += 1
    text.take()
    if found and text.peek():
        raise DataError(f"{path} has more after the end of its array", hint=_ARRAY)


class _Text:
    """Text of which lines are read as they are needed."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """Return the next character that is no white space; nothing at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read(1):
                return ""

    def take(self) -> None:
        """Pass over that character."""
        self.peek()
        self._at += 1

    def value(self, where: str) -> Any:
        """Return the value that begins at that character."""
        self.peek()
        while True:
            have = len(self._text) - self._at
            try:
                value, self._at = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # Twice as much: a long value is not tried again for each of its lines.
                if not self._read(have):
                    raise DataError(f"{where} is no JSON: {error.msg}", hint=_ARRAY) from None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} cannot be read: {error}", hint=_ARRAY) from None
            else:
                return value

    def _read(self, characters: int) -> bool:
        """Read lines of so many characters or more; return whether there were any."""
        parts, size = [self._text[self._at :]], 0
        while size < max(characters, 1) and (line := next(self._lines, None)) is not None:
            parts.append(line)
            size += len(line)
        self._text, self._at = "".join(parts), 0
        return size > 0
