"""Forks of this process with limits, for code that may go on forever or take all memory."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from io import BufferedReader, RawIOBase
from pathlib import Path
from time import monotonic
from typing import IO, Any, TypeVar

from truthgpt_core.child_process.child import ChildError, failure, message, read, write
from truthgpt_core.child_process.parent import Ended
from truthgpt_core.errors import TruthGPTError, in_one_line

Item = TypeVar("Item")

_SLACK = 5.0
"""Seconds after the limit of a fork, which ends itself, in which it is waited for."""


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
        how = _end(child, seconds)
    if not is_whole:
        raise ChildError(f"{name}: {how}", how)


class Fork:
    """A fork of this process that stays, for a function that is called again and again.

    It is made by the first call, and again after one that ended it. What this process has changed
    since then, the function does not see. Several threads may call it; it answers one at a time.

    Args:
        work: as for `forked`; takes something in JSON types.
        name: what errors begin with.
        seconds: how long a call may take. The fork ends itself then; one that cannot, since it is
            stopped, is ended a few seconds later.
        memory: bytes that it may take beside those of this process; only on Linux.
        errors: classes that errors which it raises have here.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        name: str,
        *,
        seconds: float,
        memory: int,
        errors: Iterable[type[TruthGPTError]] = (),
    ) -> None:
        self._work = work
        self._name = name
        self._seconds = seconds
        self._memory = memory
        self._errors = tuple(errors)
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def __call__(self, item: Any) -> Any:
        """Return what the function makes of an item.

        Raises:
            TruthGPTError: it was raised there; of the nearest of the classes.
            ChildError: something else was raised there, or a limit ended it.
        """
        if not hasattr(os, "fork"):
            (made,) = forked(self._work, [item], self._name, seconds=0, memory=0)
            return made
        with self._lock:
            child = self._child
            if child is None or child.parent != os.getpid():
                child = self._child = _Child(self._work, self._seconds, self._memory)
            line = json.dumps(item).encode() + b"\n"
            is_answered = False
            try:
                try:
                    made = self._ask(child, line)
                except BrokenPipeError:
                    if child.is_late:
                        raise
                    # It was killed since the last call, which this one has nothing to do with.
                    child = self._child = _Child(self._work, self._seconds, self._memory)
                    made = self._ask(child, line)
                is_answered = True
            except (EOFError, BrokenPipeError):
                pass
            except TruthGPTError:
                is_answered = True
                raise
            finally:
                # After an interrupt, what comes next would be the answer to this.
                if not is_answered:
                    self._child = None
                    how = child.end()
            if not is_answered:
                raise ChildError(f"{self._name}: {how}", how)
            return made

    def _ask(self, child: _Child, line: bytes) -> Any:
        child.send(line)
        return read(child.answers, self._name, self._errors)[1]


class _Child:
    """The process of a `Fork`; it ends when nobody holds this.

    Attributes:
        parent: the id of the process that made it.
        answers: what it writes; at its end, too, when it was waited for too long.
    """

    def __init__(self, work: Callable[[Any], Any], seconds: float, memory: int) -> None:
        self.parent = os.getpid()
        self._seconds = seconds
        self._patience = _Patience(seconds + _SLACK)
        asked, self._requests = os.pipe()
        reading, answers = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of other threads, which is known
            self._id = os.fork()
        if self._id == 0:
            try:
                _answer(work, asked, answers, seconds, memory)
            finally:
                os._exit(0)
        os.close(asked)
        os.close(answers)
        os.set_blocking(self._requests, False)
        self.answers = BufferedReader(_Answers(reading, self._patience))
        self._finalizer = weakref.finalize(
            self, _finish, self.parent, self._id, self._requests, self.answers
        )

    @property
    def is_late(self) -> bool:
        """Whether it was waited for too long."""
        return self._patience.is_over

    def send(self, line: bytes) -> None:
        """Write a request, whose answer is then waited for.

        Its own timer ends it if that takes too long, but not while it is stopped.

        Raises:
            BrokenPipeError: it has ended, or does not read what comes.
        """
        self._patience.begin()
        rest = memoryview(line)
        while rest:
            if not self._patience.wait(self._requests, select.POLLOUT):
                raise BrokenPipeError
            rest = rest[os.write(self._requests, rest) :]

    def end(self) -> str:
        """End it; return how it has ended, in a few words."""
        self._finalizer.detach()
        os.close(self._requests)
        self.answers.close()
        how = _end(self._id, self._seconds)
        return _late(self._seconds) if self.is_late else how


class _Patience:
    """How long a process is waited for.

    Args:
        seconds: after `begin`.

    Attributes:
        is_over: whether that was too short once.
    """

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._seconds = seconds
        self._until = 0.0

    def begin(self) -> None:
        """Count from now on."""
        self._until = monotonic() + self._seconds

    def wait(self, descriptor: int, event: int) -> bool:
        """Return whether a pipe is ready, or has ended, in time."""
        ready = select.poll()
        ready.register(descriptor, event)
        self.is_over = not ready.poll(1e3 * max(0.0, self._until - monotonic()))
        return not self.is_over


class _Answers(RawIOBase):
    """A pipe that ends, too, when it was waited for too long."""

    def __init__(self, descriptor: int, patience: _Patience) -> None:
        self._descriptor = descriptor
        self._patience = patience

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        is_ready = self._patience.wait(self._descriptor, select.POLLIN)
        return os.readv(self._descriptor, [buffer]) if is_ready else 0

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def _answer(
    work: Callable[[Any], Any], asked: int, answers: int, seconds: float, memory: int
) -> None:
    """Be the child of a `Fork`: answer requests until there are no more."""
    # What the parent has open, such as its connections, would stay open when it closes them.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    low, high = sorted((asked, answers))
    os.closerange(3, low)
    os.closerange(low + 1, high)
    os.closerange(high + 1, max(high + 2, os.sysconf("SC_OPEN_MAX")))
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _limit(memory)
    for line in os.fdopen(asked, "rb"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            content = message("result", work(json.loads(line)))
        except BaseException as error:  # noqa: BLE001 - raised in the other process
            content = failure(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write(answers, content)


def _finish(parent: int, child: int, requests: int, answers: IO[bytes]) -> None:
    os.close(requests)
    answers.close()
    if os.getpid() == parent:
        _end(child, 0)


def _end(child: int, seconds: float) -> str:
    """End a fork, if it has not ended; return how it has, in a few words."""
    # One that has ended by itself says why, which it would not say after this.
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGALRM:
        return _late(seconds)
    return Ended(code, b"", "").how


def _late(seconds: float) -> str:
    return f"it takes more than {seconds:g} s"


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
