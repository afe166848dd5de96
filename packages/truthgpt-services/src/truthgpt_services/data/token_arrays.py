"""Flat arrays that grow, in memory or as files of the cache that are whole or not there.

A directory of arrays has a manifest with a CRC-32 of each file; see
`truthgpt_services.storage`. All of it is read whenever a directory is opened, which takes less
than a second for the half gigabyte of tokens that a gigabyte of text has, and no memory to speak
of.
"""

from __future__ import annotations

import logging
import math
import os
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from truthgpt_core.paths import CACHE
from truthgpt_services.errors import DamagedError, DataError
from truthgpt_services.storage.atomic import (
    MARKER,
    explain_write_error,
    publish,
    remove,
    staging,
)
from truthgpt_services.storage.lru import keep_within, use
from truthgpt_services.storage.manifest import read_manifest, verify_files, write_manifest

LIMIT = "TRUTHGPT_TOKENS_GB"
"""The variable of the environment that says how many gigabytes are kept."""

_GIGABYTES = 20.0
_FORMAT = 2
# What a directory is called while it is written, so that the next one written beside it
# removes what a killed process left.
_UNFINISHED = "arrays"

_log = logging.getLogger(__name__)


class Sink(Protocol):
    """What arrays are appended to."""

    def append(self, name: str, values: NDArray[Any]) -> None:
        """Add values to the end of the array of this name; all have one dtype."""


@dataclass(frozen=True)
class Arrays:
    """Flat arrays by their names.

    Args:
        arrays: those of a directory are mapped from their files, and read when used.
        facts: what else there is to know of them, in JSON types.
        place: their directory; None if they are in memory.
    """

    arrays: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any]
    place: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.place is None:
            return (Arrays, (dict(self.arrays), dict(self.facts)))
        # Another process maps the files too.
        dtypes = {name: array.dtype.str for name, array in self.arrays.items()}
        return (_map, (self.place, dtypes, dict(self.facts)))


class ArrayLists:
    """A sink in memory."""

    def __init__(self) -> None:
        self._parts: dict[str, list[NDArray[Any]]] = {}

    def append(self, name: str, values: NDArray[Any]) -> None:
        """Add values to the end of the array of this name."""
        self._parts.setdefault(name, []).append(values)

    def arrays(self, facts: Mapping[str, Any]) -> Arrays:
        """Return the arrays as they are now."""
        return Arrays({name: np.concatenate(parts) for name, parts in self._parts.items()}, facts)


class _ArrayFiles:
    """A sink in a directory: one file for each array."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, BinaryIO] = {}
        self._dtypes: dict[str, str] = {}
        self._open = ExitStack()

    def append(self, name: str, values: NDArray[Any]) -> None:
        if name not in self._files:
            file = (self._directory / f"{name}.bin").open("wb")
            self._files[name] = self._open.enter_context(file)
            self._dtypes[name] = values.dtype.str
        self._files[name].write(np.ascontiguousarray(values, dtype=self._dtypes[name]).tobytes())

    def close(self) -> None:
        self._open.close()

    def finish(self, facts: Mapping[str, Any]) -> None:
        self.close()
        content = {"format": _FORMAT, "kind": "arrays", "arrays": self._dtypes, "facts": facts}
        write_manifest(self._directory / MARKER, content, checksum="crc32")


def write_arrays(folder: Path, fill: Callable[[Sink], tuple[str, Mapping[str, Any]]]) -> Arrays:
    """Write arrays to a directory of the cache, which is whole or not there.

    Others that were used longest ago make room for it; see `storage.lru`.

    Args:
        folder: where the directory is made; is made itself.
        fill: appends everything; returns the directory's name and the facts.

    Raises:
        DataError: the cache cannot be written, or its size is not a number.
    """
    most = most_bytes()
    try:
        with staging(folder / _UNFINISHED) as directory:
            files = _ArrayFiles(directory)
            try:
                name, facts = fill(files)
                files.finish(facts)
            finally:
                files.close()
            try:
                publish(directory, folder / name)
            except OSError:
                # Another process made the same, and was a moment faster.
                if not (folder / name).is_dir():
                    raise
    except OSError as error:
        explained = explain_write_error(error, folder)
        why = explained.message if explained else error.strerror or error
        raise DataError(
            f"Tokens cannot be kept in the cache: {why}",
            hint=f"Make room at {folder}, or set {CACHE} to another place.",
        ) from error
    written = read_arrays(folder / name)
    if written is None:
        raise DataError(
            f"{folder / name} is not what was written to it",
            hint=f"See whether the disk is sound, or set {CACHE} to another place.",
        )
    keep_within(folder, most)
    return written


def read_arrays(directory: Path) -> Arrays | None:
    """Return the arrays of a directory, if every byte is as it was written.

    One that is damaged is removed, with a warning in the log. Nobody removes one from the cache
    as long as its arrays are there.

    Returns:
        The arrays, or None if there are none that can be used.
    """
    try:
        with use(directory):
            manifest = read_manifest(directory / MARKER, _FORMAT)
            verify_files(directory, manifest)
            dtypes = manifest["arrays"]
            for name, dtype in dtypes.items():
                # Nothing that no checksum is of, and no pointers to objects.
                if f"{name}.bin" not in manifest["files"] or np.dtype(dtype).kind not in "biu":
                    raise ValueError(f"it has an array {name!r} of {dtype!r}")
            return _map(directory, dtypes, manifest["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DamagedError) as error:
        if not directory.exists():
            return None
        _log.warning("%s is damaged (%s), and is made anew", directory, error)
        with suppress(OSError):
            remove(directory)
        return None


def most_bytes() -> int:
    """Return how many bytes of tokens the cache keeps.

    Raises:
        DataError: what the environment says is not a size.
    """
    given = os.environ.get(LIMIT)
    try:
        gigabytes = _GIGABYTES if given is None else float(given)
    except ValueError:
        gigabytes = math.nan
    if not (math.isfinite(gigabytes) and gigabytes >= 0):
        raise DataError(
            f'{LIMIT} is "{given}", which is not a number of gigabytes',
            hint=f"Give 0 or more; without it {_GIGABYTES:.0f} are kept.",
        )
    return int(gigabytes * 1e9)


def _map(directory: Path, dtypes: Mapping[str, str], facts: Mapping[str, Any]) -> Arrays:
    arrays: dict[str, NDArray[Any]] = {}
    mapped = Arrays(arrays, facts, directory)
    weakref.finalize(mapped, use(directory).close)
    for name, dtype in dtypes.items():
        path = directory / f"{name}.bin"
        if path.stat().st_size:
            # As a plain array: a slice of a memmap takes ten times as long to make.
            arrays[name] = np.asarray(np.memmap(path, dtype=dtype, mode="r"))
        else:
            arrays[name] = np.empty(0, dtype=dtype)
    return mapped
