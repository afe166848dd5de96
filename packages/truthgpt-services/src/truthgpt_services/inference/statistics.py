"""What a scheduler has done, counted by several threads."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStatistics:
    """What a scheduler has done since it was made, and what it holds now.

    Attributes:
        waiting: requests that have not begun.
        running: requests that have.
        submitted: requests that came.
        finished: those that ended with all of their text.
        cancelled: those that nobody wanted any more.
        timed_out: those whose deadline passed.
        failed: those that ended with an error.
        passes: calls of the engine for all sequences together.
        prompt_tokens: tokens of prompts that were read.
        reused_tokens: tokens of prompts that were taken from other sequences.
        generated_tokens: tokens that were chosen.
        kept_tokens: tokens in sequences that are kept for later prompts.
        engine_seconds: time in the engine.
        choosing_seconds: time for choosing tokens and turning them into text.
        seconds: time of passes, with all that belongs to them.
    """

    waiting: int = 0
    running: int = 0
    submitted: int = 0
    finished: int = 0
    cancelled: int = 0
    timed_out: int = 0
    failed: int = 0
    passes: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    kept_tokens: int = 0
    engine_seconds: float = 0.0
    choosing_seconds: float = 0.0
    seconds: float = 0.0


class Counters:
    """Counts by name; from any thread, and while memory is collected."""

    def __init__(self) -> None:
        # Reentrant: collecting memory may cancel a text, which counts, while this is held.
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()

    def add(self, **added: float) -> None:
        """Add to some of them."""
        with self._lock:
            for name, value in added.items():
                self._counts[name] += value  # type: ignore[assignment] # seconds are counted too

    def statistics(self, **now: int) -> SchedulerStatistics:
        """Return them, with what is held now."""
        with self._lock:
            counts: dict[str, Any] = dict(self._counts)
        return SchedulerStatistics(**counts, **now)
