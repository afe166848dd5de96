"""Where TruthGPT keeps things on disk, and opening files that others may have put there.

The cache directory holds what can be made again: converted weights and compiled
code. It may be deleted at any time. `TRUTHGPT_CACHE` moves it; otherwise it is
where the platform puts caches (`~/.cache/truthgpt` on Linux).

The settings directory holds what the user decided: which plugins are disabled.
`TRUTHGPT_SETTINGS` moves it; otherwise it is where the platform puts settings
(`~/.config/truthgpt` on Linux).

`open_regular` never waits: opening a named pipe would hang until something writes to it, and
reading a device may never end.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

from truthgpt_core.errors import TruthGPTError

CACHE = "TRUTHGPT_CACHE"
SETTINGS = "TRUTHGPT_SETTINGS"

_LONGEST_SHOWN = 200
# Neither wait for the other end of a pipe nor become the terminal's process.
_OPEN_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
)
_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnusableFileError(TruthGPTError, OSError):
    """A path does not name a regular file of an acceptable size.

    It is an `OSError` too, so that code that reports unreadable files reports these: its
    `strerror` is the reason alone, without the name of the file.

    Args:
        path: the file.
        reason: what is wrong with it, such as "it is a named pipe, not a regular file".
        hint: how to put it right.
        code: an error number of `errno`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        reason: str,
        *,
        hint: str | None = None,
        code: int = errno.EINVAL,
    ) -> None:
        super().__init__(f"{shown_path(path)} cannot be used: {reason}", hint=hint)
        self.filename = os.fspath(path)
        self.strerror = reason
        self.errno = code

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        again = partial(type(self), hint=self.hint, code=self.errno or errno.EINVAL)
        return again, (self.filename, self.strerror or "")


def cache_dir(*parts: str) -> Path:
    """Return the cache directory, or a place below it; it may not exist yet.

    Raises:
        UnusableFileError: `TRUTHGPT_CACHE` is not a path.
    """
    from platformdirs import user_cache_path

    given = os.environ.get(CACHE)
    root = expanded(given) if given else user_cache_path("truthgpt", appauthor=False)
    return root.joinpath(*parts)


def settings_dir(*parts: str) -> Path:
    """Return the settings directory, or a place below it; it may not exist yet.

    Raises:
        UnusableFileError: `TRUTHGPT_SETTINGS` is not a path.
    """
    from platformdirs import user_config_path

    given = os.environ.get(SETTINGS)
    root = expanded(given) if given else user_config_path("truthgpt", appauthor=False)
    return root.joinpath(*parts)


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with `~` and `~user` replaced by the home directory.

    Nothing need be there, but the system must be able to look.

    Args:
        path: as the user typed it.

    Raises:
        UnusableFileError: it names an unknown user, is too long, or has a null character.
    """
    text = os.fspath(path)
    try:
        found = Path(text).expanduser()
        os.lstat(found)
    except RuntimeError:
        user = text.split(os.sep, 1)[0]
        raise UnusableFileError(
            path, f"there is no home directory of {shown_path(user)}", hint="Write the whole path."
        ) from None
    except ValueError:
        raise UnusableFileError(path, "it has a null character, which no path has") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UnusableFileError(path, "its name is too long", code=error.errno) from None
    return found


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading bytes, and nothing else; never wait for one.

    Links are followed. A named pipe, a device, a socket and a directory are refused, by what
    was opened and not only by what the name stood for before.

    Args:
        path: the file.

    Raises:
        UnusableFileError: it is something else than a regular file.
        OSError: it is not there, or cannot be opened.
    """
    try:
        # First by name: opening a device may already do something.
        _refuse_special(path, Path(path).stat().st_mode)
        descriptor = os.open(path, _OPEN_FLAGS)
    except ValueError:
        raise UnusableFileError(path, "it has a null character, which no path has") from None
    try:
        _refuse_special(path, os.fstat(descriptor).st_mode)
        return open(descriptor, "rb")  # noqa: PTH123 - of a descriptor
    except BaseException:
        os.close(descriptor)
        raise


def read_regular_bytes(path: str | os.PathLike[str], *, limit: int | None = None) -> bytes:
    """Read a whole regular file; see `open_regular`.

    Args:
        path: the file.
        limit: the most bytes that it may have; any number if None.

    Raises:
        UnusableFileError: it is something else than a regular file, or larger.
        OSError: it is not there, or cannot be read.
    """
    with open_regular(path) as file:
        if limit is None:
            return file.read()
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UnusableFileError(path, f"it has more than {limit:,} bytes", code=errno.EFBIG)
    return data


def shown_path(path: str | os.PathLike[str]) -> str:
    """Return a path as an error names it: cut if it is longer than any line should be."""
    text = os.fspath(path)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _refuse_special(path: str | os.PathLike[str], mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
    raise UnusableFileError(
        path,
        f"it is {kind}, not a regular file",
        code=errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL,
    )
