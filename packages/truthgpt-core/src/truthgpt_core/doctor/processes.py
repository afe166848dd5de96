"""Running a program so that it cannot outlast its time, nor outlive whoever started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

_SECONDS_TO_END = 5.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; minus the number of the signal that killed it; None if its
            time was up.
        out: what it wrote to standard output.
        said: what it wrote to standard error.
    """

    code: int | None
    out: bytes
    said: str

    @property
    def how(self) -> str:
        """Say in a few words how it ended, unless its time was up."""
        if self.code is None or self.code >= 0:
            return f"exit code {self.code}"
        try:
            return f"killed by {signal.Signals(-self.code).name}"
        except ValueError:
            return f"killed by signal {-self.code}"


class TimedProcess:
    """A process in a session of its own, which ends with all it started; a context manager.

    Ctrl-C does not reach it: leaving the context ends it.

    Args:
        command: the program and its arguments.
        seconds: how long it may take, from now.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, command: Sequence[str | os.PathLike[str]], seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._said = _scratch_file()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                # A file: what the process starts and leaves running inherits standard
                # error, and would keep a pipe open for as long as it runs.
                stderr=subprocess.DEVNULL if self._said is None else self._said,
                start_new_session=True,
            )
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> TimedProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.returncode is None:
            self._kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._close()

    def wait(self) -> Ended:
        """Wait until it has ended, and end it when its time is up."""
        try:
            out, _ = self._process.communicate(timeout=max(0.0, self._end - time.monotonic()))
            code: int | None = self._process.returncode
        except subprocess.TimeoutExpired:
            self._kill()
            code = None
            try:
                out, _ = self._process.communicate(timeout=_SECONDS_TO_END)
            except subprocess.TimeoutExpired as still:
                # Something that left the session has the pipe.
                out = still.output or b""
        return Ended(code, out, self._read_said())

    def _kill(self) -> None:
        # Not waited for yet, so its number is still its own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)

    def _read_said(self) -> str:
        if self._said is None:
            return ""
        self._said.seek(0)
        return self._said.read().decode(errors="replace")

    def _close(self) -> None:
        if self._said is not None:
            self._said.close()


def _scratch_file() -> IO[bytes] | None:
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return None  # a full disk is no reason not to look at the rest


def run(command: Sequence[str | os.PathLike[str]], seconds: float) -> Ended:
    """Run a program to its end.

    Raises:
        OSError: it cannot be started.
    """
    with TimedProcess(command, seconds) as process:
        return process.wait()


def last_line(text: Any) -> str:
    """Return the last line that is not empty; empty if there is none."""
    lines = [line for line in str(text).splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
