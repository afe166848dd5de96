"""Runs in Weights & Biases, read back from the file that it keeps on disk."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2
from wandb.sdk.lib import wbauth

from truthgpt_core.testing import RecordedRun, SimulatedTraining, TrackerContract
from truthgpt_core.tracking import Outcome
from truthgpt_plugin_wandb.plugin import WandbPlugin


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


def of_kind(run: list[Any], kind: str) -> list[Any]:
    """Return the records of one kind."""
    return [getattr(each, kind) for each in run if each.WhichOneof("record_type") == kind]


def values(items: Any) -> dict[str, Any]:
    """Return what messages hold, by key."""
    return {each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in items}


def read(files: Sequence[list[Any]]) -> RecordedRun:
    """Read a run, of which there is a file for each time that it was resumed."""
    history: dict[str, list[tuple[int, float]]] = {}
    notes = []
    for row in (values(each.item) for file in files for each in of_kind(file, "history")):
        for name, value in row.items():
            if name.startswith("notes/"):
                notes.append(value)
            elif name not in ("step", "_step"):
                history.setdefault(name, []).append((row["step"], value))
    config = [values(each.config.update) for file in files for each in of_kind(file, "run")]
    summary: dict[str, Any] = {}
    for each in of_kind(files[-1], "summary"):
        summary |= values(each.update)
    ended = summary.get("outcome")
    outcome = None if ended is None else Outcome(ended)
    return RecordedRun(history, config[0], notes, outcome, summary.get("reason", ""))


class TestWandb(TrackerContract):
    """The contract of trackers, and what is particular to wandb."""

    plugin = WandbPlugin
    library = "wandb"

    def section(self, place: Path) -> dict[str, Any]:
        """Return one of a run that is kept on disk."""
        del place
        return {"project": "tests", "mode": "offline"}

    def unreachable(self, place: Path) -> dict[str, Any]:
        """Return one of a run that would be sent, where nobody is logged in."""
        del place
        return {"project": "tests"}

    def recorded(self, section: Mapping[str, Any], directory: Path) -> Sequence[RecordedRun]:
        """Read the files in an output directory, by the id that each begins with."""
        del section
        runs: dict[str, list[list[Any]]] = {}
        for file in records(directory):
            runs.setdefault(of_kind(file, "run")[0].run_id, []).append(file)
        return [read(files) for files in runs.values()]

    def test_a_run_has_its_project_and_the_name_of_its_output_directory(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """Where the section gives it no name."""
        training.start(self.section(tmp_path))
        training.finish(0)
        (run,) = records(training.directory)
        (began, *_) = of_kind(run, "run")
        assert (began.project, began.display_name) == ("tests", "out")

    @pytest.mark.parametrize(("failed", "code"), [(False, 0), (True, 1)])
    def test_a_run_ends_with_an_exit_code(
        self, failed: bool, code: int, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """Which is how wandb itself shows whether a run failed."""
        training.start(self.section(tmp_path))
        if failed:
            training.fail(0, "why")
        else:
            training.finish(0)
        (run,) = records(training.directory)
        (end,) = of_kind(run, "exit")
        assert end.exit_code == code

    def test_a_run_of_a_user_who_is_not_logged_in_is_kept_on_disk(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """Without credentials nobody is asked: a note says so, and the run can be sent later."""
        section = self.unreachable(tmp_path)
        training.start(section)
        training.step(1)
        training.finish(1)
        (note,) = training.notes
        kept = "wandb: not logged in, so the run is kept on disk; `wandb sync`"
        assert note.startswith(kept)
        (run,) = self.recorded(section, training.directory)
        assert [step for step, _ in run.history["loss"]] == [1]

    def test_a_run_whose_server_is_not_there_is_kept_on_disk(
        self, training: SimulatedTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the server cannot be reached, a note says why, and the run can be sent later."""
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setattr(WandbPlugin, "seconds_to_begin", 2.0)
        section = self.unreachable(tmp_path)
        training.start(section)
        training.step(1)
        training.finish(1)
        # wandb keeps the key for the process, and other tests have none.
        wbauth.unauthenticate_session(update_settings=True)
        (note,) = training.notes
        assert note.startswith("wandb: ")
        assert "the run is kept on disk as run " in note
        (run,) = self.recorded(section, training.directory)
        assert [step for step, _ in run.history["loss"]] == [1]
