"""What the cache keeps within a bound: what was used longest ago goes first.

The time of last use is the time at which a file was last changed, which using it sets.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from time import time

from truthgpt_core.paths import is_unfinished, open_regular, write_file
from truthgpt_services.storage.atomic import MARKER, remove_abandoned, remove_unheld
from truthgpt_services.storage.locks import hold

_log = logging.getLogger(__name__)

# Disks hand out space in blocks: most files of a cache are smaller than one.
_BLOCK = 4096
# Each time this part of the limit was written, the directory is looked through, and as much
# is made free. Then one process never goes beyond the limit, and few are looked through often.
_PART = 16
# After so many seconds no process is still writing a file.
_ABANDONED = 3600.0


def use(directory: Path) -> BufferedReader:
    """Hold a directory (see `locks.hold`), and note that it is used now.

    Raises:
        OSError: it has no marker, or one that is not a regular file.
    """
    marker = directory / MARKER
    held = hold(marker)
    with suppress(OSError):  # another user's, or on a disk that is read-only
        os.utime(marker)
    return held


def keep_within(folder: Path, most: int) -> None:
    """Remove the directories that were used longest ago until the rest fits; none that is held.

    What killed processes left there is removed too.

    Args:
        folder: has the directories, each with its marker and no others in it.
        most: how many bytes are kept.
    """
    remove_abandoned(folder)
    kept: list[tuple[int, int, Path]] = []
    for path in folder.iterdir():
        if not path.name.startswith("."):
            with suppress(OSError):  # not such a directory, or gone by now
                size = sum(each.stat().st_size for each in path.iterdir())
                kept.append(((path / MARKER).stat().st_mtime_ns, size, path))

    def removed(path: Path) -> bool:
        if done := remove_unheld(path / MARKER):
            _log.info("%s was used longest ago, and is removed from the cache", path)
        return done

    _make_room(kept, most, removed)


class FileCache:
    """Texts by their keys, each in a file that only its owner can read.

    A file begins with a checksum of its key and its text, and is written beside and renamed. What
    a crash, a full disk, a bit flip or a wrong name leaves counts as nothing. The directory may
    have other files, and be used by several threads and processes at once.

    Args:
        folder: of the files; it is made when the first is written.
        suffix: of their names, such as ".answer"; the rest is the key, 64 hexadecimal digits.
        max_bytes: how much they may take on the disk.
        max_age: after so many seconds a text is not given any more; then using it does not
            make it younger.
        flush: wait until what is written is on the disk.
    """

    def __init__(
        self,
        folder: Path,
        suffix: str,
        *,
        max_bytes: int,
        max_age: float | None = None,
        flush: bool = False,
    ) -> None:
        self.folder = folder
        self._suffix = suffix
        self._is_ours = re.compile(rf"[0-9a-f]{{64}}{re.escape(suffix)}").fullmatch
        self._allowed = max_bytes - max_bytes // _PART
        self._part = max_bytes // _PART
        self._until_look = 0
        self._max_age = max_age
        self._flush = flush

    def get(self, key: str) -> str | None:
        """Return the text of a key; None if it is not there, too old, damaged or not ours."""
        with suppress(OSError), open_regular(self._path(key), own=True) as file:
            found = os.fstat(file.fileno())
            if found.st_size > self._allowed or self._is_old(found):
                return None
            text = _text_of(key, file.read(found.st_size + 1))
            if text is not None and self._max_age is None and os.utime in os.supports_fd:
                with suppress(OSError):  # a directory that is read-only: nothing is removed either
                    os.utime(file.fileno())
            return text
        return None

    def put(self, key: str, text: str) -> None:
        """Keep a text, unless it is larger than all may be.

        Raises:
            OSError: it cannot be written.
        """
        body = text.encode("utf-8", "surrogatepass")
        content = _checksum(key, body) + b"\n" + body
        size = _on_disk(len(content))
        if size > self._allowed:
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        write_file(self._path(key), content, private=True, flush=self._flush)
        self._until_look -= size
        if self._until_look < 0:
            self._tidy()
            self._until_look = self._part

    def remove(self, key: str) -> None:
        """Forget the text of a key; what cannot be removed stays."""
        with suppress(OSError):
            self._path(key).unlink()

    def clear(self) -> None:
        """Forget every text; other files stay."""
        with suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                if self._is_ours(path.name):
                    with suppress(OSError):
                        path.unlink()

    def _tidy(self) -> None:
        kept: list[tuple[int, int, Path]] = []
        for path in self.folder.iterdir():
            with suppress(OSError):  # another process may be removing files as well
                found = path.lstat()
                if self._is_ours(path.name) and not self._is_old(found):
                    kept.append((found.st_mtime_ns, _on_disk(found.st_size), path))
                elif self._is_ours(path.name) or (
                    is_unfinished(path.name) and found.st_mtime < time() - _ABANDONED
                ):
                    path.unlink()

        def removed(path: Path) -> bool:
            with suppress(OSError):
                path.unlink(missing_ok=True)
                return True
            return False

        _make_room(kept, self._allowed, removed)

    def _is_old(self, found: os.stat_result) -> bool:
        return self._max_age is not None and found.st_mtime < time() - self._max_age

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{self._suffix}"


def _make_room(
    kept: Iterable[tuple[int, int, Path]], most: int, remove: Callable[[Path], bool]
) -> None:
    """Remove what was used longest ago until the rest takes no more than `most` bytes.

    Args:
        kept: when each was last used, its size, and its path.
        most: how many bytes may stay.
        remove: removes one; returns whether it did.
    """
    kept = sorted(kept)
    total = sum(size for _, size, _ in kept)
    for _, size, path in kept:
        if total <= most:
            break
        if remove(path):
            total -= size


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _checksum(key: str, body: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\n" + body).hexdigest().encode()


def _text_of(key: str, content: bytes) -> str | None:
    checksum, _, body = content.partition(b"\n")
    if checksum != _checksum(key, body):
        return None
    try:
        return body.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # a checksum is no signature: below it there may be anything
        return None
