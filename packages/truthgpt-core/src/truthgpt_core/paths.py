"""Where TruthGPT keeps things on disk, and how it reads and writes single files.

The cache directory holds what can be made again: converted weights and compiled
code. It may be deleted at any time. `TRUTHGPT_CACHE` moves it; otherwise it is
where the platform puts caches (`~/.cache/truthgpt` on Linux).

The settings directory holds what the user decided: which plugins are disabled.
`TRUTHGPT_SETTINGS` moves it; otherwise it is where the platform puts settings
(`~/.config/truthgpt` on Linux).

`open_regular` never waits: opening a named pipe would hang until something writes to it, and
reading a device may never end. `write_file` writes a file so that every reader sees all of its
old content or all of its new content.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import suppress
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

from truthgpt_core.errors import TruthGPTError

CACHE = "TRUTHGPT_CACHE"
SETTINGS = "TRUTHGPT_SETTINGS"

_LONGEST_SHOWN = 200
_LARGEST_JSON = 1 << 20
# Neither wait for the other end of a pipe nor become the terminal's process.
_OPEN_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
)
_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
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
        super().__init__(f"{display_path(path)} cannot be used: {reason}", hint=hint)
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
            path,
            f"there is no home directory of {display_path(user)}",
            hint="Write the whole path.",
        ) from None
    except ValueError:
        raise UnusableFileError(path, "it has a null character, which no path has") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UnusableFileError(path, "its name is too long", code=error.errno) from None
    return found


def open_regular(path: str | os.PathLike[str], *, own: bool = False) -> BufferedReader:
    """Open a regular file for reading bytes, and nothing else; never wait for one.

    A named pipe, a device, a socket and a directory are refused, by what was opened and not
    only by what the name stood for before.

    Args:
        path: the file; links are followed.
        own: refuse a link too, and a file that belongs to another user or that others may
            write to.

    Raises:
        UnusableFileError: it is refused.
        OSError: it is not there, or cannot be opened.
    """
    flags = _OPEN_FLAGS | (getattr(os, "O_NOFOLLOW", 0) if own else 0)
    try:
        # First by name: opening a device may already do something.
        _refuse_special(path, Path(path).stat(follow_symlinks=not own).st_mode)
        descriptor = os.open(path, flags)
    except ValueError:
        raise UnusableFileError(path, "it has a null character, which no path has") from None
    try:
        found = os.fstat(descriptor)
        _refuse_special(path, found.st_mode)
        if own and not _is_own(found):
            raise UnusableFileError(path, "another user may have written it")
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


def read_json(path: str | os.PathLike[str], *, limit: int = _LARGEST_JSON) -> dict[str, Any]:
    """Read a regular file that holds a JSON object.

    Args:
        path: the file.
        limit: the most bytes that it may have.

    Raises:
        UnusableFileError: it is something else than a regular file, or larger.
        OSError: it is not there, or cannot be read.
        ValueError: it holds something else than a JSON object.
    """
    import json  # here, because `truthgpt --help` needs none of it

    try:
        value = json.loads(read_regular_bytes(path, limit=limit))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it does not hold a JSON object")
    return value


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a regular file in hexadecimal; see `open_regular`.

    Raises:
        OSError: it is not there, cannot be read, or is something else than a regular file.
    """
    import hashlib

    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(
    path: str | os.PathLike[str], content: bytes | str, *, private: bool = False, flush: bool = True
) -> None:
    """Write a file that holds all of its old content or all of its new content at any moment.

    The content goes into a file beside it, which then takes its name. A process that is killed
    before that leaves a file that `is_unfinished` knows by its name.

    Args:
        path: the file; its directory has to be there. A link is replaced, not followed.
        content: text is written in UTF-8.
        private: only its owner can read it. Otherwise it has the permissions of the file that it
            replaces, or those of a new file.
        flush: wait until the content is on the disk, so that it also survives a power cut.

    Raises:
        OSError: it cannot be written; nothing has changed then.
    """
    target = Path(path)
    temporary = target.with_name(f".truthgpt-{os.urandom(8).hex()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(temporary, flags, 0o600 if private else 0o666)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
            file.write(content.encode() if isinstance(content, str) else content)
            if flush:
                file.flush()
                os.fsync(descriptor)
        if not private:
            with suppress(FileNotFoundError):
                shutil.copymode(target, temporary)
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def flush_to_disk(path: str | os.PathLike[str]) -> None:
    """Wait until a file or directory is on the disk, so that it survives a power cut.

    Raises:
        OSError: it is not there, or cannot be written.
    """
    if os.name == "nt":  # it cannot open directories, and has no such promise of files
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_unfinished(name: str) -> bool:
    """Whether `write_file` gives such a name to a file that it has not finished."""
    return name.startswith(".truthgpt-") and name.endswith(".tmp")


def display_path(path: str | os.PathLike[str]) -> str:
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


def _is_own(found: os.stat_result) -> bool:
    if not hasattr(os, "geteuid"):
        return True
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
