"""Runs in trackio, read back from the database that it keeps on disk."""

from __future__ import annotations

import random
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest
import trackio
from trackio.sqlite_storage import SQLiteStorage

if TYPE_CHECKING:
    from conftest import Training


@pytest.fixture
def section() -> dict[str, str]:
    """The section of a configuration, with a project that nobody else has."""
    return {"project": f"tests-{uuid.uuid4().hex}"}


def only_run(section: dict[str, str]) -> str:
    """Return the name of the only run of the project."""
    (name,) = SQLiteStorage.get_runs(section["project"])
    return str(name)


def logs(section: dict[str, str]) -> list[dict[str, Any]]:
    """Return what the only run of the project has logged."""
    return list(SQLiteStorage.get_logs(section["project"], only_run(section)))


def alerts(section: dict[str, str]) -> list[tuple[str, str | None, str]]:
    """Return titles, texts and levels of the alerts of the project."""
    found = SQLiteStorage.get_alerts(section["project"])
    return [(each["title"], each["text"], each["level"]) for each in found]


def test_a_run_is_there_with_all_that_it_told(training: Training, section: dict[str, str]) -> None:
    """The configuration, metrics by step, evaluations, notes and the end are in trackio."""
    training.start(section)
    training.step(1, 3.0)
    training.step(2, 2.0)
    training.evaluate(2, 2.5)
    training.note(2, "spike", "The loss is high.")
    training.finish(2)
    assert only_run(section).startswith("out-")
    first, second, evaluation = logs(section)
    assert (first["step"], first["loss"]) == (1, 3.0)
    assert (second["step"], second["loss"]) == (2, 2.0)
    assert (evaluation["step"], evaluation["val_loss"]) == (2, 2.5)
    assert {"learning_rate", "grad_norm", "tokens_per_second", "epoch", "tokens"} <= set(first)
    config = SQLiteStorage.get_run_config(section["project"], only_run(section))
    assert config["training"]["learning_rate"] == 0.1
    assert ("spike", "The loss is high.", "warn") in alerts(section)
    assert ("finished", None, "info") in alerts(section)
    assert training.notes == ["The loss is high."]


def test_numbers_that_are_not_finite_arrive(training: Training, section: dict[str, str]) -> None:
    """A loss that is not a number keeps nothing else from arriving."""
    training.start(section)
    training.step(1, float("nan"))
    training.step(2, float("inf"))
    training.step(3, 1.0)
    training.finish(3)
    assert [each["step"] for each in logs(section)] == [1, 2, 3]


@pytest.mark.parametrize("ended", ["interrupted", "failed"])
def test_it_is_told_how_a_run_ended(
    ended: str, training: Training, section: dict[str, str]
) -> None:
    """A run that was interrupted or failed has an alert that says so, with the reason."""
    training.start(section)
    training.step(1)
    if ended == "failed":
        training.fail(1, "why")
    else:
        training.finish(1, interrupted="why")
    assert (ended, "why", "error" if ended == "failed" else "info") in alerts(section)


def test_a_resumed_run_goes_on(training: Training, section: dict[str, str]) -> None:
    """After a resume there is one run, with steps that were done again."""
    training.start(section)
    for step in (1, 2, 3):
        training.step(step)
    training.finish(3, interrupted="SIGTERM")
    training.start(section, step=2)
    training.step(3)
    training.step(4)
    training.finish(4)
    assert sorted(each["step"] for each in logs(section)) == [1, 2, 3, 3, 4]


def test_a_run_from_the_beginning_is_a_new_one(training: Training, section: dict[str, str]) -> None:
    """Another run in the same output directory is another one in trackio."""
    for _ in range(2):
        training.start(section)
        training.step(1)
        training.finish(1)
    assert len(SQLiteStorage.get_runs(section["project"])) == 2


def test_what_trackio_refuses_is_a_note(training: Training) -> None:
    """A server without credentials is a note, and training goes on."""
    training.start({"project": "tests", "server_url": "http://127.0.0.1:9"})
    training.step(1)
    training.finish(1)
    first, second = training.notes
    assert first.startswith("trackio: ValueError: ")
    assert "write token" in first
    assert second == "trackio: 1 steps, evaluations and notes have not arrived"


def run_alone(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own: trackio reads the environment when it is imported."""
    import os

    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def test_a_disk_that_takes_nothing_does_not_end_training(tmp_path_factory: Any) -> None:
    """Where trackio can write nothing, training goes on to its end."""
    directory = tmp_path_factory.mktemp("full")
    (directory / "file").touch()
    code = (
        "from truthgpt_core.plugin_system import PluginManager\n"
        "from truthgpt_core.event_system import EventType, emit_event\n"
        "PluginManager().activate('trackio')\n"
        f"config = {{'trackio': {{'project': 'p'}}, 'output_dir': {str(directory)!r}}}\n"
        "emit_event(EventType.TRAINING_STARTED, {'step': 0, 'config': config})\n"
        "emit_event(EventType.TRAINING_STEP, {'step': 1, 'loss': 2.0})\n"
        "emit_event(EventType.TRAINING_FINISHED, {'step': 1})\n"
        "print('trained')\n"
    )
    done = run_alone(code, TRACKIO_DIR=str(directory / "file" / "trackio"))
    assert done.stdout.endswith("trained\n")


def test_random_numbers_of_training_stay(training: Training, section: dict[str, str]) -> None:
    """A tracked run draws the same random numbers as one that is not."""
    random.seed(0)
    before = random.getstate()
    training.start(section)
    training.step(1)
    training.finish(1)
    assert random.getstate() == before
    assert logs(section)


def test_without_a_section_nothing_is_imported() -> None:
    """Where the plugin is installed and not asked for, trackio is not even imported."""
    run_alone(
        "import sys; from truthgpt_core.plugin_system import PluginManager;"
        "from truthgpt_core.event_system import EventType, emit_event;"
        "PluginManager().activate('trackio');"
        "emit_event(EventType.TRAINING_STARTED, {'step': 0, 'config': {'trackio': None}});"
        "assert 'trackio' not in sys.modules"
    )
    assert trackio.__version__
