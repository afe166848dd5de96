"""Reading a YAML file together with the files its `include` key names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from truthgpt_core.config.nodes import Node, merge
from truthgpt_core.config.problems import Origin, ProblemLog, describe, shorten, suggest
from truthgpt_core.config.yaml_source import MAX_BYTES, UnreadableError, parse_file_text
from truthgpt_core.paths import open_regular

INCLUDE: Final = "include"
"""The top-level key that names other files."""

MAX_INCLUDE_DEPTH: Final = 8
"""How many files may include one another in a row."""

MAX_FILES: Final = 64
"""The files read for one configuration; one that is included twice counts twice."""


def read_with_includes(path: str, log: ProblemLog) -> Node | None:
    """Read a file and lay it over the files it includes, the later ones over the earlier.

    Args:
        path: the file, as positions shall name it.
        log: takes what is wrong.

    Returns:
        The merged mapping without its `include` keys; None where a file could not be read or is
        no mapping, so that what is missing says nothing.
    """
    reader = _Reader(log)
    root = reader.read(path, Origin(path), ())
    return None if reader.incomplete else root


class _Reader:
    def __init__(self, log: ProblemLog) -> None:
        self._log = log
        self._files = 0
        self.incomplete = False

    def read(self, path: str, asked_at: Origin, chain: tuple[tuple[str, str], ...]) -> Node | None:
        """Read one file and what it includes, or log why not.

        Args:
            path: the file.
            asked_at: where to point when it cannot be read.
            chain: the files it is included by, as real path and shown name.
        """
        try:
            return self._read(path, asked_at, chain)
        except UnreadableError as error:
            self.incomplete = True
            self._log.add(error.origin, "", error.message, error.hint)
            return None

    def _read(self, path: str, asked_at: Origin, chain: tuple[tuple[str, str], ...]) -> Node | None:
        self._files += 1
        if self._files > MAX_FILES:
            raise UnreadableError(asked_at, f"more than {MAX_FILES} files are included")
        if len(chain) > MAX_INCLUDE_DEPTH:
            raise UnreadableError(asked_at, f"includes nest more than {MAX_INCLUDE_DEPTH} deep")
        try:
            identity = os.path.realpath(path)
            if identity in (real for real, _ in chain):
                names = " -> ".join([*(name for _, name in chain), path])
                raise UnreadableError(asked_at, f"files include one another: {names}")
            with open_regular(path) as file:
                data = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            message, hint = _unreadable(path, error, is_included=bool(chain))
            raise UnreadableError(asked_at, message, hint) from None
        root = parse_file_text(data, path, self._log)
        if root.broken:
            # Why is logged already; what would be said about its missing keys is no use.
            self.incomplete = True
            return None
        if not isinstance(root.value, dict):
            raise UnreadableError(
                root.origin,
                f"the file has to be a mapping of keys to values, not {describe(root.value)}",
            )
        own = dict(root.value)
        includes = own.pop(INCLUDE, None)
        root = root.with_value(own)
        if includes is None:
            return root
        return self._lay_over(root, includes, path, (*chain, (identity, path)))

    def _lay_over(
        self, root: Node, includes: Node, path: str, chain: tuple[tuple[str, str], ...]
    ) -> Node:
        under: Node | None = None
        for entry in self._entries(includes):
            assert isinstance(entry.value, str)
            included = self.read(_beside(path, entry.value), entry.origin, chain)
            if included is not None:
                under = included if under is None else merge(under, included)
            if self._files > MAX_FILES:
                break
        return root if under is None else merge(under, root)

    def _entries(self, includes: Node) -> Iterator[Node]:
        for entry in includes.value if isinstance(includes.value, tuple) else (includes,):
            if isinstance(entry.value, str) and entry.value:
                yield entry
            else:
                self.incomplete = True
                if not entry.broken:
                    shown = describe(entry.value)
                    message = f"{INCLUDE} has to be a path or a list of paths, not {shown}"
                    self._log.add(entry.origin, "", message)


def _beside(path: str, entry: str) -> str:
    """Return the path that `entry` means in the file at `path`, without `..` where it can be."""
    # join() keeps an absolute path.
    joined = os.path.join(os.path.dirname(path), entry)  # noqa: PTH118, PTH120
    short = os.path.normpath(joined)
    try:
        # Where `..` follows a link they are two files.
        return short if os.path.samefile(joined, short) else joined  # noqa: PTH121
    except (OSError, ValueError):
        return joined if os.path.exists(joined) else short  # noqa: PTH110


def _unreadable(path: str, error: Exception, *, is_included: bool) -> tuple[str, str | None]:
    """Return what to say about a file that cannot be opened, and a hint."""
    name = f"the included file {shorten(path)}" if is_included else "the file"
    if isinstance(error, FileNotFoundError):
        return f"{name} does not exist", _nearby(path)
    if isinstance(error, IsADirectoryError) or os.path.isdir(path):  # noqa: PTH112
        return f"{name} is a directory", None
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{name} cannot be read: {reason}", None


def _nearby(path: str) -> str | None:
    try:
        names = os.listdir(os.path.dirname(path) or ".")  # noqa: PTH120, PTH208
    except OSError:
        return None
    return suggest(os.path.basename(path), names)  # noqa: PTH119
