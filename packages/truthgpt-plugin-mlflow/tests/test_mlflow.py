"""Runs in MLflow, read back with its own client from a store in a directory."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

if TYPE_CHECKING:
    from conftest import Training


@pytest.fixture
def section(tmp_path: Path) -> dict[str, str]:
    """The section of a configuration."""
    return {"experiment": "tests", "tracking_uri": (tmp_path / "store").as_uri()}


def runs(section: dict[str, str]) -> list[Any]:
    """Return all runs of the experiment."""
    client = MlflowClient(section["tracking_uri"])
    experiment = client.get_experiment_by_name(section["experiment"])
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def history(section: dict[str, str], metric: str) -> list[tuple[int, float]]:
    """Return the steps and values of a metric of the only run."""
    (run,) = runs(section)
    client = MlflowClient(section["tracking_uri"])
    return [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, metric)]


def test_a_run_is_there_with_all_that_it_told(training: Training, section: dict[str, str]) -> None:
    """Parameters, metrics by step, evaluations, notes and the end of a run are in MLflow."""
    training.start(section)
    training.step(1, 3.0)
    training.step(2, 2.0)
    training.evaluate(2, 2.5)
    training.note(2, "spike", "The loss is high.")
    training.finish(2)
    (run,) = runs(section)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "out"
    assert run.data.params["training.learning_rate"] == "0.1"
    assert run.data.tags["notes"] == "step 2, spike: The loss is high."
    assert history(section, "loss") == [(1, 3.0), (2, 2.0)]
    assert history(section, "val_loss") == [(2, 2.5)]
    for name in ("learning_rate", "grad_norm", "tokens_per_second", "epoch", "tokens"):
        assert [step for step, _ in history(section, name)] == [1, 2]
    assert training.notes == ["The loss is high."]


def test_numbers_that_are_not_finite_arrive(training: Training, section: dict[str, str]) -> None:
    """A loss that is not a number keeps nothing else from arriving."""
    training.start(section)
    training.step(1, float("nan"))
    training.step(2, float("inf"))
    training.step(3, 1.0)
    training.finish(3)
    assert [step for step, _ in history(section, "loss")] == [1, 2, 3]
    assert not training.notes


@pytest.mark.parametrize(("ended", "status"), [("interrupted", "KILLED"), ("failed", "FAILED")])
def test_it_is_told_how_a_run_ended(
    ended: str, status: str, training: Training, section: dict[str, str]
) -> None:
    """A run that was interrupted is killed, one with an error failed, and the reason is a tag."""
    training.start(section)
    if ended == "failed":
        training.fail(0, "why")
    else:
        training.finish(0, interrupted="why")
    (run,) = runs(section)
    assert run.info.status == status
    assert run.data.tags["reason"] == "why"


def test_a_resumed_run_goes_on(training: Training, section: dict[str, str]) -> None:
    """After a resume there is one run, with steps that were done again; the notes are added up."""
    training.start(section)
    for step in (1, 2, 3):
        training.step(step)
    training.note(3, "skip", "First.")
    training.finish(3, interrupted="SIGTERM")
    training.start(section, step=2, rate=0.2)
    training.step(3)
    training.note(3, "skip", "Second.")
    training.step(4)
    training.finish(4)
    assert sorted(step for step, _ in history(section, "loss")) == [1, 2, 3, 3, 4]
    (run,) = runs(section)
    assert run.info.status == "FINISHED"
    assert "First.\n" in run.data.tags["notes"]
    assert run.data.tags["notes"].endswith("Second.")
    changed = "mlflow: parameters keep their first values there: training.learning_rate"
    assert changed in training.notes


def test_a_run_from_the_beginning_is_a_new_one(training: Training, section: dict[str, str]) -> None:
    """Another run in the same output directory is another one in MLflow."""
    for _ in range(2):
        training.start(section)
        training.finish(0)
    assert len(runs(section)) == 2


def test_a_resumed_run_that_was_removed_is_a_new_one(
    training: Training, section: dict[str, str], tmp_path: Path
) -> None:
    """A run that goes on where MLflow does not know it is a new one there."""
    training.start(section)
    training.finish(1)
    section["tracking_uri"] = (tmp_path / "elsewhere").as_uri()
    training.start(section, step=1)
    training.step(2)
    training.finish(2)
    assert history(section, "loss") == [(2, 2.0)]


def test_a_server_that_is_not_there_is_a_note(training: Training) -> None:
    """Without a server training goes on; a note says why, and another what was lost."""
    training.start({"experiment": "tests", "tracking_uri": "http://127.0.0.1:9"})
    training.step(1)
    training.finish(1)
    first, second = training.notes
    assert first.startswith("mlflow: MlflowException: ")
    assert first.endswith("training goes on")
    assert second == "mlflow: 1 steps, evaluations and notes have not arrived"


def test_a_store_that_cannot_be_written_is_a_note(training: Training, tmp_path: Path) -> None:
    """A place where nothing can be written costs notes and no more."""
    (tmp_path / "file").touch()
    uri = (tmp_path / "file" / "store").as_uri()
    training.start({"experiment": "tests", "tracking_uri": uri})
    training.step(1)
    training.finish(1)
    assert "NotADirectoryError" in training.notes[0]


def test_random_numbers_of_training_stay(training: Training, section: dict[str, str]) -> None:
    """A tracked run of an experiment that exists draws the same random numbers as any other."""
    # Making an experiment draws one of Python's now and then.
    MlflowClient(section["tracking_uri"]).create_experiment(section["experiment"])
    random.seed(0)
    before = random.getstate()
    training.start(section)
    training.step(1)
    training.finish(1)
    assert random.getstate() == before
    assert history(section, "loss")


def test_without_a_section_nothing_is_imported() -> None:
    """Where the plugin is installed and not asked for, MLflow is not even imported."""
    code = (
        "import sys; from truthgpt_core.plugin_system import PluginManager;"
        "from truthgpt_core.event_system import EventType, emit_event;"
        "PluginManager().activate('mlflow');"
        "emit_event(EventType.TRAINING_STARTED, {'step': 0, 'config': {'mlflow': None}});"
        "assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
