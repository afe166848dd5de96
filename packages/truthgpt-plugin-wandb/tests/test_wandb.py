"""Runs in Weights & Biases, read back from the file that it keeps on disk."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from wandb.proto import wandb_internal_pb2
from wandb.sdk.lib import wbauth

from truthgpt_plugin_wandb.plugin import WandbPlugin

if TYPE_CHECKING:
    from conftest import Training

SECTION = {"project": "tests", "mode": "offline"}


def chunks(data: bytes) -> Iterator[bytes]:
    """Yield what is in a file of wandb: after 7 bytes, a log as LevelDB writes it."""
    block, header, whole, place = 32768, 7, b"", 7
    while place + header <= len(data):
        if block - place % block < header:
            place += block - place % block
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + header])
        whole += data[place + header : place + header + length]
        place += header + length
        if kind in (1, 4):  # all of it, or the last part
            yield whole
            whole = b""


def records(directory: Path) -> list[list[Any]]:
    """Return what each run in an output directory has written, in the order of time."""
    files = sorted(directory.glob("wandb/offline-run-*/*.wandb"), key=os.path.getmtime)
    return [records_of(file) for file in files]


def records_of(file: Path) -> list[Any]:
    """Return what is in the file of a run, when wandb's own process has written all of it."""
    deadline = time.monotonic() + 60
    while True:
        run = []
        for chunk in chunks(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(chunk)
            run.append(record)
        if of_kind(run, "exit") or time.monotonic() > deadline:
            return run
        time.sleep(0.05)


def history(run: list[Any]) -> list[dict[str, Any]]:
    """Return the rows of a run."""
    return [
        {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for record in run
        if record.WhichOneof("record_type") == "history"
    ]


def of_kind(run: list[Any], kind: str) -> list[Any]:
    """Return the records of one kind."""
    return [getattr(each, kind) for each in run if each.WhichOneof("record_type") == kind]


def test_a_run_is_there_with_all_that_it_told(training: Training) -> None:
    """The configuration, metrics by step, evaluations, notes and the end are in the file."""
    training.start(SECTION)
    training.step(1, 3.0)
    training.step(2, 2.0)
    training.evaluate(2, 2.5)
    training.note(2, "spike", "The loss is high.")
    training.finish(2)
    (run,) = records(training.directory)
    (began, *_) = of_kind(run, "run")
    assert (began.project, began.display_name) == ("tests", "out")
    config = {each.key: json.loads(each.value_json) for each in began.config.update}
    assert config["training"]["learning_rate"] == 0.1
    first, second, evaluation, note = history(run)
    assert (first["step"], first["loss"]) == (1, 3.0)
    assert (second["step"], second["loss"]) == (2, 2.0)
    assert (evaluation["step"], evaluation["val_loss"]) == (2, 2.5)
    assert (note["step"], note["notes/spike"]) == (2, "The loss is high.")
    assert {"learning_rate", "grad_norm", "tokens_per_second", "epoch", "tokens"} <= set(first)
    (ended,) = of_kind(run, "exit")
    assert ended.exit_code == 0
    assert training.notes == ["The loss is high."]


def test_numbers_that_are_not_finite_arrive(training: Training) -> None:
    """A loss that is not a number keeps nothing else from arriving."""
    training.start(SECTION)
    training.step(1, float("nan"))
    training.step(2, float("inf"))
    training.step(3, 1.0)
    training.finish(3)
    (run,) = records(training.directory)
    assert [row["step"] for row in history(run)] == [1, 2, 3]


@pytest.mark.parametrize("ended", ["interrupted", "failed"])
def test_it_is_told_how_a_run_ended(ended: str, training: Training) -> None:
    """A run that did not finish ends with an exit code, and the reason in its summary."""
    training.start(SECTION)
    if ended == "failed":
        training.fail(0, "why")
    else:
        training.finish(0, interrupted="why")
    (run,) = records(training.directory)
    (end,) = of_kind(run, "exit")
    assert end.exit_code == 1
    summary = {
        item.key: json.loads(item.value_json)
        for each in of_kind(run, "summary")
        for item in each.update
    }
    assert (summary["outcome"], summary["reason"]) == (ended, "why")


def test_a_resumed_run_goes_on(training: Training) -> None:
    """After a resume the id is the same, and steps that were done again are there again."""
    training.start(SECTION)
    for step in (1, 2, 3):
        training.step(step)
    training.finish(3, interrupted="SIGTERM")
    training.start(SECTION, step=2)
    training.step(3)
    training.step(4)
    training.finish(4)
    before, after = records(training.directory)
    assert of_kind(before, "run")[0].run_id == of_kind(after, "run")[0].run_id
    assert [row["step"] for row in history(before)] == [1, 2, 3]
    assert [row["step"] for row in history(after)] == [3, 4]


def test_a_run_from_the_beginning_is_a_new_one(training: Training) -> None:
    """Another run in the same output directory is another one in Weights & Biases."""
    for _ in range(2):
        training.start(SECTION)
        training.finish(0)
    ids = {of_kind(run, "run")[0].run_id for run in records(training.directory)}
    assert len(ids) == 2


def test_who_is_not_logged_in_keeps_the_run_on_disk(training: Training) -> None:
    """Without credentials nobody is asked: a note says so, and the run can be sent later."""
    training.start({"project": "tests"})
    training.step(1)
    training.finish(1)
    (note,) = training.notes
    assert note.startswith("wandb: nobody is logged in, so the run is kept on disk; `wandb sync`")
    (run,) = records(training.directory)
    assert [row["step"] for row in history(run)] == [1]


def test_a_server_that_is_not_there_is_a_note(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server cannot be reached, a note says why, and the run can be sent later."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(WandbPlugin, "seconds_to_begin", 2.0)
    training.start({"project": "tests"})
    training.step(1)
    training.finish(1)
    # wandb keeps the key for the process, and other tests have none.
    wbauth.unauthenticate_session(update_settings=True)
    (note,) = training.notes
    assert note.startswith("wandb: ")
    assert "the run is kept on disk as run " in note
    (run,) = records(training.directory)
    assert [row["step"] for row in history(run)] == [1]


def test_random_numbers_of_training_stay(training: Training) -> None:
    """A tracked run draws the same random numbers as one that is not."""
    random.seed(0)
    before = random.getstate()
    training.start(SECTION)
    training.step(1)
    training.finish(1)
    assert random.getstate() == before
    assert records(training.directory)


def test_a_directory_that_takes_nothing_does_not_end_training(
    training: Training, tmp_path: Path
) -> None:
    """Where nothing can be written, training goes on to its end, with a note."""
    (tmp_path / "file").touch()
    training.directory = tmp_path / "file" / "out"
    training.start(SECTION)
    training.step(1)
    training.finish(1)
    assert training.notes


def test_without_a_section_nothing_is_imported() -> None:
    """Where the plugin is installed and not asked for, wandb is not even imported."""
    code = (
        "import sys; from truthgpt_core.plugin_system import PluginManager;"
        "from truthgpt_core.event_system import EventType, emit_event;"
        "PluginManager().activate('wandb');"
        "emit_event(EventType.TRAINING_STARTED, {'step': 0, 'config': {'wandb': None}});"
        "assert 'wandb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
