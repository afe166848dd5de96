"""Trackers: plugins that pass on how training goes to a service, and cannot break it.

A tracker derives from `TrackerPlugin` and says how a run of it is opened. It does nothing
unless the configuration of the run has a section of its name. Everything that it does, it
does in a thread of its own: no step of training waits for it, and what it raises becomes
one note of the run.
"""

from __future__ import annotations

import enum
import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from truthgpt_core.config.sections import Section
from truthgpt_core.errors import in_one_line
from truthgpt_core.event_system import (
    Event,
    EventEmitter,
    EventType,
    Subscription,
    TrainingNoted,
)
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.paths import read_json, write_file
from truthgpt_core.plugin_system.plugin import Plugin, PluginError

if TYPE_CHECKING:
    from truthgpt_core.config import ConfigSections

logger = logging.getLogger(__name__)

_NUMBERS = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "epoch", "tokens", "flops")
_ROWS = (EventType.TRAINING_STEP, EventType.EVALUATION_FINISHED, EventType.TRAINING_NOTED)
_ENDS = (EventType.TRAINING_FINISHED, EventType.TRAINING_FAILED)
# After the others that listen, so that a note stands after the step that it comes with.
_LAST = -100
_MOST_WAITING = 10_000


class Outcome(enum.StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class RunStart:
    """What is known of a run when it begins or goes on.

    Attributes:
        config: its whole configuration, as plain JSON.
        directory: its output directory.
        step: steps that are done already.
        key: what `TrackedRun.key` was, of a run that goes on; None of a new one.
        note: tells a sentence about the tracker, as a note of the run.
    """

    config: Mapping[str, Any]
    directory: Path
    step: int
    key: str | None
    note: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Row:
    """What a step, an evaluation or a note comes to.

    Attributes:
        step: the step of the optimizer.
        time: when it was, in seconds since the epoch.
        numbers: by name, those of evaluations beginning with `val_`; empty for a note.
        about: a word for what the note is about; empty if it is none.
        note: a sentence.
    """

    step: int
    time: float
    numbers: Mapping[str, float]
    about: str = ""
    note: str = ""


class TrackedRun(Protocol):
    """A run as the tracker's library has it. All is called in one thread, and may wait."""

    @property
    def key(self) -> str:
        """What `TrackerPlugin.open` finds it by when it goes on."""

    def log(self, rows: Sequence[Row]) -> None:
        """Take rows, all or, raising, none: they are tried again then.

        Args:
            rows: in the order in which they came about, `TrackerPlugin.rows_at_once` at most.
        """

    def end(self, outcome: Outcome, reason: str) -> None:
        """End, when all rows are taken or cannot be.

        Args:
            outcome: how the run ended.
            reason: why, if it did not finish.
        """


class TrackerPlugin(Plugin):
    """A tracker. Its section of the configuration has the plugin's name.

    Attributes:
        section: the model of its section; without a field that must be given, it would be
            switched on for everyone who installs it.
        rows_at_once: how many rows its runs take in one call of `log`.
        seconds_to_end: how long the end of training waits for the tracker.
    """

    section: ClassVar[type[Section]]
    rows_at_once: ClassVar[int] = 1
    seconds_to_end: float = 30.0

    def __init__(self) -> None:
        self._events: EventEmitter | None = None
        self._sender: _Sender | None = None
        self._listening: list[Subscription] = []

    def open(self, settings: Any, start: RunStart) -> TrackedRun:
        """Open a run, or go on with one. Here the tracker's library is imported.

        Args:
            settings: the section.
            start: what is known of the run. If there is no run of its key any more, a new
                one is opened.
        """
        raise PluginError(f"{type(self).__name__} does not say how a run is opened")

    @hookimpl
    def register_config_sections(self, sections: ConfigSections) -> None:
        """Register the section."""
        sections.register(self.name, self.section)

    @hookimpl
    def register_event_handlers(self, events: EventEmitter) -> None:
        """Listen for the start of a run."""
        self._events = events
        events.on(EventType.TRAINING_STARTED, self._start, priority=_LAST)

    def shutdown(self) -> None:
        """Leave a run that is tracked."""
        self._end(Outcome.INTERRUPTED, "the tracker was deactivated")

    def _start(self, event: Event) -> None:
        config = event.data.get("config") or {}
        given = config.get(self.name)
        if given is None or self._events is None:
            return
        self._end(Outcome.INTERRUPTED, "another run began")
        settings = self.section.model_validate(given)
        step, directory = event.data.get("step", 0), Path(config.get("output_dir", "."))
        file = directory / f"{self.name}-run.json"

        def open_run(note: Callable[[str], None]) -> TrackedRun:
            key = _read_key(file) if step else None
            with suppress(OSError):
                directory.mkdir(parents=True, exist_ok=True)
            run = self.open(settings, RunStart(config, directory, step, key, note))
            try:
                write_file(file, json.dumps({"key": run.key}) + "\n")
            except OSError as error:
                note(f"a resumed run will be a new one there: {in_one_line(error)}")
            return run

        self._sender = _Sender(self.name, open_run, self.rows_at_once)
        listen = partial(self._events.on, priority=_LAST)
        self._listening = [listen(kind, self._add) for kind in _ROWS]
        self._listening += [listen(kind, self._finish) for kind in _ENDS]

    def _add(self, event: Event) -> None:
        # Its own notes are for the others: it is what could not be reached.
        if self._sender is not None and event.data.get("about") != self.name:
            self._sender.add(event)
            self._tell(event.data.get("step", 0))

    def _finish(self, event: Event) -> None:
        data = event.data
        if event.type is EventType.TRAINING_FAILED:
            self._end(Outcome.FAILED, str(data.get("reason", "")), data.get("step", 0))
        elif "interrupted" in data:
            self._end(Outcome.INTERRUPTED, str(data["interrupted"]), data.get("step", 0))
        else:
            self._end(Outcome.FINISHED, "", data.get("step", 0))

    def _end(self, outcome: Outcome, reason: str, step: int = 0) -> None:
        for each in self._listening:
            each.remove()
        self._listening = []
        if self._sender is not None:
            self._sender.end(outcome, reason, self.seconds_to_end)
            self._tell(step)
            self._sender = None

    def _tell(self, step: int) -> None:
        # By the thread that trains: those who listen expect no other.
        sender = self._sender
        while sender is not None and self._events is not None and sender.notes:
            note = f"{self.name}: {sender.notes.popleft()}"
            self._events.emit(TrainingNoted(step=step, about=self.name, note=note))


class _Sender:
    """A thread that opens a run and hands it the rows; what fails is tried again, ever later.

    Args:
        name: of the thread.
        open_run: opens the run; it is given what takes notes.
        rows_at_once: how many rows the run takes in one call.
    """

    def __init__(
        self, name: str, open_run: Callable[[Callable[[str], None]], TrackedRun], rows_at_once: int
    ) -> None:
        self.notes: deque[str] = deque()
        self._open = open_run
        self._at_once = rows_at_once
        self._run: TrackedRun | None = None
        self._waiting: deque[Event] = deque()
        self._lost = 0
        self._failed = False
        self._ended: tuple[Outcome, str] | None = None
        self._ending = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"truthgpt-{name}", daemon=True)
        self._thread.start()

    def add(self, event: Event) -> None:
        """Take an event, which the thread makes a row of."""
        with self._changed:
            if len(self._waiting) < _MOST_WAITING:
                self._waiting.append(event)
                self._changed.notify()
            else:
                self._lost += 1

    def end(self, outcome: Outcome, reason: str, seconds: float) -> None:
        """End the run when it has all rows; wait for that, but not forever."""
        with self._changed:
            self._ended = outcome, reason
            self._ending.set()
            self._changed.notify()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.notes.append(f"not everything has arrived after {seconds:g} seconds")
        elif self._lost:
            self.notes.append(f"{self._lost} steps, evaluations and notes have not arrived")

    def _work(self) -> None:
        pause = 1.0
        while True:
            with self._changed:
                if self._run is not None:
                    self._changed.wait_for(lambda: self._waiting or self._ended is not None)
                events, ended = list(islice(self._waiting, self._at_once)), self._ended
            try:
                if self._run is None:
                    self._run = self._open(self.notes.append)
                elif events:
                    self._run.log([_row(event) for event in events])
                    with self._changed:
                        for _ in events:
                            self._waiting.popleft()
                elif ended is not None:
                    self._run.end(*ended)
                    return
                pause = 1.0
            except (Exception, SystemExit) as error:  # noqa: BLE001 - it cannot break a run
                self._note_failure(error)
                if ended is not None:
                    self._give_up(ended)
                    return
                self._ending.wait(pause)
                pause = min(2 * pause, 60.0)

    def _note_failure(self, error: BaseException) -> None:
        logger.debug("A tracker failed", exc_info=error)
        if not self._failed:
            self._failed = True
            self.notes.append(f"{in_one_line(error)}; training goes on")

    def _give_up(self, ended: tuple[Outcome, str]) -> None:
        self._lost += len(self._waiting)
        if self._run is not None and self._waiting:
            with suppress(Exception, SystemExit):
                self._run.end(*ended)


def _row(event: Event) -> Row:
    data = event.data
    step = int(data.get("step", 0))
    if event.type is EventType.TRAINING_NOTED:
        return Row(step, event.timestamp, {}, str(data.get("about")), str(data.get("note")))
    if event.type is EventType.EVALUATION_FINISHED:
        values = {f"val_{name}": value for name, value in data.get("metrics", {}).items()}
    else:
        values = {name: data[name] for name in _NUMBERS if name in data}
    numbers = {}
    for name, value in values.items():
        # Waits for the device if it is a tensor, in this thread.
        with suppress(TypeError, ValueError):
            numbers[name] = float(value)
    return Row(step, event.timestamp, numbers)


def _read_key(file: Path) -> str | None:
    with suppress(OSError, ValueError, KeyError):
        return str(read_json(file)["key"])
    return None


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with dotted names, for trackers that know no sections.

    Args:
        config: mappings in mappings; empty ones are left out.

    Returns:
        Such as `{"training.epochs": 1}`.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": each for inner, each in flattened(value).items()}
        else:
            flat[str(name)] = value
    return flat
