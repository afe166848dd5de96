"""Flat arrays that grow, in memory or as files of the cache that are whole or not there.

A directory of arrays is written aside, flushed to disk and renamed, and in it the manifest is
written last; see `truthgpt_services.storage.atomic`. It holds a CRC-32 of every byte written,
and of itself. All of that is read whenever a directory is opened: CRC-32 finds every flipped
bit, every run of damage of up to 32 bits and all but one in 2**32 of the rest, and reads the
half gigabyte of tokens that a gigabyte of text has in less than a second, with no memory to
speak of. Deliberate changes are not looked for: whoever makes them can run code here anyway.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
import weakref
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from truthgpt_core.paths import CACHE, open_regular, read_regular_bytes
from truthgpt_services.errors import DataError, OutputError
from truthgpt_services.storage.atomic import MARKER, StagedDirectory, explain_write_error
from truthgpt_services.storage.lru import hold, keep_within, most_bytes

_FORMAT = 1
_BLOCK = 1 << 20
_LARGEST_MANIFEST = 1 << 20
# What a directory is called while it is written, so that the next one written beside it
# removes what a killed process left.
_UNFINISHED = "arrays"

_log = logging.getLogger(__name__)
# One unfinished directory for each process.
_writing = threading.Lock()


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
        self._layout: dict[str, dict[str, Any]] = {}
        self._open = ExitStack()

    def append(self, name: str, values: NDArray[Any]) -> None:
        if name not in self._files:
            file = (self._directory / f"{name}.bin").open("wb")
            self._files[name] = self._open.enter_context(file)
            self._layout[name] = {"dtype": values.dtype.str, "bytes": 0, "crc32": 0}
        layout = self._layout[name]
        raw = np.ascontiguousarray(values, dtype=layout["dtype"]).tobytes()
        self._files[name].write(raw)
        layout["bytes"] += len(raw)
        layout["crc32"] = zlib.crc32(raw, layout["crc32"])

    def close(self) -> None:
        self._open.close()

    def finish(self, facts: Mapping[str, Any]) -> None:
        self.close()
        content = {"format": _FORMAT, "kind": "arrays", "arrays": self._layout, "facts": facts}
        (self._directory / MARKER).write_text(_sealed(content), encoding="utf-8")


def write_arrays(folder: Path, fill: Callable[[Sink], tuple[str, Mapping[str, Any]]]) -> Arrays:
    """Write arrays to a directory of the cache, which is whole or not there.

    Others that were not used for longest make room for it; see `keeping`.

    Args:
        folder: where the directory is made; is made itself.
        fill: appends everything; returns the directory's name and the facts.

    Raises:
        DataError: the cache cannot be written, or its size is no number.
    """
    most = most_bytes()
    with _writing:
        try:
            with StagedDirectory(folder / _UNFINISHED, overwrite=True) as staged:
                files = _ArrayFiles(staged.path)
                try:
                    name, facts = fill(files)
                    files.finish(facts)
                finally:
                    files.close()
                staged.target = folder / name
                try:
                    if not staged.target.is_dir():
                        staged.commit()
                except OutputError:
                    # Another process made the same, and was a moment faster.
                    if not staged.target.is_dir():
                        raise
        except (OSError, OutputError) as error:
            explained = explain_write_error(error, folder)
            why = explained or error
            said = why.message if isinstance(why, OutputError) else (why.strerror or str(why))
            raise DataError(
                f"Tokens cannot be kept in the cache: {said}",
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
    descriptor: int | None = None
    try:
        descriptor = hold(directory)
        content = _unsealed(read_regular_bytes(directory / MARKER, limit=_LARGEST_MANIFEST))
        for name, layout in content["arrays"].items():
            _check(directory, name, layout)
        dtypes = {name: layout["dtype"] for name, layout in content["arrays"].items()}
        return _map(directory, dtypes, content["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if not directory.exists():
            return None
        _log.warning("%s is damaged (%s), and is made anew", directory, error)
        shutil.rmtree(directory, ignore_errors=True)
        return None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _map(directory: Path, dtypes: Mapping[str, str], facts: Mapping[str, Any]) -> Arrays:
    arrays: dict[str, NDArray[Any]] = {}
    mapped = Arrays(arrays, facts, directory)
    weakref.finalize(mapped, os.close, hold(directory))
    for name, dtype in dtypes.items():
        path = directory / f"{name}.bin"
        if path.stat().st_size:
            # As a plain array: a slice of a memmap takes ten times as long to make.
            arrays[name] = np.asarray(np.memmap(path, dtype=dtype, mode="r"))
        else:
            arrays[name] = np.empty(0, dtype=dtype)
    return mapped


def _check(directory: Path, name: str, layout: Mapping[str, Any]) -> None:
    # Nothing outside of the directory, and no pointers to objects.
    if not re.fullmatch(r"\w+", name) or np.dtype(layout["dtype"]).kind not in "biu":
        raise ValueError(f"it has an array {name!r} of {layout['dtype']!r}")
    path = directory / f"{name}.bin"
    if path.stat().st_size != layout["bytes"]:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {layout['bytes']}")
    checksum, block = 0, bytearray(_BLOCK)
    with open_regular(path) as file:
        while count := file.readinto(block):
            checksum = zlib.crc32(memoryview(block)[:count], checksum)
    if checksum != layout["crc32"]:
        raise ValueError(f"the checksum of {path.name} is wrong")


def _sealed(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return json.dumps({"content": text, "crc32": zlib.crc32(text.encode())})


def _unsealed(text: bytes) -> dict[str, Any]:
    seal = json.loads(text)
    if zlib.crc32(seal["content"].encode()) != seal["crc32"]:
        raise ValueError("the checksum of its manifest is wrong")
    content: dict[str, Any] = json.loads(seal["content"])
    if content["format"] != _FORMAT:
        raise ValueError(f"it has format {content['format']}, not {_FORMAT}")
    return content
