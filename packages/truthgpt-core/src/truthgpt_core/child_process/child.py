"""The child's end: messages, taking the pipes at the start, and answering requests.

A message is a line of JSON after a record separator (RFC 7464), so that what was printed before
is not taken for one: its kind, its value, and None or how many bytes follow in place of a value.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from typing import IO, Any

from truthgpt_core.errors import TruthGPTError, in_one_line

_SEPARATOR = b"\x1e"
_SECONDS_TO_END = 5.0

_requests = _answers = -1
_is_over = False
_writing = threading.Lock()


class ChildError(TruthGPTError):
    """A child process died, took too long, or failed at what it was asked for.

    Args:
        message: what became of it, as a sentence.
        how: the same in a few words: "killed by SIGSEGV".
        hint: what to do about it.
    """

    def __init__(self, message: str, how: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.how = how


def connect() -> None:
    """Take standard input and output for messages, and put others in their place.

    What is printed goes to standard error from now on, and what asks a question is at the end of
    its input. Ctrl-C is ignored: the process that started this one ends it.
    """
    global _requests, _answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _requests, _answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    if hasattr(os, "register_at_fork"):
        # A fork would keep the pipes open after this process has died, and no one would see it.
        os.register_at_fork(
            after_in_child=lambda: [os.dup2(null, each, False) for each in (_requests, _answers)]
        )
    atexit.register(_kill_what_is_left)
    if hasattr(select, "poll"):
        threading.Thread(target=_end_after_input, daemon=True).start()


def serve(answer: Callable[[str, dict[str, Any]], Any]) -> None:
    """Answer requests until there are no more.

    Args:
        answer: takes the name of a request and its arguments, and returns the result in JSON
            types, or as bytes. What it raises is raised where the request comes from.
    """
    global _is_over
    for line in os.fdopen(_requests, encoding="utf-8", closefd=False):
        try:
            content = message("result", answer(*json.loads(line)))
        except BaseException as error:  # noqa: BLE001 - raised in the other process
            traceback.print_exc()
            content = failure(error)
        with _writing:
            write(_answers, content)
    _is_over = True


def send(kind: str, value: Any) -> None:
    """Tell the process that started this one something about the request that is worked on.

    Args:
        kind: what it is; neither "result" nor "error".
        value: in JSON types.
    """
    with _writing:
        write(_answers, message(kind, value))


def message(kind: str, value: Any) -> bytes:
    """Return a message; its value is bytes, or in JSON types."""
    size, content = (len(value), value) if isinstance(value, bytes) else (None, b"")
    head = json.dumps([kind, value if size is None else None, size])
    return b"%b%b\n%b" % (_SEPARATOR, head.encode(), content)


def failure(error: BaseException) -> bytes:
    """Return the message that an error was raised."""
    if not isinstance(error, TruthGPTError):
        return message("error", [[], in_one_line(error), None])
    # With its bases: a plugin's own class is not known in the other process.
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return message("error", [kinds, error.message, error.hint])


def read(pipe: IO[bytes], name: str, errors: Iterable[type[TruthGPTError]] = ()) -> tuple[str, Any]:
    """Wait for a message; return its kind and value.

    Args:
        pipe: where it comes from.
        name: what errors begin with.
        errors: classes of errors; the nearest is raised.

    Raises:
        EOFError: there is none, since the process has ended.
        TruthGPTError: what was raised there.
        ChildError: that was another error, or the message cannot be read.
    """
    line = b""
    while _SEPARATOR not in line:
        line = pipe.readline()
        if not line.endswith(b"\n"):
            raise EOFError  # it was killed while it wrote
    try:
        kind, value, size = json.loads(line.rpartition(_SEPARATOR)[2])
    except (ValueError, TypeError, RecursionError):
        how = "its answer cannot be read"
        raise ChildError(f"{name}: {how}", how) from None
    if size is not None:
        value = pipe.read(size)
        if len(value) < size:
            raise EOFError
    if kind == "error":
        kinds, text, hint = value
        known = {each.__name__: each for each in (*errors, TruthGPTError)}
        for each in kinds:
            if each in known:
                raise known[each](text, hint=hint)
        raise ChildError(f"{name}: {text}", text)
    return kind, value


def write(descriptor: int, content: bytes) -> None:
    """Write all of something to a pipe."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _end_after_input() -> None:
    """Kill this process some seconds after its input has ended.

    It ends by itself when it comes to read again, which what it is busy with may never let it.
    """
    ended = select.poll()
    # The end is told without being asked for; that there is something to read is not.
    ended.register(_requests, 0)
    ended.poll()
    time.sleep(_SECONDS_TO_END)
    _kill()


def _kill_what_is_left() -> None:
    # Nobody else may be left to do so. Registered first, this is the last that is called.
    if _is_over:
        sys.stdout.flush()
        _kill()


def _kill() -> None:
    """Kill this process and what it has started."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
