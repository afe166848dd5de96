"""Forks of this process with limits, for code that may go on forever or take all memory."""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from truthgpt_core.child_process.child import ChildError, failure, message, read, write
from truthgpt_core.child_process.parent import Ended
from truthgpt_core.errors import TruthGPTError, in_one_line

Item = TypeVar("Item")


def forked(
    work: Callable[[Item], Any],
    items: Sequence[Item],
    name: str,
    *,
    seconds: float,
    memory: int,
    errors: Iterable[type[TruthGPTError]] = (),
) -> Iterator[Any]:
    """Yield what a function makes of each item, in one fork of this process.

    It starts in milliseconds and has what this process has, but no other threads: the function
    must not use what they may have locked. Where there is no fork (Windows) there are no limits.

    Args:
        work: takes an item, and returns something in JSON types, or bytes.
        items: what it is called with, one after the other.
        name: what errors begin with.
        seconds: how long it may take for an item.
        memory: bytes that it may take beside those of this process; only on Linux.
        errors: classes that errors which it raises have here.

    Raises:
        TruthGPTError: it was raised there; of the nearest of those classes.
        ChildError: something else was raised there, or a limit ended it.
    """
    if not hasattr(os, "fork"):
        for item in items:
            try:
                yield work(item)
            except TruthGPTError:
                raise
            except Exception as error:
                how = in_one_line(error)
                raise ChildError(f"{name}: {how}", how) from error
        return
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of other threads, which is known
        child = os.fork()
    if child == 0:
        try:
            _limit(memory)
            for item in items:
                signal.setitimer(signal.ITIMER_REAL, seconds)
                try:
                    content = message("result", work(item))
                except BaseException as error:  # noqa: BLE001 - raised in the other process
                    content = failure(error)
                signal.setitimer(signal.ITIMER_REAL, 0)
                write(writing, content)
        finally:
            os._exit(0)
    os.close(writing)
    is_whole = False
    try:
        with os.fdopen(reading, "rb") as pipe, suppress(EOFError):
            for _ in items:
                yield read(pipe, name, errors)[1]
            is_whole = True
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not is_whole:
        how = Ended(code, b"", "").how
        if code == -signal.SIGALRM:
            how = f"it takes more than {seconds:g} s"
        raise ChildError(f"{name}: {how}", how)


def _limit(memory: int) -> None:
    """Make this process one that ends when a timer does, with no more memory than it may have."""
    import resource  # not on Windows

    # What garbage of the parent would do when it is collected is not for this process.
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # No handler of Python: what computes without end would never come to call it.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
