"""How much the cache of tokens keeps: what was not used for longest goes first.

Whoever uses a directory of arrays has a lock on its manifest that many can share, and the
manifest's time of change is that of its last use. One that is removed takes another name first,
so a process that is killed meanwhile leaves it whole, or as something that the next one removes.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from truthgpt_core.paths import open_regular, read_regular_bytes
from truthgpt_services.errors import DataError
from truthgpt_services.storage.atomic import MARKER
from truthgpt_services.storage.locks import share, try_alone

LIMIT = "TRUTHGPT_TOKENS_GB"
"""The variable of the environment that says how many gigabytes are kept."""

_GIGABYTES = 20.0
_LARGEST_NOTE = 1 << 20
_REMOVED = re.compile(r"\..+\.removed-\d+")

_log = logging.getLogger(__name__)


def most_bytes() -> int:
    """Return how many bytes are kept.

    Raises:
        DataError: what the environment says is no size.
    """
    given = os.environ.get(LIMIT)
    try:
        gigabytes = _GIGABYTES if given is None else float(given)
    except ValueError:
        gigabytes = math.nan
    if not (math.isfinite(gigabytes) and gigabytes >= 0):
        raise DataError(
            f'{LIMIT} is "{given}", which is no number of gigabytes',
            hint=f"Give 0 or more; without it {_GIGABYTES:.0f} are kept.",
        )
    return int(gigabytes * 1e9)


def hold(directory: Path) -> int:
    """Keep every process from removing a directory, and note that it is used now.

    Returns:
        What to give to `os.close` when it is not used any more.

    Raises:
        OSError: it has no manifest, or one that is not a regular file.
    """
    path = directory / MARKER
    while True:
        with open_regular(path) as file:
            descriptor = os.dup(file.fileno())
        try:
            share(descriptor)
            # It may have been removed or replaced while we waited.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                with suppress(OSError):  # somebody else's, or on a disk that is read-only
                    os.utime(path)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def keep_within(folder: Path, most: int) -> None:
    """Remove what was not used for longest until the rest fits; nothing that is in use.

    Args:
        folder: has the directories of arrays.
        most: how many bytes are kept.
    """
    kept: list[tuple[int, Path, int]] = []
    for path in folder.iterdir():
        if _REMOVED.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif not path.name.startswith("."):
            with suppress(OSError):  # no directory of arrays, or gone by now
                used = (path / MARKER).stat().st_mtime_ns
                kept.append((used, path, sum(each.stat().st_size for each in path.iterdir())))
    total = sum(size for _, _, size in kept)
    for _, path, size in sorted(kept):
        if total <= most:
            break
        if _remove(path):
            _log.info("%s was not used for longest, and is removed from the cache", path)
            total -= size
    _forget(folder)


def _remove(path: Path) -> bool:
    grave = path.with_name(f".{path.name}.removed-{os.getpid()}")
    with suppress(OSError), open_regular(path / MARKER) as file:
        if not try_alone(file):
            return False
        path.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)
        return True
    return False


def _forget(folder: Path) -> None:
    """Remove notes of tokens that are not there any more."""
    for note in folder.glob("known/*"):
        with suppress(OSError):
            try:
                known = json.loads(read_regular_bytes(note, limit=_LARGEST_NOTE))
                gone = not (folder / str(known["key"])).is_dir()
            except (ValueError, KeyError, TypeError, RecursionError):
                gone = True
            if gone:
                note.unlink()
