"""Forks of this process with limits, for code that may go on forever or take all memory."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
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
            if child is None or child.is_late or child.parent != os.getpid():
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
        with child.awaited():
            write(child.requests, line)
            return read(child.answers, self._name, self._errors)[1]


class _Child:
    """The process of a `Fork`; it ends when nobody holds this.

    Attributes:
        parent: the id of the process that made it.
        requests: the pipe that it reads.
        answers: the pipe that it writes.
        is_late: whether it was ended because it was waited for too long.
    """

    def __init__(self, work: Callable[[Any], Any], seconds: float, memory: int) -> None:
        self.parent = os.getpid()
        self.is_late = False
        self._seconds = seconds
        self._ending = threading.Lock()
        self._has_ended = False
        asked, self.requests = os.pipe()
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
        self.answers = os.fdopen(reading, "rb")
        self._finalizer = weakref.finalize(
            self, _finish, self.parent, self._id, self.requests, self.answers
        )

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Wait for it in the block, which ends with an error of the pipe if that takes too long.

        Its own timer ends it sooner, but not while it is stopped.
        """
        # A timer ends some time after it was cancelled, and would hold this until then.
        watch = threading.Timer(self._seconds + _SLACK, _give_up, [weakref.ref(self)])
        watch.daemon = True
        watch.start()
        try:
            yield
        finally:
            watch.cancel()

    def give_up(self) -> None:
        """End it, since it was waited for too long; who waits gets an error of the pipe."""
        # Once it has ended, its id may be another's.
        with self._ending:
            if not self._has_ended:
                self.is_late = True
                os.kill(self._id, signal.SIGKILL)

    def end(self) -> str:
        """End it; return how it has ended, in a few words."""
        self._finalizer.detach()
        os.close(self.requests)
        self.answers.close()
        with self._ending:
            self._has_ended = True
            how = _end(self._id, self._seconds)
        return _late(self._seconds) if self.is_late else how


def _give_up(child: weakref.ref[_Child]) -> None:
    if (held := child()) is not None:
        held.give_up()


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
