"""One side of a data set that is split as it streams."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from truthgpt_core.sources import Described, Fingerprinted, TextSource
from truthgpt_services.errors import DataError

_KEYS = 1 << 128


def key_of(text: object, seed: int) -> bytes | None:
    """Return what decides the side of a text; None if it is not a text that can be encoded."""
    if not isinstance(text, str):
        return None
    try:
        encoded = f"{seed}:{text}".encode()
    except UnicodeEncodeError:
        return None
    return hashlib.blake2b(encoded, digest_size=16).digest()


class SplitTexts:
    """The texts of a source that are kept for validation, or those that are not.

    A text's own hash decides, so nothing is held in memory and copies of a text are on one
    side; of few texts it may be that none is kept. Blank texts are left out.

    Args:
        source: the whole.
        fraction: how much is kept, from 0.0 to less than 1.0.
        seed: another one gives another split.
        validation: whether these are the texts that are kept.
        where: what is said of the data set in errors.
    """

    def __init__(
        self, source: TextSource, *, fraction: float, seed: int, validation: bool, where: str
    ) -> None:
        self._source = source
        self._fraction = fraction
        self._seed = seed
        self._validation = validation
        self._where = where

    def texts(self) -> Iterator[str]:
        """Yield the texts of this side, in the order of the source.

        Raises:
            DataError: the source cannot be read, has something that is not a text, or nothing
                for this side.
        """
        limit = int(self._fraction * _KEYS)
        found, number = False, -1
        for number, text in enumerate(self._source.texts()):
            key = key_of(text, self._seed)
            if key is None:
                raise DataError(f"{self._where} has no proper text at {number}: {text!r:.80}")
            held_out = int.from_bytes(key, "big") < limit
            if held_out is self._validation and text and not text.isspace():
                found = True
                yield text
        if not found:
            raise self._none(number + 1)

    def fingerprint(self) -> str | None:
        """Return that of the source with what makes this side of it; None if it has none."""
        fingerprint = (
            self._source.fingerprint() if isinstance(self._source, Fingerprinted) else None
        )
        if fingerprint is None:
            return None
        kind = type(self._source).__qualname__
        return f"{self._fraction} {self._seed} {self._validation} {kind} {fingerprint}"

    def describe(self) -> str | None:
        """Return what the source says of itself, if it does."""
        return self._source.describe() if isinstance(self._source, Described) else None

    def _none(self, texts: int) -> DataError:
        if not texts:
            return DataError(f"{self._where} is empty: it has no text")
        if not self._fraction:
            return DataError(
                f"Nothing can be learned from {self._where}: its {texts} texts are blank"
            )
        what = "validate with" if self._validation else "train on"
        return DataError(
            f"{self._where} has no text to {what}: its texts, {texts}, are few or blank, and "
            f"validation_fraction={self._fraction} has left none",
            hint="Give another validation_fraction or seed, or more texts.",
        )
