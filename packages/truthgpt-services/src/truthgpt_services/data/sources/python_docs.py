"""The documentation that every Python brings with it: real English text, with no network."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import ClassVar

from truthgpt_services.errors import DataError


class PythonDocs:
    """What `help()` shows for the language itself, from `pydoc_data`.

    It is about half a megabyte of English, in some 75 texts. They belong to the Python that
    runs: another version has others.

    Args:
        dataset: "topics", the one data set there is.

    Raises:
        DataError: `dataset` is something else.
    """

    name: ClassVar[str] = "python_docs"

    def __init__(self, dataset: str) -> None:
        if dataset != "topics":
            raise DataError(f'"{self.name}" has no data set "{dataset}"', hint="It has: topics.")

    def texts(self) -> Iterator[str]:
        """Yield the texts, one for each topic, in the order of the topics' names."""
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
        for name in sorted(topics):
            yield topics[name]
