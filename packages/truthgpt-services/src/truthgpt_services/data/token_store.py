"""The tokens of a data set: in the cache, mapped from files, or in memory.

What is in the cache is found by content: a hash of the texts, as they stream, of what the
tokenizer is made of, and of the options. A source that can tell without reading its files
whether they changed (`fingerprint`) is not even read: which content a fingerprint stands for
is kept beside the tokens. Of other sources, few texts stay in memory: to find them in the
cache they would have to be read, and tokenizing them takes no longer.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgpt_core.optimization import Progress
from truthgpt_core.paths import cache_dir, read_json, write_file
from truthgpt_core.sources import Fingerprinted, TextSource
from truthgpt_services.data.chat_template import Chat
from truthgpt_services.data.token_arrays import (
    ArrayLists,
    Arrays,
    Sink,
    most_bytes,
    read_arrays,
    write_arrays,
)
from truthgpt_services.data.tokenize import Encoded, TextEncoder
from truthgpt_services.data.tokenize_workers import EncodingPool
from truthgpt_services.errors import DataError

Texts = TextSource | Iterable[str | list[dict[str, Any]]]

# A second or so of tokenizing.
IN_MEMORY = 4_000_000
_CHUNK = 500_000
_MOST_PROCESSES = 8
_FORMAT = "1"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenStore:
    """The tokens of a data set, document after document.

    Args:
        arrays: `ids`; `lengths`, of each document; and `loss`, for each token, if there are
            conversations.
        key: a hash of what they were made of.
    """

    arrays: Arrays
    key: str

    @property
    def ids(self) -> NDArray[Any]:
        """The tokens."""
        return self.arrays.arrays["ids"]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many tokens each document has."""
        return self.arrays.arrays["lengths"]

    @property
    def loss(self) -> NDArray[np.bool_] | None:
        """For each token whether there is loss on it; None if there is on all."""
        return self.arrays.arrays.get("loss")


def open_tokens(
    texts: Texts, encoder: TextEncoder, *, processes: int | None, progress: Progress
) -> TokenStore:
    """Return the tokens of a data set, making them unless the cache has them.

    Args:
        texts: a source, or texts and lists of messages.
        encoder: what makes them.
        processes: how many do so; one for each core, up to 8, if None. Few texts are done
            in this process.
        progress: told how many million characters are done; it may raise, to stop.

    Raises:
        DataError: a text cannot be read or encoded, or the cache cannot be written.
    """
    if isinstance(texts, str):
        raise DataError("The texts are a single text", hint="Give a list of texts.")
    return _Opening(texts, encoder, processes, progress).open()


class _Opening:
    """One data set on its way from the cache, or into it."""

    def __init__(
        self, texts: Texts, encoder: TextEncoder, processes: int | None, progress: Progress
    ) -> None:
        self._texts = texts
        self._encoder = encoder
        self._processes = processes or min(os.cpu_count() or 1, _MOST_PROCESSES)
        self._progress = progress
        self._folder = cache_dir("tokens")

    def open(self) -> TokenStore:
        before = _fingerprint(self._texts, self._encoder)
        key = self._content_of(before) if before else None
        found = self._read(key) if key else None
        if found:
            return found
        chunks = _chunks(self._texts)
        head = list[list[str]]()
        for chunk in chunks:
            head.append(chunk)
            if sum(map(_size, head)) > IN_MEMORY:
                found, kept = self._much(chain(head, chunks)), True
                break
        else:
            # An empty data set has arrays too.
            found = self._little(head or [[]])
            kept = before is not None and self._keep(found)
        # Not if a file changed while it was read: then it is not known which was.
        if before and kept and before == _fingerprint(self._texts, self._encoder):
            self._remember(before, found.key)
        return found

    def _little(self, chunks: list[list[str]]) -> TokenStore:
        hashed = _Hash(self._encoder)
        encoded = map(self._encoder.encode, hashed.pass_through(chunks))
        lists = ArrayLists()
        _fill(lists, encoded, self._progress, hashed)
        return TokenStore(lists.arrays({}), hashed.key())

    def _keep(self, little: TokenStore) -> bool:
        """Keep what was soon tokenized: it may be a little of files that are long."""

        def fill(sink: Sink) -> tuple[str, Mapping[str, Any]]:
            for name, values in little.arrays.arrays.items():
                sink.append(name, values)
            return little.key, {"key": little.key, "little": True}

        most_bytes()
        try:
            write_arrays(self._folder, fill)
        except DataError as error:
            _log.info("%s; the texts are read again next time", error.message)
            return False
        self._forget()
        return True

    def _much(self, chunks: Iterator[list[str]]) -> TokenStore:
        found = None
        if isinstance(self._texts, TextSource) or iter(self._texts) is not self._texts:
            # To read it twice is nothing beside tokenizing it again.
            found = self._read(self._hash())
        return found or self._write(chunks)

    def _read(self, key: str) -> TokenStore | None:
        arrays = read_arrays(self._folder / key)
        if arrays is None or arrays.facts.get("key") != key:
            return None
        if arrays.facts.get("little"):
            # Nothing that is made of it needs a file then.
            arrays = Arrays({name: np.array(of) for name, of in arrays.arrays.items()}, {})
        return TokenStore(arrays, key)

    def _hash(self) -> str:
        hashed = _Hash(self._encoder)
        for _ in hashed.pass_through(_chunks(self._texts)):
            self._progress("Reading texts, million characters", hashed.millions, 0)
        return hashed.key()

    def _write(self, chunks: Iterator[list[str]]) -> TokenStore:
        hashed = _Hash(self._encoder)

        def fill(sink: Sink) -> tuple[str, Mapping[str, Any]]:
            passed = hashed.pass_through(chunks)
            if self._processes < 2:
                encoded = map(self._encoder.encode, passed)
                pool: Any = nullcontext()
            else:
                pool = EncodingPool(self._encoder, self._processes)
                encoded = pool.encode(passed)
            with pool:
                _fill(sink, encoded, self._progress, hashed)
            return hashed.key(), {"key": hashed.key()}

        arrays = write_arrays(self._folder, fill)
        self._forget()
        return TokenStore(arrays, hashed.key())

    def _content_of(self, fingerprint: str) -> str | None:
        try:
            known = read_json(self._note(fingerprint))
            key = known["key"] if known["fingerprint"] == fingerprint else None
        except (OSError, ValueError, KeyError):
            return None
        return key if isinstance(key, str) and re.fullmatch("[0-9a-f]+", key) else None

    def _remember(self, fingerprint: str, key: str) -> None:
        note = self._note(fingerprint)
        # If not, the texts are read once more next time, and that is all.
        with suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_file(note, json.dumps({"fingerprint": fingerprint, "key": key}), flush=False)

    def _forget(self) -> None:
        """Remove notes of tokens that are not there any more."""
        for note in self._folder.glob("known/*"):
            with suppress(OSError):
                try:
                    gone = not (self._folder / str(read_json(note)["key"])).is_dir()
                except (ValueError, KeyError):
                    gone = True
                if gone:
                    note.unlink()

    def _note(self, fingerprint: str) -> Path:
        return self._folder / "known" / f"{fingerprint}.json"


class _Hash:
    """A hash of texts as they stream, and of what makes tokens of them."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._hash = hashlib.blake2b(f"{_FORMAT} {encoder.key}".encode(), digest_size=20)
        self._characters = 0
        self._texts = 0

    @property
    def millions(self) -> int:
        """How many million characters there were."""
        return self._characters // 1_000_000

    def pass_through(self, chunks: Iterable[list[str]]) -> Iterator[list[str]]:
        for chunk in chunks:
            # With the lengths, so that other texts that join to the same are others.
            lengths = np.fromiter(map(len, chunk), np.int64, len(chunk))
            kinds = bytes(isinstance(text, Chat) for text in chunk)
            try:
                joined = "".join(chunk).encode()
            except UnicodeEncodeError:
                raise self._no_text(chunk) from None
            for part in (lengths.tobytes(), kinds, joined):
                self._hash.update(part)
            self._characters += int(lengths.sum())
            self._texts += len(chunk)
            yield chunk

    def key(self) -> str:
        return self._hash.hexdigest()

    def _no_text(self, chunk: list[str]) -> DataError:
        for number, text in enumerate(chunk, start=self._texts):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                half = text[error.start].encode("unicode_escape").decode()
                return DataError(f"Text {number} has half a surrogate pair, {half}")
        raise AssertionError("each text can be encoded, and all of them together cannot")


def _fill(sink: Sink, encoded: Iterable[Encoded], progress: Progress, hashed: _Hash) -> None:
    """Append what is encoded; a `loss` that begins late is on for all that was before."""
    done, has_loss = 0, False
    for part in encoded:
        sink.append("ids", part.ids)
        sink.append("lengths", part.lengths)
        if part.loss is not None and not has_loss:
            has_loss = True
            for begin in range(0, done, _CHUNK):
                sink.append("loss", np.ones(min(_CHUNK, done - begin), np.bool_))
        if has_loss:
            loss = np.ones(part.ids.size, np.bool_) if part.loss is None else part.loss
            sink.append("loss", loss)
        done += part.ids.size
        progress("Tokenizing, million characters", hashed.millions, 0)


def _chunks(texts: Texts) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    stream = texts.texts() if isinstance(texts, TextSource) else texts
    for number, given in enumerate(stream):
        # Not a text, so messages, or a mistake that the error names.
        text = given if isinstance(given, str) else Chat.of(given, f"Text {number}")
        chunk.append(text)
        size += len(text)
        if size > _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _size(chunk: list[str]) -> int:
    return sum(map(len, chunk))


def _fingerprint(texts: Texts, encoder: TextEncoder) -> str | None:
    """Return a name for what a source has and what is made of it, if it can tell."""
    if not isinstance(texts, Fingerprinted):
        return None
    fingerprint = texts.fingerprint()
    if fingerprint is None:
        return None
    # Another version may read the same file in another way.
    parts = [
        _FORMAT,
        version("truthgpt-services"),
        encoder.key,
        type(texts).__qualname__,
        fingerprint,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
