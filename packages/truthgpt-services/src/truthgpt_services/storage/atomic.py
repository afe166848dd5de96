"""Directories that are whole or not there, whenever a process is killed.

Everything is written into a hidden directory beside the target, which takes the target's name
only when all of it is on the disk. Under the target's name a part of it is never seen. What a
killed process leaves has a hidden name and no lock, by which the next one removes it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from truthgpt_core.paths import (
    UnusableFileError,
    display_path,
    expanded,
    flush_to_disk,
    open_regular,
    read_json,
)
from truthgpt_services.errors import OutputError
from truthgpt_services.storage.locks import try_alone, wait_alone

MARKER = "truthgpt.json"
"""The file that says a directory was written by us, and is whole: it is written last."""

_LARGEST_MARKER = 2**26
"""In bytes; those with a choice for each layer of a large model take some hundred thousand."""

_HIDDEN = re.compile(r"\.(.+)\.(partial|replaced|removed)-[0-9a-f]{16}")

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Make a hidden directory to write what `publish` then puts at a target.

    It is removed in the end. Those that killed processes left of the same target are removed
    first.

    Args:
        target: its directory is made if it is not there.

    Yields:
        The directory, which is empty.

    Raises:
        OSError: it cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent, target.name)
    with ExitStack() as stack:
        while True:
            path = _hidden(target, "partial")
            path.mkdir()
            stack.callback(shutil.rmtree, path, ignore_errors=True)
            with suppress(FileNotFoundError):
                stack.enter_context(_locked(path))
                # Before it was locked, another process may have taken it for abandoned.
                if path.is_dir():
                    break
        yield path


def publish(directory: Path, target: Path, *, replace: bool = False) -> None:
    """Give a directory its name, once all of it is on the disk.

    Args:
        directory: of `staging`.
        target: its name.
        replace: put it in the place of a directory, in one step where the system can.

    Raises:
        OSError: it cannot be written, or something that is not to be replaced is there; then
            that has not changed.
    """
    for folder, _, names in os.walk(directory):
        for path in (*(Path(folder, name) for name in names), Path(folder)):
            flush_to_disk(path)
    try:
        directory.rename(target)
    except OSError as error:
        there = error.errno in (errno.ENOTEMPTY, errno.EEXIST)
        if not (replace and there):
            raise
        if not _exchange(directory, target):
            _replace_in_two_steps(directory, target)
    flush_to_disk(target.parent)


def remove(directory: Path) -> None:
    """Remove a directory, of which a part is never seen under its name.

    Raises:
        OSError: it is not there, cannot be removed, or is something else.
    """
    if directory.is_symlink() or not directory.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
    grave = _hidden(directory, "removed")
    directory.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)


def remove_unheld(manifest: Path) -> bool:
    """Remove the directory of a manifest, unless a process holds it; see `locks.hold`.

    Returns:
        Whether it was removed.
    """
    with suppress(OSError), open_regular(manifest) as file:
        if try_alone(file):
            remove(manifest.parent)
            return True
    return False


def remove_abandoned(folder: Path, name: str | None = None, *, alone: bool = False) -> None:
    """Remove what killed processes left in a folder.

    Args:
        folder: where they wrote.
        name: of the target that they wrote; any if None.
        alone: no other process writes there now.

    Raises:
        OSError: the folder cannot be read.
    """
    for path in folder.iterdir():
        match = _HIDDEN.fullmatch(path.name)
        if match is None or name not in (None, match[1]):
            continue
        with suppress(OSError), _opened(path) as descriptor:
            if not (try_alone(descriptor) or alone):
                continue
            target = folder / match[1]
            if match[2] == "replaced" and not target.exists():
                # Killed between the two renames of a replacement: this is the only copy.
                path.rename(target)
            else:
                shutil.rmtree(path, ignore_errors=True)


class StagedDirectory:
    """An output directory that is being written, to appear at `target` when `commit` is called.

    Used as a context manager; leaving it without `commit` removes what was written.

    Args:
        target: where it shall appear.
        overwrite: replace a directory that is there, if we wrote it.

    Attributes:
        path: where to write it, inside the context.

    Raises:
        OutputError: something is there that may not be replaced, or the parent
            directory cannot be written to.
    """

    path: Path

    def __init__(self, target: Path, *, overwrite: bool = False) -> None:
        # Not resolve(): a link given as the target would be followed and replaced elsewhere.
        self.target = Path(os.path.abspath(_as_typed(target)))  # noqa: PTH100
        self._overwrite = overwrite
        self._stack = ExitStack()
        self._check()

    def __enter__(self) -> StagedDirectory:
        try:
            self.path = self._stack.enter_context(staging(self.target))
        except OSError as error:
            raise OutputError(
                f"Cannot write beside {self.target}: {error.strerror or error}",
                hint="Name another --output.",
            ) from error
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def commit(self) -> None:
        """Make what was written appear at the target, replacing what may be replaced.

        Raises:
            OutputError: the marker is missing, or something appeared at the target meanwhile.
        """
        if not (self.path / MARKER).is_file():
            raise OutputError(f"{self.path} has no {MARKER}: it is not complete")
        self._check()
        try:
            share_as_umask_says(self.path)
            publish(self.path, self.target, replace=True)
        except OSError as error:
            explained = explain_write_error(error, self.target)
            raise explained or OutputError(
                f"Cannot write {self.target}: {error.strerror or error}"
            ) from error

    def _check(self) -> None:
        target = self.target
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise OutputError(
                f"{target} exists and is not a directory", hint="Name another --output."
            )
        if not target.exists() or not any(target.iterdir()):
            return
        ours = (target / MARKER).is_file()
        if not ours:
            raise OutputError(
                f"{target} is not empty, and nothing in it says that TruthGPT wrote it",
                hint="Name another --output; --overwrite replaces only what TruthGPT wrote.",
            )
        if not self._overwrite:
            raise OutputError(
                f"{target} is not empty", hint="Use --overwrite to replace it, or another --output."
            )


def read_marker(directory: Path) -> dict[str, Any]:
    """Read the marker of a directory, which is input like everything else in it.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is not a regular file, or holds something else than a JSON object.
    """
    try:
        return read_json(directory / MARKER, limit=_LARGEST_MARKER)
    except UnusableFileError as error:
        raise ValueError(error.strerror) from None


def share_as_umask_says(directory: Path, like: str = MARKER) -> None:
    """Let those read the files of a directory who may read one of them.

    safetensors makes files that only their owner can read, whatever the umask is.

    Args:
        directory: of the files.
        like: one that Python made, with the permissions of any new file. A process cannot ask
            for its umask without changing it.
    """
    wanted = stat.S_IMODE((directory / like).stat().st_mode)
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode | wanted != mode:
                path.chmod(mode | wanted)


@contextmanager
def explained_writing(target: Path) -> Iterator[None]:
    """Turn what a full disk or a limit raises in a block into one clear error.

    Args:
        target: what the error says could not be written.

    Raises:
        OutputError: see `explain_write_error`; other errors are left as they are.
    """
    try:
        yield
    except Exception as error:
        explained = explain_write_error(error, target)
        if explained is None:
            raise
        raise explained from error


def explain_write_error(error: Exception, target: Path) -> OutputError | None:
    """Say in one line that the disk is full or a limit was reached, if that is what `error` is.

    Libraries written in Rust report it as text only.
    """
    code = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "os error 28" in text:
        return OutputError(
            f"The disk is full: {target} could not be written",
            hint="Nothing was left behind. Free some space, or name another --output.",
        )
    if code == errno.EFBIG or "File too large" in text or "os error 27" in text:
        return OutputError(
            f"A file of {target} is larger than this system allows",
            hint="Nothing was left behind. See `ulimit -f`.",
        )
    return None


def _as_typed(target: Path) -> Path:
    try:
        return expanded(target)
    except UnusableFileError as error:
        raise OutputError(
            f"{display_path(target)} cannot be an output: {error.strerror}",
            hint="Name another --output.",
        ) from None


def _hidden(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}-{os.urandom(8).hex()}")


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep `remove_abandoned` of every process from a directory."""
    with _opened(directory) as descriptor:
        # Where directories cannot be locked, none is ever taken for abandoned.
        with suppress(OSError):
            wait_alone(descriptor)
        yield


def _replace_in_two_steps(directory: Path, target: Path) -> None:
    old = _hidden(target, "replaced")
    with _locked(target):
        target.rename(old)
        try:
            directory.rename(target)
        except OSError:
            old.rename(target)
            raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step, where the system can."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    result = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))
