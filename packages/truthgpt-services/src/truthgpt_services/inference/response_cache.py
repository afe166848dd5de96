"""Answers that are kept: in memory, or in a directory that several processes may share.

A file is written aside and renamed, and begins with a checksum of the rest. So nobody reads
half of one, and what a crash, a full disk or a bit flip leaves behind is as good as nothing:
the answer is computed again. That is also why nothing is flushed to disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import stat
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time

logger = logging.getLogger(__name__)

_SUFFIX = ".answer"
_ANSWER = re.compile(rf"[0-9a-f]{{64}}{re.escape(_SUFFIX)}")
_PARTIAL = re.compile(rf"\.[0-9a-f]{{64}}-[0-9a-f]+{re.escape(_SUFFIX)}")

# Disks hand out space in blocks: most answers are smaller than one.
_BLOCK = 4096

# Each time this part of the limit was written, the directory is looked through, and as much
# is made free. Then one process never goes beyond the limit, and few are looked through often.
_PART = 16

# Never through a link, and never waiting for the other end of a pipe.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_READ = os.O_RDONLY | _NO_LINK | getattr(os, "O_NONBLOCK", 0)
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK

# After so many seconds nobody is still writing a file.
_ABANDONED = 3600.0


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
        self._folder = None if directory is None else _Folder(directory, max_bytes)
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
        if text is None and self._folder is not None:
            text = self._folder.read(key)
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
        if self._folder is not None:
            try:
                self._folder.write(key, text)
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
        if self._folder is not None:
            self._folder.clear()

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
        assert self._folder is not None
        with self._lock:
            if self._warned:
                return
            self._warned = True
        # Not warnings.warn: where warnings are errors, it would cost the answer.
        logger.warning(
            "Answers cannot be written into %s, and are kept in memory instead: %s",
            self._folder.path,
            error.strerror or error,
        )


def _size(key: str, text: str) -> int:
    return sys.getsizeof(key) + sys.getsizeof(text)


class _Folder:
    """Answers as files of a directory, in which there may be others."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._allowed = max_bytes - max_bytes // _PART
        self._until_look = 0
        self._part = max_bytes // _PART

    def read(self, key: str) -> str | None:
        try:
            file = os.open(self._file(key), _READ)
        except OSError:
            return None
        try:
            facts = os.fstat(file)
            # What others wrote there, if they may, is not an answer of ours.
            mine = not hasattr(os, "geteuid") or facts.st_uid == os.geteuid()
            if not stat.S_ISREG(facts.st_mode) or not mine or facts.st_size > self._allowed:
                return None
            with os.fdopen(file, "rb", closefd=False) as content:
                text = _unpacked(key, content.read(facts.st_size + 1))
            if text is not None and os.utime in os.supports_fd:
                # The time of a file is when it was last used; in a directory that is read-only
                # nothing is removed either.
                with suppress(OSError):
                    os.utime(file)
            return text
        except OSError:
            return None
        finally:
            os.close(file)

    def write(self, key: str, text: str) -> None:
        content = _packed(key, text)
        size = _on_disk(len(content))
        if size > self._allowed:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)
        aside = self.path / f".{key}-{secrets.token_hex(8)}{_SUFFIX}"
        try:
            with os.fdopen(os.open(aside, _WRITE, 0o600), "wb") as file:
                file.write(content)
            aside.replace(self._file(key))
        except BaseException:
            with suppress(OSError):
                aside.unlink()
            raise
        self._until_look -= size
        if self._until_look < 0:
            self._make_room()
            self._until_look = self._part

    def clear(self) -> None:
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                if _ANSWER.fullmatch(entry.name):
                    with suppress(OSError):
                        Path(entry).unlink()

    def _make_room(self) -> None:
        """Remove the least recently used until the rest takes what is allowed."""
        kept: list[tuple[int, int, Path]] = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                # Another process may be removing files as well.
                with suppress(OSError):
                    if _ANSWER.fullmatch(entry.name):
                        facts = entry.stat(follow_symlinks=False)
                        kept.append((facts.st_mtime_ns, _on_disk(facts.st_size), Path(entry)))
                    elif _PARTIAL.fullmatch(entry.name) and _is_old(entry):
                        Path(entry).unlink()
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= self._allowed:
                break
            with suppress(OSError):
                path.unlink(missing_ok=True)
                total -= size

    def _file(self, key: str) -> Path:
        return self.path / f"{key}{_SUFFIX}"


def _is_old(entry: os.DirEntry[str]) -> bool:
    return entry.stat(follow_symlinks=False).st_mtime < time() - _ABANDONED


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _packed(key: str, text: str) -> bytes:
    body = json.dumps({"key": key, "text": text}).encode("ascii")
    return hashlib.sha256(body).hexdigest().encode("ascii") + b"\n" + body


def _unpacked(key: str, content: bytes) -> str | None:
    checksum, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode("ascii") != checksum:
        return None
    # A checksum is no signature: what is below it may be anything. RecursionError: deep lists.
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    # A file that was given another name is whole, and still not the answer.
    if not isinstance(answer, dict) or answer.get("key") != key:
        return None
    text = answer.get("text")
    return text if isinstance(text, str) else None
