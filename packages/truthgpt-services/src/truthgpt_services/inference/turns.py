"""One thread at a time does the work for all that wait; the others sleep until it has."""

from __future__ import annotations

import threading
from collections.abc import Callable

from truthgpt_core.decoding import GenerationError

LONGEST_SLEEP = 1.0
"""Seconds after which who waits looks by itself: an interrupt may have kept it from being woken."""


class Turns:
    """Says whose turn it is."""

    def __init__(self) -> None:
        # A dict is set in one step: after an interrupt, at whatever place, a thread still knows
        # whether it has the turn. A lock does not say.
        self._turn: dict[str, int] = {}
        self._changed = threading.Condition()

    @property
    def is_mine(self) -> bool:
        """Whether this thread has the turn."""
        return self._turn.get("thread") == threading.get_ident()

    def take(self) -> bool:
        """Return whether this thread, which does not have the turn, has it now."""
        me = threading.get_ident()
        return self._turn.setdefault("thread", me) == me

    def give(self) -> None:
        """Give the turn back, if this thread has it, and wake those that sleep."""
        if self.is_mine:
            del self._turn["thread"]
            self.wake()

    def sleep(self, ready: Callable[[], bool]) -> None:
        """Wait until the thread that has the turn has done something, unless something is so."""
        with self._changed:
            # Who has the turn may have given it back between the two.
            if not ready() and self._turn:
                self._changed.wait(LONGEST_SLEEP)

    def wake(self) -> None:
        """Let those that sleep look."""
        with self._changed:
            self._changed.notify_all()

    def refuse_nested(self) -> None:
        """Refuse to wait within a turn of this thread, which would have to end first.

        Raises:
            GenerationError: this thread has the turn.
        """
        if self.is_mine:
            raise GenerationError(
                "A listener, logits processor or decoder waits for text of the service that "
                "called it",
                hint="Let another thread ask for it, or ask when that text is over.",
            )
