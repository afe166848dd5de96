"""Runs in trackio, read back from the database that it keeps on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trackio.sqlite_storage import SQLiteStorage

from truthgpt_core.testing import RecordedRun, SimulatedTraining, TrackerContract
from truthgpt_core.tracking import Outcome
from truthgpt_plugin_trackio.plugin import TrackioPlugin


class TestTrackio(TrackerContract):
    """The contract of trackers, and what is particular to trackio."""

    plugin = TrackioPlugin
    library = "trackio"

    def section(self, place: Path) -> dict[str, Any]:
        """Return one with a project that nothing else has."""
        del place
        return {"project": f"tests-{uuid.uuid4().hex}"}

    def unreachable(self, place: Path) -> dict[str, Any]:
        """Return one with a server and no credentials for it."""
        del place
        return {"project": "tests", "server_url": "http://127.0.0.1:9"}

    def recorded(self, section: Mapping[str, Any], directory: Path) -> Sequence[RecordedRun]:
        """Read the runs of a project."""
        del directory
        project = section["project"]
        return [self.read(project, name) for name in SQLiteStorage.get_runs(project)]

    def read(self, project: str, name: str) -> RecordedRun:
        """Read a run."""
        history: dict[str, list[tuple[int, float]]] = {}
        for row in SQLiteStorage.get_logs(project, name):
            for metric, value in row.items():
                if metric not in ("step", "timestamp"):
                    history.setdefault(metric, []).append((row["step"], value))
        alerts = list(reversed(SQLiteStorage.get_alerts(project, name)))
        ends = [each for each in alerts if each["title"] in list(Outcome)]
        return RecordedRun(
            history,
            SQLiteStorage.get_run_config(project, name) or {},
            [each["text"] for each in alerts if each not in ends],
            Outcome(ends[-1]["title"]) if ends else None,
            (ends[-1]["text"] or "") if ends else "",
        )

    def test_alerts_have_levels(self, training: SimulatedTraining, tmp_path: Path) -> None:
        """A note is a warning under what it is about, and a run that failed an error."""
        section = self.section(tmp_path)
        training.start(section)
        training.note(1, "spike", "The loss is high.")
        training.fail(1, "why")
        alerts = {
            (each["title"], each["text"], each["level"])
            for each in SQLiteStorage.get_alerts(section["project"])
        }
        assert alerts == {("spike", "The loss is high.", "warn"), ("failed", "why", "error")}

    def test_a_run_is_named_after_its_output_directory(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """Where the section names none, with something behind it that makes it new."""
        section = self.section(tmp_path)
        training.start(section)
        training.step(1)
        training.finish(1)
        (name,) = SQLiteStorage.get_runs(section["project"])
        assert name.startswith("out-")

    def test_the_note_of_a_refused_server_says_what_is_missing(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """What trackio says is in the note."""
        training.start(self.unreachable(tmp_path))
        training.finish(0)
        (note,) = training.notes
        assert note.startswith("trackio: ValueError: ")
        assert "write token" in note


def test_a_disk_that_takes_nothing_does_not_end_training(tmp_path: Path) -> None:
    """Where trackio can write nothing, training goes on to its end."""
    (tmp_path / "file").touch()
    code = (
        "from truthgpt_core.plugin_system import PluginManager\n"
        "from truthgpt_core.event_system import EventType, emit_event\n"
        "PluginManager().activate('trackio')\n"
        f"config = {{'trackio': {{'project': 'p'}}, 'output_dir': {str(tmp_path)!r}}}\n"
        "emit_event(EventType.TRAINING_STARTED, {'step': 0, 'config': config})\n"
        "emit_event(EventType.TRAINING_STEP, {'step': 1, 'loss': 2.0})\n"
        "emit_event(EventType.TRAINING_FINISHED, {'step': 1})\n"
        "print('trained')\n"
    )
    # In a process of its own: trackio reads the environment when it is imported.
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "file" / "trackio")},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.endswith("trained\n")
