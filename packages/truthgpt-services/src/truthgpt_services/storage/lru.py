"""What the cache keeps within a bound: what was used longest ago goes first.

The time of last use is the time at which a file was last changed, which using it sets.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from truthgpt_services.storage.atomic import MARKER, remove_abandoned, remove_unheld
from truthgpt_services.storage.locks import hold

_log = logging.getLogger(__name__)


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
