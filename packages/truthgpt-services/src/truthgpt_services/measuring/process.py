"""Worker processes as the process that orchestrates them sees them."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.optimization import OptimizationError, Progress, no_progress
from truthgpt_services.errors import DeviceError, ModelError, OutputError, WorkerError

_ERRORS: Mapping[str, type[TruthGPTError]] = {
    kind.__name__: kind
    for kind in (DeviceError, ModelError, OptimizationError, OutputError, TruthGPTError)
}
_SECONDS_TO_END = 10.0


class WorkerProcess:
    """A process that holds one model.

    Args:
        name: for messages, and for the name of its log.
        logs: a directory for what it prints.
        progress: told what it says of long work.
    """

    def __init__(self, name: str, logs: Path, progress: Progress = no_progress) -> None:
        self.name = name
        self._progress = progress
        self._log = logs / f"{name.replace(' ', '')}.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "truthgpt_core.child",
                    "truthgpt_services.measuring.worker",
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
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
            WorkerError: it crashed or was killed.
        """
        self.ask(request, **arguments)
        return self.answer(request)

    def ask(self, request: str, **arguments: Any) -> None:
        """Ask for something without waiting; `answer` has to be called next.

        Raises:
            WorkerError: it crashed or was killed before.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": request, "with": arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone(request) from None

    def answer(self, request: str) -> Any:
        """Wait for the answer to what was asked; raises what `call` raises."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            ((kind, value),) = json.loads(line).items()
            if kind == "result":
                return value
            if kind == "progress":
                self._progress(*value)
            elif kind == "error":
                kinds, message, hint = value
                known = next(_ERRORS[kind] for kind in kinds if kind in _ERRORS)
                raise known(message, hint=hint)
            else:
                raise WorkerError(
                    f'The worker for "{self.name}" failed to {request}: {value}', worker=self.name
                )
        raise self._gone(request)

    def end(self, *, at_once: bool = False) -> None:
        """End the process, and wait until it has ended."""
        if at_once:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _gone(self, request: str) -> WorkerError:
        code = self._process.wait()
        how = f"exit code {code}"
        hint = None
        if code < 0:
            how = signal.Signals(-code).name
            if -code == signal.SIGKILL:
                hint = "Most likely this machine has too little memory for it."
        said = self._log.read_text(errors="replace").strip().splitlines()
        last = f": {said[-1]}" if said and code > 0 else ""
        return WorkerError(
            f'The worker for "{self.name}" ended with {how} when asked to {request}{last}',
            worker=self.name,
            hint=hint,
        )
