"""Writing an output directory so that it is whole or not there.

Everything is written into a hidden directory beside the target, which takes the
target's name only when it is complete. What a killed run leaves behind never has
that name, and the next run with the same target removes it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import stat
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from truthgpt_core.paths import UnusableFileError, expanded, shown_path
from truthgpt_services.errors import OutputError

MARKER = "truthgpt.json"
"""The file that says a directory was written by us, and is whole: it is written last."""

_LARGEST_MARKER = 2**26
"""In bytes; those with a choice for each layer of a large model take some hundred thousand."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class StagedDirectory:
    """A directory that is being written, to appear at `target` when `commit` is called.

    Used as a context manager; leaving it without `commit` removes what was written.

    Args:
        target: where it shall appear.
        overwrite: replace a directory that is there, if we wrote it.

    Raises:
        OutputError: something is there that may not be replaced, or the parent
            directory cannot be written to.
    """

    def __init__(self, target: Path, *, overwrite: bool = False) -> None:
        # Not resolve(): a link given as the target would be followed and replaced elsewhere.
        self.target = Path(os.path.abspath(_as_typed(target)))  # noqa: PTH100
        self.overwrite = overwrite
        self.path = self.target.parent / f".{self.target.name}.partial-{os.getpid()}"
        self._check()

    def __enter__(self) -> StagedDirectory:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            self.path.mkdir()
        except OSError as error:
            raise OutputError(
                f"Cannot write beside {self.target}: {error.strerror or error}",
                hint="Name another --output.",
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

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
            _fsync_tree(self.path)
            if not self.target.is_dir():
                self.path.rename(self.target)
            elif not exchange(self.path, self.target):
                self._replace_in_two_steps()
            _fsync(self.target.parent)
        except OSError as error:
            explained = explain_write_error(error, self.target)
            raise explained or OutputError(
                f"Cannot write {self.target}: {error.strerror or error}"
            ) from error

    def _replace_in_two_steps(self) -> None:
        old = self.path.with_name(f"{self.path.name}-old")
        self.target.rename(old)
        try:
            self.path.rename(self.target)
        except OSError:
            old.rename(self.target)
            raise
        shutil.rmtree(old, ignore_errors=True)

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
        if not self.overwrite:
            raise OutputError(
                f"{target} is not empty", hint="Use --overwrite to replace it, or another --output."
            )

    def _remove_abandoned(self) -> None:
        pattern = re.compile(rf"\.{re.escape(self.target.name)}\.partial-(\d+)(-old)?")
        for sibling in self.target.parent.iterdir():
            match = pattern.fullmatch(sibling.name)
            if not match or _is_running(int(match[1])):
                continue
            if match[2] and not self.target.exists():
                # Killed between the two renames of a replacement: this is the only copy.
                sibling.rename(self.target)
            else:
                shutil.rmtree(sibling, ignore_errors=True)


def read_marker(directory: Path) -> dict[str, Any]:
    """Read the marker of a directory, which is input like everything else in it.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is not a regular file, or holds something else than a JSON object.
    """
    # Opening a FIFO would wait for its other end.
    descriptor = os.open(directory / MARKER, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is not a regular file")
        text = file.read(_LARGEST_MARKER + 1)
    if len(text) > _LARGEST_MARKER:
        raise ValueError(f"it is larger than {_LARGEST_MARKER >> 20} MB")
    try:
        raw = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(raw, dict):
        raise ValueError("it does not hold a JSON object")
    return raw


def share_as_umask_says(directory: Path) -> None:
    """Let those read the files of a directory who may read its marker.

    safetensors makes files that only their owner can read, whatever the umask is. The marker
    is made as Python makes files, and a process cannot ask for its umask without changing it.
    """
    wanted = stat.S_IMODE((directory / MARKER).stat().st_mode)
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode | wanted != mode:
                path.chmod(mode | wanted)


def _as_typed(target: Path) -> Path:
    try:
        return expanded(target)
    except UnusableFileError as error:
        raise OutputError(
            f"{shown_path(target)} cannot be an output: {error.strerror}",
            hint="Name another --output.",
        ) from None


def _is_running(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def exchange(one: Path, other: Path) -> bool:
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


def _fsync_tree(root: Path) -> None:
    for directory, _, names in os.walk(root):
        for name in names:
            _fsync(Path(directory, name))
        _fsync(Path(directory))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
