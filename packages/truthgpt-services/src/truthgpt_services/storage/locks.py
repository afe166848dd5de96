"""Locks on files, where the system has them; elsewhere each of these succeeds."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import IO, Any, BinaryIO

from truthgpt_core.paths import UnusableFileError


def open_lock(path: Path) -> BinaryIO:
    """Open a file to lock it, made if it is not there; never wait for the other end of a pipe.

    Raises:
        OSError: it cannot be made, or something else is there.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnusableFileError(path, "it is not a regular file")
    return os.fdopen(descriptor, "r+b")


def share(file: IO[Any] | int) -> None:
    """Wait for a lock that many may hold, until the file (or descriptor) is closed."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH)


def try_alone(file: IO[Any]) -> bool:
    """Take a lock that nobody shares, until the file is closed; return whether it was free."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def try_for_process(file: IO[Any]) -> bool:
    """Take a lock for this process alone; return whether no other one has it.

    Processes that it starts do not inherit it: the workers of a loader outlive a process that
    is killed, for a while, and would keep it.
    """
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
