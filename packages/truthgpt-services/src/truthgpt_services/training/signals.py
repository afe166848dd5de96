"""SIGTERM and SIGINT: noted while training computes, so that it can save and leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from truthgpt_services.training.errors import TrainingInterrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Notes SIGTERM and SIGINT while its block runs; a second SIGINT ends the block at once.

    Blocks nest: the outermost one sets the handlers, and what was there before comes back
    after it. Outside the main thread, where python sets no handlers, it does nothing.

    Attributes:
        received: the first signal that came; None if none has.
        say: called with its name as soon as it came, from its handler: there may be a long
            step until it is heeded.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.say: Callable[[str], None] = lambda _: None
        self._depth = 0
        self._at_once = False
        self._saved: Path | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._depth += 1
        if self._depth == 1 and threading.current_thread() is threading.main_thread():
            self.received = None
            self._before = {each: signal.signal(each, self._note) for each in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            for each, handler in self._before.items():
                # A handler that python did not set cannot be set by it.
                signal.signal(each, signal.SIG_DFL if handler is None else handler)
            self._before = {}

    @property
    def pending(self) -> bool:
        """Whether a signal came."""
        return self.received is not None

    @contextmanager
    def at_once(self, saved: Path | None = None) -> Iterator[None]:
        """Have a signal end the block where it is, and not be noted for later.

        Args:
            saved: a checkpoint of all that was done before, if anything was.

        Raises:
            TrainingInterrupted: a signal came, in the block or before it.
        """
        self._saved, self._at_once = saved, True
        try:
            self.heed()
            yield
            self.heed()
        finally:
            self._at_once = False

    def heed(self) -> None:
        """In a block of `at_once`, end it if a signal came whose exception was lost.

        Python only prints what is raised in a destructor, or beside a fork.

        Raises:
            TrainingInterrupted: one did.
        """
        if self._at_once and self.received is not None:
            raise TrainingInterrupted(self.received.name, self.received.value, self._saved)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        again = self.received is not None
        self.received = signal.Signals(number)
        self.heed()
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not again:
            self.say(self.received.name)
