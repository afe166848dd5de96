"""SIGTERM and SIGINT: noted while training computes, so that it can save and leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
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

    def leave_at_once(self, at_once: bool) -> None:
        """Say whether a signal ends the block where it is, by `TrainingInterrupted`.

        Args:
            at_once: while there is nothing to save, such as when data is prepared.
        """
        self._at_once = at_once

    def _note(self, number: int, _frame: FrameType | None) -> None:
        again = self.received is not None
        self.received = signal.Signals(number)
        if self._at_once:
            raise TrainingInterrupted(self.received.name, number, None)
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not again:
            self.say(self.received.name)
