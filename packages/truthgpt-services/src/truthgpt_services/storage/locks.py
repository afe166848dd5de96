"""Locks on files and directories, where the system has them; elsewhere each of these succeeds.

A process that is killed gives up its locks, so what is not locked is not in use.
"""

from __future__ import annotations

import os
import stat
import sys
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, BinaryIO

from truthgpt_core.paths import UnusableFileError, open_regular


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


def hold(path: Path) -> BufferedReader:
    """Share a lock on a file until what is returned is closed, which keeps its directory.

    Everybody who removes a directory of ours first locks a file of it, its manifest, alone.

    Raises:
        OSError: it is not there, or not a regular file.
    """
    while True:
        file = open_regular(path)
        try:
            _lock(file, shared=True)
            # It may have been removed or replaced while this waited.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def wait_alone(file: IO[Any] | int) -> None:
    """Wait for an exclusive lock, until the file (or descriptor) is closed."""
    _lock(file)


def try_alone(file: IO[Any] | int) -> bool:
    """Take an exclusive lock, until the file is closed; return whether it was free."""
    try:
        _lock(file, wait=False)
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


def _lock(file: IO[Any] | int, *, shared: bool = False, wait: bool = True) -> None:
    if sys.platform != "win32":
        import fcntl

        how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)
