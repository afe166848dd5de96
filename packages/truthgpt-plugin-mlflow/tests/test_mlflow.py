"""Runs in MLflow, read back with its own client from a store in a directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from truthgpt_core.testing import RecordedRun, SimulatedTraining, TrackerContract
from truthgpt_core.tracking import Outcome
from truthgpt_plugin_mlflow.plugin import MlflowPlugin

OUTCOMES = {
    "FINISHED": Outcome.FINISHED,
    "FAILED": Outcome.FAILED,
    "KILLED": Outcome.INTERRUPTED,
}


def runs(section: Mapping[str, Any]) -> list[Any]:
    """Return all runs of the experiment, the oldest first."""
    client = MlflowClient(section["tracking_uri"])
    experiment = client.get_experiment_by_name(section["experiment"])
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    return sorted(found, key=lambda run: run.info.start_time)


class TestMlflow(TrackerContract):
    """The contract of trackers, and what is particular to MLflow."""

    plugin = MlflowPlugin
    library = "mlflow"

    def section(self, place: Path) -> dict[str, Any]:
        """Return one of an experiment that is there: making one may draw a random number."""
        section = {"experiment": "tests", "tracking_uri": (place / "store").as_uri()}
        MlflowClient(section["tracking_uri"]).create_experiment(section["experiment"])
        return section

    def unreachable(self, place: Path) -> dict[str, Any]:
        """Return one with an address that nothing listens at."""
        del place
        return {"experiment": "tests", "tracking_uri": "http://127.0.0.1:9"}

    def recorded(self, section: Mapping[str, Any], directory: Path) -> Sequence[RecordedRun]:
        """Read the runs of the experiment."""
        del directory
        client = MlflowClient(section["tracking_uri"])
        return [self.read(client, run) for run in runs(section)]

    def read(self, client: MlflowClient, run: Any) -> RecordedRun:
        """Read a run."""
        tags = run.data.tags
        return RecordedRun(
            {
                name: [
                    (each.step, each.value)
                    for each in client.get_metric_history(run.info.run_id, name)
                ]
                for name in run.data.metrics
            },
            run.data.params,
            tags.get("notes", "").splitlines(),
            OUTCOMES.get(run.info.status),
            tags.get("reason", ""),
        )

    def test_an_experiment_that_is_not_there_is_made(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """And a run is named after its output directory, where the section names none."""
        section = {"experiment": "new", "tracking_uri": (tmp_path / "store").as_uri()}
        training.start(section)
        training.finish(0)
        (run,) = runs(section)
        assert run.info.run_name == "out"

    def test_a_note_says_its_step(self, training: SimulatedTraining, tmp_path: Path) -> None:
        """A line of the tag has the step, what the note is about, and the note."""
        section = self.section(tmp_path)
        training.start(section)
        training.note(2, "spike", "The loss is high.")
        training.finish(2)
        (run,) = runs(section)
        assert run.data.tags["notes"] == "step 2, spike: The loss is high."

    def test_a_resumed_run_keeps_its_parameters_and_notes(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """MLflow changes no parameter, which a note says; new notes follow the old ones."""
        section = self.section(tmp_path)
        training.start(section)
        training.note(3, "skip", "First.")
        training.interrupt(3, "SIGTERM")
        training.start(section, step=2, learning_rate=0.2)
        training.note(3, "skip", "Second.")
        training.finish(4)
        (run,) = runs(section)
        assert run.data.tags["notes"] == "step 3, skip: First.\nstep 3, skip: Second."
        changed = "mlflow: parameters keep their first values there: training.learning_rate"
        assert training.tracker_notes == [changed]

    def test_the_note_of_a_failure_says_what_failed(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """Of a store that cannot be written, it has the error of the system."""
        (tmp_path / "file").touch()
        uri = (tmp_path / "file" / "store").as_uri()
        training.start({"experiment": "tests", "tracking_uri": uri})
        training.step(1)
        training.finish(1)
        assert "NotADirectoryError" in training.notes[0]
        assert training.notes[0].endswith("training goes on")
