"""What a source of texts is, and the error of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from truthgpt_core.errors import did_you_mean
from truthgpt_services.errors import DataError


@runtime_checkable
class TextSource(Protocol):
    """A data set as a stream of texts.

    A component of the factory `dataset_factory` returns one when it is called with the
    name of a data set and the options that it takes. A plugin's class needs `texts` and
    nothing else: not this class, and no import of this package.
    """

    def texts(self) -> Iterator[str]:
        """Yield the texts, one by one, the same ones in the same order each time.

        A source that reads files holds one text at a time, or a batch of them, so a data
        set may be larger than memory.

        Raises:
            DataError: the data set is not there or cannot be read; raised when the first
                text is asked for, or the one that is damaged.
        """


@runtime_checkable
class Fingerprinted(TextSource, Protocol):
    """A source that can tell without reading its texts whether they are the same as before."""

    def fingerprint(self) -> str | None:
        """Return a text that is another one whenever the texts, or how they are read, are.

        Returns:
            It, or None if that cannot be told now.

        Raises:
            DataError: the data set is not there.
        """


@runtime_checkable
class Described(TextSource, Protocol):
    """A source that can say in one line what it has recognized."""

    def describe(self) -> str | None:
        """Say how the texts are read, where that is not what the configuration says.

        Returns:
            A sentence without its full stop; None if there is nothing to say.

        Raises:
            DataError: the data set cannot be read.
        """


def lacks(where: str, what: str, name: str, present: Iterable[str]) -> DataError:
    """Return the error for a column or field that is not there.

    Args:
        where: the file, line or row.
        what: what the source calls it, which is also its option.
        name: the one that was asked for.
        present: those that are there.
    """
    known = list(present)
    has = f"It has: {', '.join(known)}. Choose one with {what}=NAME." if known else "It has none."
    close = did_you_mean(name, known)
    return DataError(f'{where} has no {what} "{name}"', hint=f"{close} {has}" if close else has)
