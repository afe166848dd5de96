"""Worker processes as the process that orchestrates them sees them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from truthgpt_core.child_process import ChildError, ChildProcess
from truthgpt_core.cli.terminal import say
from truthgpt_core.errors import TruthGPTError, is_debugging
from truthgpt_core.event_system import EventEmitter
from truthgpt_core.optimization import OptimizationError, Progress, no_progress
from truthgpt_services.errors import DeviceError, ModelError, OutputError, WorkerError
from truthgpt_services.measuring.protocol import (
    FORWARDED,
    BenchRequests,
    ModelRequests,
    P,
    R,
    RequestError,
    in_json_types,
    result_of,
)
from truthgpt_services.measuring.worker_log import new_log, printed

_ERRORS = (DeviceError, ModelError, OptimizationError, OutputError, RequestError)


class WorkerProcess(ModelRequests, BenchRequests):
    """A process that holds one model, and what it can be asked.

    Each request raises the error that was raised there, of the same class or, if that is a
    plugin's own, of the nearest class that it is derived from; and a `WorkerError` if the process
    crashed, was killed, or did not answer in time. See `ChildProcess` for how it ends.

    Args:
        name: for messages, and for the heading of its log.
        logs: a directory for what it prints; see `worker_log`.
        progress: told what it says of long work.
        events: the events of the process that `protocol.FORWARDED` names are emitted here, before
            the answer to the request that they came up in is returned; None: nowhere.
        step_timeout: seconds that it may take to answer; None: any time.
    """

    def __init__(
        self,
        name: str,
        logs: Path,
        progress: Progress = no_progress,
        *,
        events: EventEmitter | None = None,
        step_timeout: float | None = None,
    ) -> None:
        self.name = name
        self._progress = progress
        self._events = events
        self._log = new_log(logs, name)
        try:
            self._child = ChildProcess(
                "truthgpt_services.measuring.worker",
                f'The worker for "{name}"',
                call_seconds=step_timeout,
                slow="If it only takes long, raise --step-timeout.",
                log=self._log,
                errors=_ERRORS,
            )
        except ChildError as error:
            raise WorkerError(error.message, worker=name) from error

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
        return self._child.pid

    def begin(
        self, request: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> Callable[[], R]:
        """Send a request without waiting; see `Requests`."""
        arguments = inspect.signature(request).bind(*args, **kwargs).arguments
        name = request.__name__
        self._guarded(partial(self._child.ask, name, **in_json_types(arguments)))
        return lambda: result_of(name, self._guarded(partial(self._child.answer, self._hear)))

    def end(self, *, at_once: bool = False) -> None:
        """End the process and what it started, and wait until it has ended."""
        self._child.end(at_once=at_once)

    def _hear(self, kind: str, value: Any) -> None:
        if kind != "event":
            self._progress(*value)
        elif self._events is not None:
            name, data = value
            self._events.emit(FORWARDED[name](**data))

    def _guarded(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except TruthGPTError as error:
            if is_debugging():
                # The traceback is there: the worker logs what it answers as an error.
                say(printed(self._log), err=True)
            if isinstance(error, ChildError):
                raise WorkerError(error.message, worker=self.name, hint=error.hint) from None
            raise
