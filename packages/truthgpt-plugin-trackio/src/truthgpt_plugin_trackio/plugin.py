"""The tracker `trackio`; trackio itself is imported when a run begins that asks for it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from pydantic import Field

from truthgpt_core.config import Section
from truthgpt_core.tracking import Outcome, Row, RunStart, TrackerPlugin

if TYPE_CHECKING:
    from trackio.run import Run


class TrackioSection(Section):
    """Pass the run on to trackio."""

    project: str = Field(min_length=1, description="The project that the run belongs to.")
    name: str | None = Field(
        default=None, min_length=1, description="The run's name; without, the output directory's."
    )
    space_id: str | None = Field(
        default=None,
        min_length=1,
        description="A Hugging Face Space that shows it; without, it stays on this machine.",
    )
    server_url: str | None = Field(
        default=None, min_length=1, description="The address of a trackio server of one's own."
    )


class TrackioPlugin(TrackerPlugin):
    """Passes training runs on to trackio, if the configuration has its section."""

    section = TrackioSection

    @property
    def name(self) -> str:
        """Its name."""
        return "trackio"

    @property
    def version(self) -> str:
        """The version of its distribution."""
        return version("truthgpt-plugin-trackio")

    def open(self, settings: TrackioSection, start: RunStart) -> TrackioRun:
        """Open a run, or go on with one.

        Args:
            settings: the section.
            start: what is known of the run.

        Raises:
            ValueError: trackio refuses the project or the server.
        """
        import trackio

        # It finds a run by its name alone, so that of a new one has to be new.
        begun = settings.name or start.directory.resolve().name
        key = start.key or f"{begun}-{uuid.uuid4().hex[:8]}"
        run = trackio.init(
            project=settings.project,
            name=key,
            space_id=settings.space_id,
            server_url=settings.server_url,
            config=dict(start.config),
            resume="allow",
            embed=False,
        )
        return TrackioRun(run)


class TrackioRun:
    """A run of trackio.

    Args:
        run: it, opened.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._step = 0

    @property
    def key(self) -> str:
        """Its name."""
        return str(self._run.name)

    def log(self, rows: Sequence[Row]) -> None:
        """Log a row; a note is an alert."""
        for row in rows:
            self._step = row.step
            if row.note:
                self._run.alert(row.about, row.note, step=row.step)
            else:
                self._run.log(dict(row.numbers), step=row.step)

    def end(self, outcome: Outcome, reason: str) -> None:
        """Finish. trackio knows no states of runs: how it ended is an alert."""
        from trackio import AlertLevel

        level = AlertLevel.ERROR if outcome is Outcome.FAILED else AlertLevel.INFO
        self._run.alert(outcome.value, reason or None, level=level, step=self._step)
        self._run.finish()  # type: ignore[no-untyped-call]  # it says no types
