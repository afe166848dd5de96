"""Locks on files, where the system has them; elsewhere each of these succeeds."""

from __future__ import annotations

import sys
from typing import IO, Any


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
