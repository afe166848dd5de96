"""The tracker `mlflow`; MLflow itself is imported when a run begins that asks for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from pydantic import Field

from truthgpt_core.config import Section
from truthgpt_core.tracking import Outcome, Row, RunStart, TrackerPlugin, flattened

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# What servers take at most: parameters in a request, and characters in values.
_PARAMS_AT_ONCE = 100
_LONGEST_PARAM = 6000
_LONGEST_TAG = 5000
_STATUS = {
    Outcome.FINISHED: "FINISHED",
    Outcome.FAILED: "FAILED",
    Outcome.INTERRUPTED: "KILLED",
}


class MlflowSection(Section):
    """Pass the run on to MLflow."""

    experiment: str = Field(
        min_length=1, description="The experiment that the run belongs to; made if there is none."
    )
    tracking_uri: str | None = Field(
        default=None,
        min_length=1,
        description="The server's address; without, MLFLOW_TRACKING_URI or MLflow's own choice.",
    )
    name: str | None = Field(
        default=None, min_length=1, description="The run's name; without, the output directory's."
    )


class MlflowPlugin(TrackerPlugin):
    """Passes training runs on to MLflow, if the configuration has its section."""

    section = MlflowSection
    # A request has 1000 numbers at most, and a row has 6 or so.
    rows_at_once = 100

    @property
    def name(self) -> str:
        """Its name."""
        return "mlflow"

    @property
    def version(self) -> str:
        """The version of its distribution."""
        return version("truthgpt-plugin-mlflow")

    def open(self, settings: MlflowSection, start: RunStart) -> MlflowRun:
        """Open a run, or go on with one.

        Args:
            settings: the section.
            start: what is known of the run.

        Raises:
            mlflow.exceptions.MlflowException: the server cannot be reached, or refuses.
        """
        from mlflow import MlflowClient
        from mlflow.entities import Param

        client = MlflowClient(settings.tracking_uri)
        run = _found(client, start.key)
        if run is None:
            # A name is always given: MLflow would make one with the random numbers of training.
            name = settings.name or start.directory.resolve().name
            run = client.create_run(_experiment(client, settings.experiment), run_name=name)
        else:
            client.update_run(run.info.run_id, status="RUNNING")
        values = {_name(k): str(v)[:_LONGEST_PARAM] for k, v in flattened(start.config).items()}
        logged = run.data.params
        changed = [name for name in values if logged.get(name, values[name]) != values[name]]
        if changed:
            start.note(f"parameters keep their first values there: {', '.join(changed)}")
        new = [Param(name, value) for name, value in values.items() if name not in logged]
        for first in range(0, len(new), _PARAMS_AT_ONCE):
            client.log_batch(run.info.run_id, params=new[first : first + _PARAMS_AT_ONCE])
        return MlflowRun(client, run)


class MlflowRun:
    """A run of MLflow.

    Args:
        client: what it is reached with.
        run: it, opened.
    """

    def __init__(self, client: MlflowClient, run: Run) -> None:
        self._client = client
        self._id: str = run.info.run_id
        self._notes: str = run.data.tags.get("notes", "")

    @property
    def key(self) -> str:
        """Its id."""
        return self._id

    def log(self, rows: Sequence[Row]) -> None:
        """Log rows in one request; the newest notes are in the tag `notes`."""
        from mlflow.entities import Metric, RunTag

        metrics = [
            Metric(_name(name), value, int(row.time * 1000), row.step)
            for row in rows
            for name, value in row.numbers.items()
        ]
        lines = [f"step {row.step}, {row.about}: {row.note}" for row in rows if row.note]
        notes = "\n".join([*self._notes.splitlines(), *lines])[-_LONGEST_TAG:]
        tags = [RunTag("notes", notes)] if lines else []
        self._client.log_batch(self._id, metrics=metrics, tags=tags)
        self._notes = notes

    def end(self, outcome: Outcome, reason: str) -> None:
        """Set its status, and why."""
        if reason:
            self._client.set_tag(self._id, "reason", reason[:_LONGEST_TAG])
        self._client.set_terminated(self._id, _STATUS[outcome])


def _found(client: MlflowClient, key: str | None) -> Run | None:
    from mlflow.exceptions import MlflowException

    if key is None:
        return None
    try:
        return client.get_run(key)
    except MlflowException as error:
        # It was removed, or is on another server; anything else is tried again.
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _experiment(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    made: str = client.create_experiment(name) if found is None else found.experiment_id
    return made


def _name(name: str) -> str:
    """Return a name with nothing in it that MLflow refuses."""
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)[:250]
