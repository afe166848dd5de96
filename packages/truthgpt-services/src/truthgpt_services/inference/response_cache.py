"""The response cache: answers by key, in memory or in a directory that several processes share.

Nothing is flushed to the disk: an answer that a power cut takes is computed again.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from truthgpt_services.storage.lru import FileCache

logger = logging.getLogger(__name__)

_SUFFIX = ".answer"


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """How often a cache was asked, since it was made.

    Attributes:
        hits: how many answers it had.
        misses: how many it had not.
    """

    hits: int = 0
    misses: int = 0


class AnswerCache:
    """Keeps texts by their keys; the least recently used go first.

    Its methods may be called from several threads, and its directory used by several
    processes, at once.

    Args:
        directory: where to keep them; in memory alone if None.
        max_bytes: how much they may take.
    """

    def __init__(self, directory: Path | None, max_bytes: int) -> None:
        self._files = (
            None if directory is None else FileCache(directory, _SUFFIX, max_bytes=max_bytes)
        )
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._memory: OrderedDict[str, str] = OrderedDict()
        self._in_memory = 0
        self._hits = self._misses = 0
        self._warned = False

    @property
    def statistics(self) -> CacheStatistics:
        """How often it was asked."""
        with self._lock:
            return CacheStatistics(self._hits, self._misses)

    def get(self, key: str, usable: Callable[[str], bool] | None = None) -> str | None:
        """Return the text of a key; None if it is not there, or what is there is damaged.

        Args:
            key: 64 hexadecimal digits.
            usable: what is there counts as damaged if this is false of it.
        """
        with self._lock:
            text = self._memory.get(key)
            if text is not None:
                self._memory.move_to_end(key)
        if text is None and self._files is not None:
            text = self._files.get(key)
        if text is not None and usable is not None and not usable(text):
            text = None
        with self._lock:
            if text is None:
                self._misses += 1
            else:
                self._hits += 1
        return text

    def put(self, key: str, text: str) -> None:
        """Keep a text. What cannot be written is kept in memory, and a warning logged once.

        Args:
            key: 64 hexadecimal digits.
            text: the answer.
        """
        if self._files is not None:
            try:
                self._files.put(key, text)
                return
            except OSError as error:
                self._warn(error)
        with self._lock:
            self._remember(key, text)

    def clear(self) -> None:
        """Forget every text, those of other processes in the directory included."""
        with self._lock:
            self._memory.clear()
            self._in_memory = 0
        if self._files is not None:
            self._files.clear()

    def _remember(self, key: str, text: str) -> None:
        self._forget(key)
        size = _size(key, text)
        if size > self._max_bytes:
            return
        self._memory[key] = text
        self._in_memory += size
        while self._in_memory > self._max_bytes:
            self._forget(next(iter(self._memory)))

    def _forget(self, key: str) -> None:
        text = self._memory.pop(key, None)
        if text is not None:
            self._in_memory -= _size(key, text)

    def _warn(self, error: OSError) -> None:
        assert self._files is not None
        with self._lock:
            if self._warned:
                return
            self._warned = True
        # Not warnings.warn: where warnings are errors, it would cost the answer.
        logger.warning(
            "Answers cannot be written into %s, and are kept in memory instead: %s",
            self._files.folder,
            error.strerror or error,
        )


def _size(key: str, text: str) -> int:
    return sys.getsizeof(key) + sys.getsizeof(text)
