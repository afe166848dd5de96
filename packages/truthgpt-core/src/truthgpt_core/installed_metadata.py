"""Reading the metadata of installed distributions, whatever has become of its files.

pydantic, torch and transformers read the entry points of everything that is installed when
they are imported. One file that is not UTF-8, or a named pipe in the place of one, would break
or hang every command that imports them.
"""

from __future__ import annotations

import os
import stat
from importlib.metadata import Distribution, EntryPoints, PathDistribution
from pathlib import Path

from truthgpt_core.errors import TruthGPTError


class DamagedMetadataError(TruthGPTError):
    """A file of a distribution's metadata cannot be read as text."""


_strict_entry_points = Distribution.entry_points
_strict_read_text = PathDistribution.read_text


def read_text(distribution: Distribution, name: str) -> str | None:
    """Read a file of a distribution's metadata, without waiting for anything.

    Args:
        distribution: the distribution.
        name: the name of the file.

    Returns:
        Its text; None if there is no such file, or none that may be read.

    Raises:
        DamagedMetadataError: it is not an ordinary file, or not UTF-8.
    """
    folder = getattr(distribution, "_path", None)
    try:
        if not isinstance(folder, Path):
            return _strictly(distribution, name)  # in a zip file, say
        # Of every distribution that is installed: `Path` and text files take twice as long.
        path = f"{folder}{os.sep}{name}"
        status = os.stat(path)  # noqa: PTH116
        if stat.S_ISDIR(status.st_mode):
            return None
        if not stat.S_ISREG(status.st_mode):
            raise DamagedMetadataError(f"its {name} is not an ordinary file: reinstall it")
        # Should it have become a pipe since, reading it ends at once.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            text = file.readall().decode()
        return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        why = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else "cannot be read"
        raise DamagedMetadataError(f"its {name} {why}: reinstall it") from error


def entry_points(distribution: Distribution) -> EntryPoints:
    """Read a distribution's entry points, after `read_text` could read their file.

    Raises:
        Exception: they are not written as entry points are; of many types.
    """
    found: EntryPoints = _strict_entry_points.__get__(distribution)
    return found


def tolerate_damage() -> None:
    """Let `importlib.metadata` pass over files that cannot be read, in the whole process.

    For processes that are ours alone. What is passed over is named by `discovery.discover`.
    """
    setattr(PathDistribution, "read_text", _read_or_none)  # noqa: B010 - mypy refuses the other way
    setattr(Distribution, "entry_points", property(_entry_points_or_none))  # noqa: B010


def _strictly(distribution: Distribution, name: str) -> str | None:
    if isinstance(distribution, PathDistribution):
        return _strict_read_text(distribution, name)
    return distribution.read_text(name)


def _read_or_none(distribution: Distribution, filename: str | os.PathLike[str]) -> str | None:
    try:
        return read_text(distribution, os.fspath(filename))
    except DamagedMetadataError:
        return None


def _entry_points_or_none(distribution: Distribution) -> EntryPoints:
    try:
        return entry_points(distribution)
    except Exception:  # noqa: BLE001 - a damaged file shows in many ways, and is not ours
        return EntryPoints()
