"""The tracker `tensorboard`; tensorboard itself is imported when a run begins that asks for it."""

from __future__ import annotations

import io
import itertools
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from truthgpt_core.config import Section
from truthgpt_core.paths import expanded
from truthgpt_core.tracking import Outcome, Row, RunStart, TrackerPlugin

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event


class TensorBoardSection(Section):
    """Write the run for TensorBoard."""

    log_dir: str = Field(
        min_length=1,
        description="The directory that `tensorboard --logdir` shows; each run has one in it.",
    )
    name: str | None = Field(
        default=None,
        pattern=r"^[^/\\]+$",
        description="The run's name; without, the output directory's.",
    )


class TensorBoardPlugin(TrackerPlugin):
    """Writes training runs for TensorBoard, if the configuration has its section."""

    section = TensorBoardSection
    rows_at_once = 100

    @property
    def name(self) -> str:
        """Its name."""
        return "tensorboard"

    @property
    def version(self) -> str:
        """The version of its distribution."""
        return version("truthgpt-plugin-tensorboard")

    def open(self, settings: TensorBoardSection, start: RunStart) -> TensorBoardRun:
        """Open a run, or continue one.

        Args:
            settings: the section.
            start: what is known of the run.

        Raises:
            OSError: its directory cannot be made.
        """
        parent = expanded(settings.log_dir)
        directory = _known(parent, start.key)
        if directory is None:
            directory = _new(parent, settings.name or start.directory.resolve().name)
        return TensorBoardRun(directory, start)


class TensorBoardRun:
    """A run of TensorBoard: a directory with an event file for each time that it was started.

    Args:
        directory: the directory, which is there.
        start: what is known of the run.
    """

    def __init__(self, directory: Path, start: RunStart) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        nanoseconds = time.time_ns()
        now = nanoseconds / 1e9
        # TensorBoard reads the files of a directory in the order of their names.
        stamp = f"{nanoseconds // 10**9:010}.{nanoseconds % 10**9:09}"
        self._file = directory / f"events.out.tfevents.{stamp}"
        self._step = start.step
        config = json.dumps(dict(start.config), indent=2, default=str)
        # Written with the first row: opening a run again after a failure leaves no files behind.
        self._unwritten = _records(
            [
                Event(wall_time=now, file_version="brain.Event:2"),
                # What earlier files have from this step on is not shown any more. TensorBoard
                # passes over the first start of a run, so that a new run needs one too.
                Event(
                    wall_time=now,
                    step=start.step + 1,
                    session_log=SessionLog(status=SessionLog.START),
                ),
                _text(now, start.step, "config", f"```json\n{config}\n```"),
            ]
        )

    @property
    def key(self) -> str:
        """The name of its directory."""
        return self._file.parent.name

    def log(self, rows: Sequence[Row]) -> None:
        """Write the scalars of rows, and notes as texts, by what they are about."""
        self._append([_event(row) for row in rows])
        self._step = rows[-1].step

    def end(self, outcome: Outcome, reason: str) -> None:
        """Write how the run ended, as a text."""
        text = f"{outcome}: {reason}" if reason else str(outcome)
        self._append([_text(time.time(), self._step, "outcome", text)])

    def _append(self, events: Sequence[Event]) -> None:
        data = memoryview(self._unwritten + _records(events))
        with self._file.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                # A part of a record would hide everything after it.
                file.truncate(size)
                raise
        self._unwritten = b""


def _known(parent: Path, key: str | None) -> Path | None:
    """Return the directory of a run that there is; a key that leads elsewhere is none."""
    if key is None or key != Path(key).name or key == "..":
        return None
    return parent / key if (parent / key).is_dir() else None


def _new(parent: Path, name: str) -> Path:
    """Make the directory of a new run; a name that is taken gets a number."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        directory = parent / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            directory.mkdir()
            return directory
    raise AssertionError("numbers do not end")


def _event(row: Row) -> Event:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    if row.note:
        return _text(row.time, row.step, f"notes/{row.about}", row.note)
    values = [
        Summary.Value(tag=_tag(name), simple_value=each) for name, each in row.numbers.items()
    ]
    return Event(wall_time=row.time, step=row.step, summary=Summary(value=values))


def _tag(name: str) -> str:
    """Return the name of a number with its group, which TensorBoard shows together."""
    evaluated = name.removeprefix("val_")
    return f"train/{name}" if evaluated == name else f"validation/{evaluated}"


def _text(seconds: float, step: int, tag: str, text: str) -> Event:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.text.summary_v2 import text_pb

    return Event(wall_time=seconds, step=step, summary=text_pb(tag, text))


def _records(events: Sequence[Event]) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in events:
        writer.write(event.SerializeToString())
    return buffer.getvalue()
