"""Finding the files of a data set and reading their lines, with errors that say where."""

from __future__ import annotations

import codecs
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from truthgpt_core.errors import did_you_mean
from truthgpt_core.paths import display_path, expanded, open_regular
from truthgpt_services.errors import DataError

# File systems keep time in steps, some of two seconds.
RECENT = 2.0


def find_files(dataset: str, suffix: str) -> list[Path]:
    """Return the file that `dataset` names, or all those below the directory that it names.

    Args:
        dataset: a path; `~` is the home directory. A file may have any name.
        suffix: which files of a directory belong to the data set, as ".txt". Links to
            directories are not followed.

    Returns:
        One file or more; those of a directory in the order of their paths.

    Raises:
        DataError: nothing is there, or nothing that belongs to the data set.
    """
    if not dataset.strip():
        raise DataError("No data set is named", hint="Give the path of a file or a directory.")
    try:
        path = expanded(dataset)
        if not path.is_dir():
            _check_exists(path)
            return [path]
        found = _below(path, suffix)
    except OSError as error:
        path_text = display_path(dataset)
        raise DataError(f'"{path_text}" cannot be read: {error.strerror}') from error
    if not found:
        raise DataError(f"The directory {path} has no {suffix} file in it")
    return found


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their ends; a byte order mark is left out.

    Raises:
        DataError: the file cannot be read, or is not UTF-8: the error names the offset of
            the first byte that is not, counted from 0.
    """
    offset = 0
    try:
        with open_regular(path) as file:
            # In bytes: no byte of another character's encoding is a line feed.
            for number, raw in enumerate(file, start=1):
                mark = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) and not offset else 0
                try:
                    yield raw[mark:].decode("utf-8")
                except UnicodeDecodeError as error:
                    at = offset + mark + error.start
                    byte = error.object[error.start]
                    raise DataError(
                        f"{path} is not UTF-8: byte 0x{byte:02x} at offset {at}, in line {number}",
                        hint="Convert it to UTF-8.",
                    ) from None
                offset += len(raw)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def fingerprint(paths: Iterable[Path], *options: object) -> str | None:
    """Return a text that tells these files, as they are now, from any others.

    It is made of their paths, sizes, inodes and times of change. The time of the last change
    to an inode cannot be set, so a file that was replaced by one of the same size and date is
    another one.

    Args:
        paths: the files.
        options: how they are read, in JSON types.

    Returns:
        It, or None if a file changed so recently that another change could look the same.

    Raises:
        DataError: a file is not there any more.
    """
    now = time.time()
    parts: list[object] = [options]
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        if max(stat.st_mtime, stat.st_ctime) > now - RECENT:
            return None
        times = (stat.st_mtime_ns, stat.st_ctime_ns)
        parts.append([str(path.absolute()), stat.st_size, stat.st_dev, stat.st_ino, *times])
    return json.dumps(parts)


def _check_exists(path: Path) -> None:
    if path.exists():
        return
    siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    raise DataError(f'There is no data set at "{path}"', hint=did_you_mean(path.name, siblings))


def _below(directory: Path, suffix: str) -> list[Path]:
    # Not rglob, which passes over a directory that may not be read without a word.
    found = (
        Path(place, name)
        for place, _, names in os.walk(directory, onerror=_raise)
        for name in names
        if name.endswith(suffix)
    )
    # By parts: the order does not depend on what separates them.
    return sorted(found, key=lambda path: path.parts)


def _raise(error: OSError) -> None:
    raise error


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
