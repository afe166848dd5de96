"""How far a job is, and how long the rest of it may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from truthgpt_core.optimization import Progress

_RUNS_OVER = 0.1
"""What a phase that takes longer than expected is taken to need still, per second it has taken."""

_LEAST = 1e-6
"""Seconds; phases that are expected to take less say nothing of the pace."""


@runtime_checkable
class Overall(Protocol):
    """A display that shows the whole job, beside the phase that it is called with."""

    def overall(self, share: float, seconds_left: float) -> None:
        """Show that so much of the job is done, from 0 to 1, and the rest may take so long."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A piece of work that is to come.

    Attributes:
        name: what progress says of it, up to the first ": ".
        seconds: that it takes, roughly; only how phases compare counts.
        kind: phases of one kind are off by the same factor, which is learned from the first.
    """

    name: str
    seconds: float
    kind: str


def phase_of(what: str) -> str:
    """Return the name of the phase in what progress was told; details follow a colon."""
    return what.partition(": ")[0]


class Schedule:
    """Progress of a job whose phases are known in advance, as one share and one time left.

    What is told of work within a phase, say by a plugin, is shown as a detail of that phase.

    Args:
        display: gets all that this is told, and the whole if it is `Overall`.
        clock: seconds.
    """

    def __init__(self, display: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._display = display
        self._clock = clock
        self._start: float | None = None
        self._current: Phase | None = None
        self._began = 0.0
        self._rest: list[Phase] = []
        self._expected: dict[str, float] = {}
        self._taken: dict[str, float] = {}
        self._share = 0.0

    def expect(self, phases: Iterable[Phase]) -> None:
        """Say what comes after the phase that is going on, instead of what was said before."""
        self._rest = list(phases)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Go on to a phase, or tell how far it is; see `Progress`."""
        now = self._clock()
        if self._start is None:
            self._start = now
        name = phase_of(what)
        known = self._current is not None and self._current.name == name
        if not known and any(phase.name == name for phase in self._rest):
            self._go_on(name, now)
            known = True
        if not known and self._current is not None:
            what = f"{self._current.name}: {what}"
        self._display(what, done, total)
        # What is within a phase does not say how far the phase is.
        self._tell(now, done / total if known and total > 0 else 0.0)

    def _go_on(self, name: str, now: float) -> None:
        if self._current is not None:
            kind = self._current.kind
            self._expected[kind] = self._expected.get(kind, 0.0) + self._current.seconds
            self._taken[kind] = self._taken.get(kind, 0.0) + (now - self._began)
        while self._rest:
            self._current = self._rest.pop(0)
            if self._current.name == name:
                break
        self._began = now

    def _tell(self, now: float, done: float) -> None:
        left = self._left(now, min(max(done, 0.0), 1.0))
        spent = now - (self._start or 0.0)
        # An estimate that grows does not take the bar back.
        self._share = max(self._share, spent / (spent + left) if spent + left > 0 else 0.0)
        display: object = self._display
        if isinstance(display, Overall):
            display.overall(self._share, left)

    def _left(self, now: float, done: float) -> float:
        rest = sum(self._estimate(phase) for phase in self._rest)
        if self._current is None:
            return rest
        taken = now - self._began
        left = max(self._estimate(self._current) - taken, _RUNS_OVER * taken)
        if done > 0:
            # The more of it is done, the more its own pace tells.
            left = (1 - done) * left + done * (taken / done - taken)
        return rest + left

    def _estimate(self, phase: Phase) -> float:
        if self._expected.get(phase.kind, 0.0) > _LEAST:
            return phase.seconds * self._taken[phase.kind] / self._expected[phase.kind]
        expected = sum(self._expected.values())
        pace = sum(self._taken.values()) / expected if expected > _LEAST else 1.0
        return phase.seconds * pace
