"""The parent's end: starting processes, asking them, and saying how they ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from truthgpt_core.child_process.child import ChildError, read, write
from truthgpt_core.errors import TruthGPTError, in_one_line

_SECONDS_TO_END = 10.0
_SHOWN = 1 << 16
_SIGNALS = {each.value: each.name for each in signal.Signals}
_HINTS = {
    9: "Most likely there is too little memory: end other programs and try again.",
    signal.SIGILL.value: "It was built for another CPU: install a build for this one.",
}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; minus the number of the signal that killed it; None if its
            time was up.
        out: what it wrote to standard output.
        stderr: the end of what it wrote to standard error.
    """

    code: int | None
    out: bytes
    stderr: str

    @property
    def how(self) -> str:
        """The signal by its name or the exit code, and what it said last if that says why."""
        code = self.code or 0
        how = f"exit code {code}"
        if code < 0:
            how = f"killed by {_SIGNALS.get(-code, f'signal {-code}')}"
        line = last_line(self.stderr) if code > 0 or code == -signal.SIGABRT else ""
        return f"{how}: {line}" if line else how

    @property
    def hint(self) -> str | None:
        """What may help, if how it ended says so."""
        return _HINTS.get(-(self.code or 0))


class ChildProcess:
    """A module that runs in a process of its own and answers requests; a context manager.

    The process has a session of its own: Ctrl-C does not reach it, nothing in it can ask a
    question on the terminal, and what it starts ends with it. It ends when this process does,
    however that ends.

    Args:
        module: its name; it calls `serve`.
        name: of the process, for errors.
        seconds: how long it may take, from now; None: any time.
        call_seconds: how long each answer may take; None: any time.
        slow: what to do if that is too short, for errors.
        log: a file that what it prints is added to; a nameless one if None.
        environment: variables for it, beside those of this process.
        errors: classes that errors which it raises have here.

    Raises:
        ChildError: it cannot be started.
    """

    def __init__(
        self,
        module: str,
        name: str,
        *,
        seconds: float | None = None,
        call_seconds: float | None = None,
        slow: str | None = None,
        log: Path | None = None,
        environment: Mapping[str, str] | None = None,
        errors: Iterable[type[TruthGPTError]] = (),
    ) -> None:
        self._failed = f"{name} failed to start"
        self._name, self._errors = name, tuple(errors)
        self._call_seconds, self._slow = call_seconds, slow
        self._late: str | None = None
        self._ending = threading.Lock()
        # -P: what happens to lie in the current directory is not what is installed.
        command = [sys.executable, "-P", "-m", __package__, module]
        command += [] if seconds is None else [str(seconds)]
        variables = os.environ | dict(environment or {})
        self._log = _scratch_file() if log is None else log.open("ab+")
        try:
            self._process = _start(command, self._log, stdin=subprocess.PIPE, env=variables)
        except OSError as error:
            self._log.close()
            how = f"a process cannot be started: {in_one_line(error)}"
            raise ChildError(f"{self._failed}: {how}", how) from None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._timer, self._call_timer = self._limit(seconds), self._limit(None)

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(at_once=kind is not None)

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    def call(self, request: str, /, **arguments: Any) -> Any:
        """Ask for something and wait for the answer; see `ask` and `answer`."""
        self.ask(request, **arguments)
        return self.answer()

    def ask(self, request: str, /, **arguments: Any) -> None:
        """Ask for something without waiting; `answer` has to be called next.

        Args:
            request: its name.
            arguments: in JSON types.

        Raises:
            ChildError: it has died.
        """
        self._failed = f"{self._name} failed to {request}"
        content = json.dumps([request, arguments]).encode() + b"\n"
        self._call_timer = self._limit(self._call_seconds)
        try:
            write(self._stdin.fileno(), content)
        except (OSError, ValueError):  # ValueError: it was ended here
            raise self._died() from None

    def answer(self, hear: Callable[[str, Any], None] = lambda kind, value: None) -> Any:
        """Wait for the answer to what was asked.

        Args:
            hear: told the kind and value of each message that comes before it.

        Raises:
            TruthGPTError: it was raised there; of the nearest of the classes that are given.
            ChildError: something else was raised, it died, or did not answer in time.
        """
        try:
            while True:
                kind, value = read(self._stdout, self._failed, self._errors)
                if kind == "result":
                    return value
                hear(kind, value)
        except EOFError:
            raise self._died() from None
        finally:
            self._call_timer.cancel()

    def end(self, *, at_once: bool = False) -> None:
        """End the process and what it has started, and wait until it has ended.

        Args:
            at_once: kill it, whatever it is busy with.
        """
        self._timer.cancel()
        self._call_timer.cancel()
        if at_once and self._process.returncode is None:
            _kill(self._process)
        with self._ending:
            if self._log.closed:
                return
            self._stdin.close()
            try:
                self._process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                _kill(self._process)
                self._process.wait()
            _kill(self._process)  # what it has left running
            self._ended = Ended(self._process.returncode, b"", _end_of(self._log))
            self._stdout.close()
            self._log.close()

    def _limit(self, seconds: float | None) -> threading.Timer:
        def expire() -> None:
            if self._process.returncode is None:
                self._late = f"no answer within {seconds:g} s"
                _kill(self._process)  # which ends whatever waits for it

        timer = threading.Timer(seconds or 0.0, expire)
        timer.daemon = True
        if seconds is not None:
            timer.start()
        return timer

    def _died(self) -> ChildError:
        self.end()
        how, hint = self._ended.how, self._ended.hint
        if self._late:
            how, hint = self._late, self._slow
        return ChildError(f"{self._failed}: {how}", how, hint=hint)


def run(command: Sequence[str | os.PathLike[str]], seconds: float) -> Ended:
    """Run a program to its end; when its time is up, kill it and what it has started.

    Raises:
        OSError: it cannot be started.
    """
    with _scratch_file() as log, _start(command, log, stdin=subprocess.DEVNULL) as process:
        try:
            out, _ = process.communicate(timeout=seconds)
            return Ended(process.returncode, out, _end_of(log))
        except subprocess.TimeoutExpired as expired:
            return Ended(None, expired.output or b"", _end_of(log))
        finally:
            if process.returncode is None:
                _kill(process)


def last_line(text: str) -> str:
    """Return the last line that is not empty; empty if there is none."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _start(
    command: Sequence[str | os.PathLike[str]], log: IO[bytes], **options: Any
) -> subprocess.Popen[bytes]:
    # A file for standard error: what the process starts and leaves running inherits it, and would
    # keep a pipe open for as long as it runs.
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, start_new_session=True, **options
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            process.kill()
        else:
            # While one of its group is left, no other process gets its number.
            os.killpg(process.pid, signal.SIGKILL)


def _scratch_file() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # a full disk is no reason not to start
        return open(os.devnull, "w+b")  # noqa: PTH123 - not a path of a user


def _end_of(log: IO[bytes]) -> str:
    log.seek(max(0, log.seek(0, os.SEEK_END) - _SHOWN))
    return log.read().decode(errors="replace")
