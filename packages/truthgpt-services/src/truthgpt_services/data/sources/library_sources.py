"""Texts that other libraries read: Parquet files, and data sets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from truthgpt_core.errors import in_one_line
from truthgpt_core.paths import open_regular
from truthgpt_services.data.chat_template import Chat
from truthgpt_services.data.sources.chat_formats import messages_of, recognize
from truthgpt_services.data.sources.files import find_files, fingerprint, lacks
from truthgpt_services.errors import DataError

_ROWS_AT_ONCE = 1024


class ParquetFiles:
    """Parquet files, read with pyarrow, a batch of rows at a time.

    Args:
        dataset: a file, or a directory whose `.parquet` files are taken, those in its
            subdirectories too, in the order of their paths.
        column: the column that holds the text.

    Raises:
        DataError: pyarrow is not installed.
    """

    name: ClassVar[str] = "parquet"

    def __init__(self, dataset: str, *, column: str = "text") -> None:
        self._dataset = dataset
        self._column = column
        self._pyarrow = _import("pyarrow", source=self.name)
        self._parquet = _import("pyarrow.parquet", source=self.name)

    def texts(self) -> Iterator[str]:
        """Yield the texts, one for each row.

        Raises:
            DataError: nothing is there; a file is not Parquet, is damaged, or has no such
                column; or a row, counted from 0, has no text in it.
        """
        for path in find_files(self._dataset, ".parquet"):
            try:
                yield from self._read(path)
            except (OSError, UnicodeDecodeError, self._pyarrow.ArrowException) as error:
                raise DataError(f"{path} cannot be read: {in_one_line(error)}") from error

    def fingerprint(self) -> str | None:
        """Return a text that is another one when a file or an option is."""
        return fingerprint(find_files(self._dataset, ".parquet"), self._column)

    def _read(self, path: Path) -> Iterator[str]:
        # pyarrow would wait for a named pipe.
        open_regular(path).close()
        with self._parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if self._column not in columns:
                form = recognize(dict.fromkeys(columns))
                if form is not None:
                    raise DataError(
                        f'{path} has no column "{self._column}": it has {form.name}',
                        hint='Write them as JSON Lines, which the source "chat" reads.',
                    )
                raise lacks(str(path), "column", self._column, columns)
            batches = file.iter_batches(_ROWS_AT_ONCE, columns=[self._column])
            values = chain.from_iterable(batch.column(0).to_pylist() for batch in batches)
            for row, value in enumerate(values):
                yield _text(value, f'{path}, row {row}: column "{self._column}"')


class HubDataset:
    """A data set of the Hugging Face hub or a directory laid out as one, read with `datasets`.

    It is streamed, so it is neither downloaded whole nor written to the cache.

    Args:
        dataset: an id on the hub, as "Salesforce/wikitext", or a directory.
        config: which of its configurations, as "wikitext-103-raw-v1"; its default one if
            None.
        split: which of its splits.
        field: the field that holds the text; None for `text` or, in a row without it that is
            recognized as a conversation (see `chat_formats`), what that is made of.
        revision: a branch, tag or commit on the hub; the newest if None.

    Raises:
        DataError: `datasets` is not installed.
    """

    name: ClassVar[str] = "huggingface"

    def __init__(
        self,
        dataset: str,
        *,
        config: str | None = None,
        split: str = "train",
        field: str | None = None,
        revision: str | None = None,
    ) -> None:
        self._dataset = dataset
        self._options = {"name": config, "split": split, "revision": revision}
        self._given = field
        self._field = field or "text"
        self._library = _import("datasets", source=self.name)

    def texts(self) -> Iterator[str]:
        """Yield the texts, one for each row.

        Raises:
            DataError: there is no such data set, configuration or split; the hub cannot be
                reached; or a row, counted from 0, has no text in the field.
        """
        for number, row in enumerate(self._rows()):
            where = f'"{self._dataset}", row {number}'
            if self._field not in row:
                form = recognize(row) if self._given is None else None
                if form is not None:
                    yield Chat.of(messages_of(row, form, where), where)
                    continue
                raise lacks(where, "field", self._field, row)
            yield _text(row[self._field], f'{where}: field "{self._field}"')

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            yield from self._library.load_dataset(self._dataset, streaming=True, **self._options)
        except Exception as error:  # of files, of formats and of the network
            raise DataError(
                f'The data set "{self._dataset}" cannot be read: {in_one_line(error)}'
            ) from error


def _text(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    kind = "null" if value is None else type(value).__name__
    raise DataError(f"{where} is {kind}, not a text")


def _import(module: str, *, source: str) -> Any:
    distribution = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(
            f'Data sets of "{source}" are read with {distribution}, which cannot be imported: '
            f"{in_one_line(error)}",
            hint=f"Install it: pip install {distribution}.",
        ) from error
