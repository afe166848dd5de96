"""Worker processes as the process that orchestrates them sees them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from truthgpt_core.cli.terminal import say
from truthgpt_core.errors import TruthGPTError, is_debugging
from truthgpt_core.optimization import OptimizationError, Progress, no_progress
from truthgpt_services.errors import DeviceError, ModelError, OutputError, WorkerError
from truthgpt_services.measuring.worker_log import new_log, printed

_ERRORS: Mapping[str, type[TruthGPTError]] = {
    kind.__name__: kind
    for kind in (DeviceError, ModelError, OptimizationError, OutputError, TruthGPTError)
}
_SECONDS_TO_END = 10.0


class WorkerProcess:
    """A process that holds one model.

    It has a session of its own: Ctrl-C does not reach it, nothing in it can ask a question on the
    terminal, and what it starts ends with it. It ends when this process does, however that ends.

    Args:
        name: for messages, and for the heading of its log.
        logs: a directory for what it prints; see `worker_log`.
        progress: told what it says of long work.
        step_timeout: seconds that it may take to answer; None: any time.
    """

    def __init__(
        self,
        name: str,
        logs: Path,
        progress: Progress = no_progress,
        *,
        step_timeout: float | None = None,
    ) -> None:
        self.name = name
        self._progress = progress
        self._seconds = step_timeout
        self._timer = threading.Timer(0, self._expire)
        self._expired = False
        self._log = new_log(logs, name)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "truthgpt_core.child_process",
                    "truthgpt_services.measuring.worker",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                start_new_session=True,
            )

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(at_once=kind is not None)

    @property
    def process(self) -> int:
        """The id of the process."""
        return self._process.pid

    def call(self, request: str, **arguments: Any) -> Any:
        """Ask for something and wait for the answer.

        Args:
            request: the name of a method of `Worker` or `Bench`.
            arguments: for it, in JSON types.

        Raises:
            TruthGPTError: the error that was raised there, of the same class or, if that
                is a plugin's own, of the nearest class that it is derived from.
            WorkerError: it crashed, was killed, or did not answer in time.
        """
        self.ask(request, **arguments)
        return self.answer(request)

    def ask(self, request: str, **arguments: Any) -> None:
        """Ask for something without waiting; `answer` has to be called next.

        Raises:
            WorkerError: it crashed or was killed before.
        """
        assert self._process.stdin is not None
        if self._seconds is not None:
            # Killing it ends whatever here waits for it.
            self._timer = threading.Timer(self._seconds, self._expire)
            self._timer.daemon = True
            self._timer.start()
        try:
            self._process.stdin.write(json.dumps({"do": request, "with": arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone(request) from None

    def answer(self, request: str) -> Any:
        """Wait for the answer to what was asked; raises what `call` raises."""
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                if not line.endswith("\n"):
                    break  # killed while it wrote
                ((kind, value),) = json.loads(line).items()
                if kind == "result":
                    return value
                if kind == "progress":
                    self._progress(*value)
                    continue
                if is_debugging():
                    # The traceback is there: the worker logs what it answers as an error.
                    say(printed(self._log), err=True)
                if kind == "error":
                    kinds, message, hint = value
                    known = next(_ERRORS[kind] for kind in kinds if kind in _ERRORS)
                    raise known(message, hint=hint)
                raise WorkerError(
                    f'The worker for "{self.name}" failed to {request}: {value}',
                    worker=self.name,
                )
            raise self._gone(request)
        finally:
            self._timer.cancel()

    def end(self, *, at_once: bool = False) -> None:
        """End the process and what it started, and wait until it has ended."""
        self._timer.cancel()
        if at_once:
            self._kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._wait()

    def _expire(self) -> None:
        self._expired = True
        self._kill()

    def _kill(self) -> None:
        # Once it was waited for, its number may be another's.
        if self._process.returncode is None:
            _kill_group(self._process)

    def _wait(self) -> int:
        """Wait for its end, and then kill what it has started and left running."""
        if self._process.returncode is not None:
            return self._process.returncode
        try:
            code = self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._kill()
            code = self._process.wait()
        # While one of its group is left, no other process gets its number.
        _kill_group(self._process)
        return code

    def _gone(self, request: str) -> WorkerError:
        code = self._wait()
        hint = None
        if self._expired:
            how = f"did not finish within {self._seconds:g} s"
            hint = "If it only takes long, raise --step-timeout."
        elif code < 0:
            how = f"ended with {_signal_name(-code)}"
            if -code == signal.SIGKILL:
                hint = "Most likely this machine has too little memory for it."
        else:
            how = f"ended with exit code {code}"
        said = printed(self._log).strip().splitlines()
        last = f": {said[-1]}" if said and code > 0 and not self._expired else ""
        return WorkerError(
            f'The worker for "{self.name}" {how} when asked to {request}{last}',
            worker=self.name,
            hint=hint,
        )


def _kill_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
