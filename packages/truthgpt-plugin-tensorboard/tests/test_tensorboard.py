"""Runs in TensorBoard, read back as TensorBoard itself reads them."""

from __future__ import annotations

import json
import resource
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from truthgpt_core.event_system import Event, EventType, on_event
from truthgpt_core.testing import RecordedRun, SimulatedTraining, TrackerContract
from truthgpt_core.tracking import Outcome
from truthgpt_plugin_tensorboard.plugin import TensorBoardPlugin


class TestTensorBoard(TrackerContract):
    """The contract of trackers, and what is particular to TensorBoard."""

    plugin = TensorBoardPlugin
    library = "tensorboard"

    def section(self, place: Path) -> dict[str, Any]:
        """Return one with a directory that nothing else is in."""
        return {"log_dir": str(place / "logs")}

    def unreachable(self, place: Path) -> dict[str, Any]:
        """Return one with a directory that cannot be made."""
        place.touch()
        return {"log_dir": str(place / "logs")}

    def recorded(self, section: Mapping[str, Any], directory: Path) -> Sequence[RecordedRun]:
        """Read the directories of runs."""
        del directory
        return [self.read(each) for each in sorted(Path(section["log_dir"]).iterdir())]

    def read(self, directory: Path) -> RecordedRun:
        """Read a run, with its metrics by the names that the core gives them."""
        scalars, texts = shown(directory)
        history = {
            tag.replace("train/", "").replace("validation/", "val_"): points
            for tag, points in scalars.items()
        }
        notes = sorted(
            point for tag, points in texts.items() if tag.startswith("notes/") for point in points
        )
        config = texts["config"][-1][1].removeprefix("```json\n").removesuffix("\n```")
        outcome, _, reason = texts.get("outcome", [(0.0, "")])[-1][1].partition(": ")
        return RecordedRun(
            history,
            json.loads(config),
            [text for _, text in notes],
            Outcome(outcome) if outcome else None,
            reason,
        )

    def test_numbers_are_grouped(self, training: SimulatedTraining, tmp_path: Path) -> None:
        """Those of steps are under `train`, those of evaluations under `validation`."""
        section = self.section(tmp_path)
        training.start(section)
        training.step(1)
        training.evaluate(1, 2.5)
        training.finish(1)
        scalars, _ = shown(Path(section["log_dir"], "out"))
        assert {tag for tag in scalars if "loss" in tag} == {"train/loss", "validation/loss"}

    def test_runs_are_named_after_the_output_directory(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """Where the section names none; a name that is taken gets a number."""
        section = self.section(tmp_path)
        for name in (None, None, "mine"):
            training.start({**section, "name": name})
            training.finish(0)
        assert {each.name for each in Path(section["log_dir"]).iterdir()} == {
            "out",
            "out-2",
            "mine",
        }

    def test_steps_that_are_done_again_are_shown_once(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """A run that was killed after its checkpoint draws one line when it is resumed."""
        section = self.section(tmp_path)
        training.start(section)
        for step in range(1, 6):
            training.step(step, 3.0)
            training.note(step, "skip", f"Note {step}.")
        training.interrupt(5, "SIGTERM")
        (file,) = Path(section["log_dir"]).glob("*/events*")
        # As a kill leaves it: the last record is not whole.
        file.write_bytes(file.read_bytes()[:-3])
        training.start(section, step=2)
        training.step(3, 1.0)
        training.finish(3)
        (run,) = self.recorded(section, training.directory)
        assert run.history["loss"] == [(1, 3.0), (2, 3.0), (3, 1.0)]
        assert run.notes == ["Note 1.", "Note 2."]

    def test_a_key_that_leads_out_of_the_directory_is_not_followed(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """A resumed run is written below `log_dir`, whatever the file with its key says."""
        section = self.section(tmp_path)
        outside = tmp_path / "outside"
        outside.mkdir()
        training.directory.mkdir()
        for key in ("../outside", str(outside), "..", ""):
            text = json.dumps({"key": key})
            (training.directory / "tensorboard-run.json").write_text(text, encoding="utf-8")
            training.start(section, step=1)
            training.finish(1)
        assert len(self.recorded(section, training.directory)) == 4
        assert not any(outside.iterdir())

    def test_a_disk_that_is_full_for_a_while_loses_and_repeats_nothing(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """Rows that could not be written are written later, once, and can be read."""
        noted = threading.Event()

        def hear(_event: Event) -> None:
            noted.set()

        section = self.section(tmp_path)
        training.start(section)
        training.step(1)
        wait_for(Path(section["log_dir"]), b"train/loss")
        with on_event(EventType.TRAINING_NOTED, hear):
            with largest_file(100):
                step = 1
                while not noted.wait(0.05):
                    step += 1
                    training.step(step)
            training.finish(step)
        (run,) = self.recorded(section, training.directory)
        assert [each for each, _ in run.history["loss"]] == list(range(1, step + 1))
        (note,) = training.notes
        assert note.startswith("tensorboard: OSError: ")


def shown(
    directory: Path,
) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[float, str]]]]:
    """Return what TensorBoard shows of a run: scalars with steps, and texts with times."""
    read = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    read.Reload()
    scalars, texts = {}, {}
    for tag in read.Tags()["tensors"]:
        points = [(each, make_ndarray(each.tensor_proto).item()) for each in read.Tensors(tag)]
        if read.SummaryMetadata(tag).plugin_data.plugin_name == "text":
            texts[tag] = [(each.wall_time, value.decode()) for each, value in points]
        else:
            scalars[tag] = [(each.step, value) for each, value in points]
    return scalars, texts


def wait_for(directory: Path, text: bytes) -> None:
    """Wait until a file in a directory holds a text."""
    ticks = threading.Event()
    for _ in range(600):
        if any(text in each.read_bytes() for each in directory.rglob("events*")):
            return
        ticks.wait(0.05)
    raise AssertionError(f"{text!r} did not arrive")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let files of this process grow no larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Or half of a module's would be left.
    writes_none, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = writes_none
