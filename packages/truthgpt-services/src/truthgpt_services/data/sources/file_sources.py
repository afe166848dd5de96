"""Texts in files that Python reads by itself: plain text, JSON Lines and CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal

from truthgpt_services.data.chat_template import Chat
from truthgpt_services.data.sources.chat_formats import (
    MESSAGES,
    as_messages,
    messages_of,
    recognize,
)
from truthgpt_services.data.sources.files import find_files, fingerprint, lacks, read_lines
from truthgpt_services.data.sources.json_files import OBJECTS, read_json
from truthgpt_services.errors import DataError

# Larger than any text. The csv module's own limit, 128 KiB, is less than a book has.
_FIELD_LIMIT = 2**31 - 1


class TextFiles:
    """Plain text in UTF-8.

    Args:
        dataset: a file, or a directory whose `.txt` files are taken, those in its
            subdirectories too, in the order of their paths.
        documents: what one text is: a `paragraph`, which ends at a blank line or with the
            file, or a whole `file`, which is then held in memory.
    """

    name: ClassVar[str] = "text"

    def __init__(
        self, dataset: str, *, documents: Literal["paragraph", "file"] = "paragraph"
    ) -> None:
        self._dataset = dataset
        self._documents = documents

    def texts(self) -> Iterator[str]:
        """Yield the texts, with line feeds for line ends and none at the end.

        Raises:
            DataError: nothing is there, or a file cannot be read or is not UTF-8.
        """
        for path in find_files(self._dataset, ".txt"):
            lines = (line.rstrip("\r\n") for line in read_lines(path))
            if self._documents == "file":
                yield "\n".join(lines).strip("\n")
                continue
            for blank, paragraph in groupby(lines, key=_is_blank):
                if not blank:
                    yield "\n".join(paragraph)

    def fingerprint(self) -> str | None:
        """Return a text that is another one when a file or an option is."""
        return fingerprint(find_files(self._dataset, ".txt"), self._documents)


class JsonLines:
    """JSON Lines: an object on each line, in UTF-8. Blank lines are passed over.

    A file that begins with `[` is an array of such objects; one of them is in memory at a time.

    Args:
        dataset: a file, or a directory whose `.jsonl` files are taken, those in its
            subdirectories too, in the order of their paths.
        field: the objects' field that holds the text.
    """

    name: ClassVar[str] = "jsonl"

    def __init__(self, dataset: str, *, field: str = "text") -> None:
        self._dataset = dataset
        self._field = field

    def texts(self) -> Iterator[str]:
        """Yield the texts, one for each object.

        Raises:
            DataError: nothing is there; a file cannot be read or is not UTF-8; or a line,
                which the error names, is not an object with a text in the field.
        """
        for row, where in self._objects():
            yield self._text(row, where)

    def fingerprint(self) -> str | None:
        """Return a text that is another one when a file or an option is."""
        return fingerprint(find_files(self._dataset, ".jsonl"), self._field)

    def _objects(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Yield each object with what errors call it."""
        for path in find_files(self._dataset, ".jsonl"):
            for value, where in read_json(path):
                if not isinstance(value, dict):
                    raise DataError(f"{where} is {_kind(value)}, not an object", hint=OBJECTS)
                yield value, where

    def _text(self, row: dict[str, Any], where: str) -> str:
        if self._field not in row:
            form = recognize(row)
            if form is not None:
                raise DataError(
                    f'{where} has no field "{self._field}": it has {form.name}',
                    hint='Set data.source to "chat", which reads them.',
                )
            raise lacks(where, "field", self._field, row)
        text = row[self._field]
        if not isinstance(text, str):
            raise DataError(f'{where}: field "{self._field}" is {_kind(text)}, not a text')
        return self._whole(text, where)

    def _whole(self, text: str, where: str) -> str:
        try:
            # JSON can escape half a character, which no tokenizer takes.
            text.encode()
        except UnicodeEncodeError as error:
            half = text[error.start].encode("unicode_escape").decode()
            raise DataError(
                f'{where}: field "{self._field}" has half a surrogate pair, {half}'
            ) from None
        return text


class ChatLines(JsonLines):
    """JSON Lines, or an array, of conversations: objects with messages.

    The form of each object is recognized by its fields (see `chat_formats`): a list of messages
    with `role` and `content`, ShareGPT's `from` and `value`, or Alpaca's instructions.

    Args:
        dataset: a file, or a directory whose `.jsonl` files are taken, those in its
            subdirectories too, in the order of their paths.
        field: the objects' field that holds the messages; None to recognize it.
    """

    name: ClassVar[str] = "chat"

    def __init__(self, dataset: str, *, field: str | None = None) -> None:
        super().__init__(dataset, field=field or MESSAGES.fields[0])
        self._given = field

    def describe(self) -> str | None:
        """Say which form the conversations have, by the first of them; None if there is none.

        Raises:
            DataError: it cannot be read.
        """
        for row, _ in self._objects():
            form = recognize(row) if self._given is None else None
            return None if form is None else f"{form.name}: {form.reading}"
        return None

    def _text(self, row: dict[str, Any], where: str) -> str:
        form = recognize(row)
        if self._given is None and form is not None:
            messages = messages_of(row, form, where)
            where = f'{where}: field "{form.fields[0]}"'
        elif self._field in row:
            where = f'{where}: field "{self._field}"'
            messages = as_messages(row[self._field], where)
        else:
            raise lacks(where, "field", self._field, row)
        chat = Chat.of(messages, where)
        self._whole(chat, where)
        return chat


class CsvFiles:
    """CSV with a header, in UTF-8; a quoted field may have line ends in it.

    Args:
        dataset: a file, or a directory whose `.csv` files are taken, those in its
            subdirectories too, in the order of their paths.
        column: the column that holds the text, by its name in the header.
        delimiter: what is between two fields: one character.
    """

    name: ClassVar[str] = "csv"

    def __init__(self, dataset: str, *, column: str = "text", delimiter: str = ",") -> None:
        self._dataset = dataset
        self._column = column
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise DataError(f"{delimiter!r} cannot delimit fields", hint="Give one character.")
        self._delimiter = delimiter

    def texts(self) -> Iterator[str]:
        """Yield the texts, one for each row after the header; empty lines are passed over.

        Raises:
            DataError: nothing is there; a file cannot be read, is not UTF-8, or its header
                has no such column; or a row, whose line the error names, is malformed.
        """
        for path in find_files(self._dataset, ".csv"):
            rows = self._rows(path)
            line, header = next(rows, (0, []))
            if not header:
                continue
            if self._column not in header:
                raise lacks(f"{path}:{line}", "column", self._column, header)
            at = header.index(self._column)
            for line, row in rows:
                if len(row) != len(header):
                    raise DataError(
                        f"{path}:{line} has {len(row)} fields, and the header {len(header)}",
                        hint="Put fields that have the delimiter in them in double quotes.",
                    )
                yield row[at]

    def fingerprint(self) -> str | None:
        """Return a text that is another one when a file or an option is."""
        return fingerprint(find_files(self._dataset, ".csv"), self._column, self._delimiter)

    def _rows(self, path: Path) -> Iterator[tuple[int, list[str]]]:
        """Yield each row that is not empty after the number of its first line."""
        csv.field_size_limit(_FIELD_LIMIT)
        reader = csv.reader(read_lines(path), delimiter=self._delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{path}:{line} begins a row that is no CSV: {error}") from None
            if row:
                yield line, row


def _is_blank(line: str) -> bool:
    return not line.strip()


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return "a text"
        case list():
            return "an array"
        case dict():
            return "an object"
        case _:
            return "a number"
