"""What worker processes print: a file for each, put together into one `worker.log`.

The file of a worker begins with a heading, its name and when it was started. Workers print what
libraries and plugins print, which has no limit; what is put together has one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.paths import cache_dir, write_file

NAME = "worker.log"
"""The file beside `report.json`."""

MOST_KEPT = 10
"""Logs of runs that failed; the oldest go first."""

_HEAD, _TAIL = 16_000, 48_000
_MOST_BYTES = 1_000_000
# Escapes would move the terminal that shows the file.
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "�")


def new_log(folder: Path, name: str) -> Path:
    """Begin the file of a worker.

    Args:
        folder: for the files of all workers of a run.
        name: of the worker.
    """
    number = sum(1 for _ in folder.glob("worker-*.log"))
    log = folder / f"worker-{number:04}.log"
    started = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    log.write_text(f"== {name}, started {started} ==\n", encoding="utf-8")
    return log


def printed(log: Path) -> str:
    """Return what a worker has printed so far, the middle left out if it is much."""
    return _read(log)[1]


def collected(folder: Path) -> str:
    """Return what all workers of a run have printed, each under its heading, 1 MB at most."""
    parts: list[str] = []
    size = 0
    logs = sorted(folder.glob("worker-*.log"))
    for done, log in enumerate(logs):
        part = "\n".join(filter(None, (each.strip("\n") for each in _read(log)))) + "\n"
        size += len(part.encode())
        if size > _MOST_BYTES:
            parts.append(f"== {len(logs) - done} more processes are left out ==\n")
            break
        parts.append(part)
    return "\n".join(parts)


def keep(folder: Path) -> Path | None:
    """Keep what the workers of a run that failed have printed in the cache directory.

    Returns:
        The file; None if they printed nothing, or it cannot be written.
    """
    if not any(printed(log).strip() for log in folder.glob("worker-*.log")):
        return None
    place = cache_dir("logs")
    now = datetime.now(UTC)
    path = place / f"{now:%Y-%m-%d-%H%M%S}-{os.getpid()}.log"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(path, collected(folder), private=True)
    except OSError:
        return None
    for old in sorted(place.glob("*.log"))[:-MOST_KEPT]:
        with suppress(OSError):
            old.unlink()
    return path


@contextmanager
def keep_logs_on_failure(folder: Path) -> Iterator[None]:
    """Keep what workers have printed if the run fails, and say in the error where."""
    try:
        yield
    except TruthGPTError as error:
        path = keep(folder)
        if path is not None:
            note = f"What its processes printed is in {path}."
            error.hint = f"{error.hint} {note}" if error.hint else note
        raise


def _read(log: Path) -> tuple[str, str]:
    with log.open("rb") as file:
        heading = file.readline()
        begins = file.tell()
        size = file.seek(0, os.SEEK_END) - begins
        file.seek(begins)
        if size <= _HEAD + _TAIL:
            body = file.read(size)
        else:
            head = file.read(_HEAD)
            file.seek(-_TAIL, os.SEEK_END)
            left_out = f"\n... {size - _HEAD - _TAIL:,} bytes are left out ...\n".encode()
            body = head + left_out + file.read(_TAIL)
    return _plain(heading), _plain(body)


def _plain(content: bytes) -> str:
    text = content.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
    return text.translate(_CONTROLS)
