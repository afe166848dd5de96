"""The contract of trackers, as tests: what every subclass of `TrackerPlugin` has to do."""

from __future__ import annotations

import inspect
import json
import math
import os
import random
import subprocess
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

import pytest

from truthgpt_core.config import ConfigManager, plain_config
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.event_system import (
    EvaluationFinished,
    Event,
    EventType,
    TrainingFailed,
    TrainingFinished,
    TrainingNoted,
    TrainingStarted,
    TrainingStep,
    emit_event,
    on_event,
)
from truthgpt_core.plugin_system import PluginManager
from truthgpt_core.tracking import Outcome, TrackerPlugin, flattened

_NO_IMPORT = """\
import sys
from truthgpt_core.event_system import EventType, emit_event
from truthgpt_core.plugin_system import PluginManager

name, library = sys.argv[1:]
PluginManager().activate(name)
emit_event(EventType.TRAINING_STARTED, {"step": 0, "config": {name: None}})
emit_event(EventType.TRAINING_FINISHED, {"step": 0})
sys.exit(f"{library} is imported" if library in sys.modules else 0)
"""


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """One run, as the tracker's service has recorded it.

    Attributes:
        history: the points of each metric, as step and value, in the order in which they
            arrived. The names are those of `Row.numbers`, such as `loss` and `val_loss`.
        config: the configuration of the run, nested or with dotted names.
        notes: the texts of its notes; each contains the sentence of `Row.note`.
        outcome: how it ended; None if the service does not know yet.
        reason: why it did not finish; its text contains the reason of `TrackedRun.end`.
    """

    history: Mapping[str, Sequence[tuple[int, float]]]
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    outcome: Outcome | None = None
    reason: str = ""


class SimulatedTraining:
    """Emits the events of training runs, as the training service does.

    Attributes:
        directory: the output directory of the runs.
        notes: the notes of all runs, in order; those of the tracker begin with its name.

    Args:
        tracker: the name of the tracker's section.
        directory: the output directory of the runs.
    """

    def __init__(self, tracker: str, directory: Path) -> None:
        self.directory = directory
        self.notes: list[str] = []
        self._tracker = tracker

    @property
    def tracker_notes(self) -> list[str]:
        """The notes that the tracker made, without those of training."""
        return [note for note in self.notes if note.startswith(f"{self._tracker}: ")]

    def start(
        self,
        section: Mapping[str, Any] | None,
        *,
        step: int = 0,
        learning_rate: float = 0.1,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a run, or continue one.

        Args:
            section: the tracker's section of the configuration; None leaves the tracker off.
            step: steps that are done already: more than 0 resumes the run.
            learning_rate: a value of the configuration.
            config: the whole configuration, in place of one with this section.
        """
        if config is None:
            config = {
                "training": {"learning_rate": learning_rate, "optimizer_options": {}},
                "output_dir": str(self.directory),
                self._tracker: section,
            }
        emit_event(TrainingStarted(step=step, epoch=0, total_steps=4, config=config))

    def step(self, step: int, loss: float = 2.0) -> None:
        """Finish a step of the optimizer."""
        emit_event(
            TrainingStep(
                step=step,
                epoch=0,
                loss=loss,
                learning_rate=0.1,
                grad_norm=1.0,
                tokens=8,
                tokens_per_second=4.0,
                flops=1_000_000,
            )
        )

    def evaluate(self, step: int, loss: float) -> None:
        """Finish an evaluation."""
        emit_event(EvaluationFinished(step=step, metrics={"loss": loss}))

    def note(self, step: int, about: str, note: str) -> None:
        """Make a note of the run."""
        emit_event(TrainingNoted(step=step, about=about, note=note))

    def finish(self, step: int) -> None:
        """End the run as planned."""
        emit_event(TrainingFinished(step=step))

    def interrupt(self, step: int, reason: str) -> None:
        """End the run as a signal does."""
        emit_event(TrainingFinished(step=step, interrupted=reason))

    def fail(self, step: int, reason: str) -> None:
        """End the run with an error."""
        emit_event(TrainingFailed(step=step, reason=reason))


class TrackerContract(ABC):
    """The tests that every tracker passes. Subclass it in the tests of the plugin.

    The plugin has to be installed (`pip install -e .` is enough), since it is activated by its
    entry point, as in `truthgpt train`. Tests of the plugin's own may be methods of the
    subclass, and use the fixture `training` too. A subclass that overrides a test of the
    contract is an error.

        from truthgpt_core.testing import RecordedRun, TrackerContract

        class TestDiary(TrackerContract):
            plugin = DiaryPlugin
            library = "diary"

            def section(self, place):
                return {"file": str(place / "diary.db")}

            def unreachable(self, place):
                return {"file": "/dev/null/diary.db"}

            def recorded(self, section, directory):
                return [RecordedRun(...) for run in diary.read(section["file"])]

    Attributes:
        plugin: the class of the tracker.
        library: the top-level module of the tracker's library, which must not be imported
            before a run asks for it.
    """

    plugin: ClassVar[type[TrackerPlugin]]
    library: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        overridden = [
            name
            for name, test in vars(TrackerContract).items()
            if name.startswith("test_") and inspect.getattr_static(cls, name) is not test
        ]
        if overridden:
            raise TruthGPTError(
                f"{cls.__name__} overrides tests of TrackerContract: {', '.join(overridden)}",
                hint="Give your own tests other names.",
            )

    @abstractmethod
    def section(self, place: Path) -> dict[str, Any]:
        """Return the section of a configuration, for runs that nothing else is mixed with.

        Args:
            place: a directory that may be used for it; nothing need be there.
        """

    @abstractmethod
    def unreachable(self, place: Path) -> dict[str, Any]:
        """Return a section for a service that cannot be reached or used.

        Args:
            place: a directory that may be used for it; nothing need be there.
        """

    @abstractmethod
    def recorded(self, section: Mapping[str, Any], directory: Path) -> Sequence[RecordedRun]:
        """Read back the runs that the service has, the oldest first.

        A run that was resumed is one of them, with everything from before and after.

        Args:
            section: what `section` returned.
            directory: the output directory of the runs.
        """

    @pytest.fixture
    def training(self, tmp_path: Path) -> Iterator[SimulatedTraining]:
        """Runs that can be trained, with the plugin activated."""
        name = self._name()
        manager = PluginManager()
        manager.activate(name)
        simulated = SimulatedTraining(name, tmp_path / "out")

        def keep(event: Event) -> None:
            simulated.notes.append(event.data["note"])

        with on_event(EventType.TRAINING_NOTED, keep):
            yield simulated
        manager.deactivate(name)

    def test_it_is_found_by_its_entry_point(self) -> None:
        """An installed distribution declares the plugin under its own name."""
        (found,) = entry_points(group="truthgpt.plugins", name=self._name())
        assert found.load() is self.plugin

    def test_every_key_of_its_section_has_a_description(self) -> None:
        """`truthgpt config schema` and editors can explain each key."""
        fields = self.plugin.section.model_fields.items()
        assert [name for name, each in fields if not each.description] == []

    def test_steps_and_evaluations_arrive_in_order(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """All numbers are recorded by step, those of evaluations as `val_*`."""
        section = self.section(tmp_path / "place")
        training.start(section)
        training.step(1, 3.0)
        training.step(2, 2.0)
        training.evaluate(2, 2.5)
        training.step(3, 1.0)
        training.finish(3)
        (run,) = self.recorded(section, training.directory)
        assert list(run.history["loss"]) == [(1, 3.0), (2, 2.0), (3, 1.0)]
        assert list(run.history["val_loss"]) == [(2, 2.5)]
        for name in ("learning_rate", "grad_norm", "tokens_per_second", "epoch", "tokens", "flops"):
            assert [step for step, _ in run.history[name]] == [1, 2, 3], name
        assert training.tracker_notes == []

    def test_numbers_that_are_not_finite_keep_nothing_from_arriving(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """The other numbers of a step with such a loss are recorded, and so are later steps."""
        section = self.section(tmp_path / "place")
        training.start(section)
        training.step(1, math.nan)
        training.step(2, math.inf)
        training.step(3, 1.0)
        training.finish(3)
        (run,) = self.recorded(section, training.directory)
        assert [step for step, _ in run.history["grad_norm"]] == [1, 2, 3]
        assert run.history["loss"][-1] == (3, 1.0)
        assert training.tracker_notes == []

    def test_notes_arrive(self, training: SimulatedTraining, tmp_path: Path) -> None:
        """The notes of a run are recorded with their sentences, in order."""
        section = self.section(tmp_path / "place")
        training.start(section)
        training.step(1)
        training.note(1, "spike", "The loss is high.")
        training.note(1, "skip", "The step was left out.")
        training.finish(1)
        (run,) = self.recorded(section, training.directory)
        first, second = run.notes
        assert "The loss is high." in first
        assert "The step was left out." in second

    def test_a_configuration_file_switches_it_on(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """A file with the section is valid, and the whole configuration is recorded."""
        section = self.section(tmp_path / "place")
        file = tmp_path / "train.yaml"
        config = {"seed": 7, "output_dir": str(training.directory), self._name(): section}
        # JSON is YAML too.
        file.write_text(json.dumps(config), encoding="utf-8")
        loaded = ConfigManager.load_config(file, environment={})
        training.start(section, config=plain_config(loaded))
        training.step(1)
        training.finish(1)
        (run,) = self.recorded(section, training.directory)
        recorded = flattened(run.config)
        assert int(recorded["seed"]) == 7

    def test_without_its_section_it_does_nothing(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """Installing the plugin is not asking for it: the file has to have its section."""
        file = tmp_path / "train.yaml"
        file.write_text(json.dumps({"output_dir": str(training.directory)}), encoding="utf-8")
        plain = plain_config(ConfigManager.load_config(file, environment={}))
        assert plain[self._name()] is None
        training.start(None, config=plain)
        training.step(1)
        training.finish(1)
        assert training.notes == []
        assert not training.directory.exists()

    def test_without_its_section_its_library_is_not_imported(self) -> None:
        """Activating the plugin costs no import of the tracker's library."""
        done = subprocess.run(
            [sys.executable, "-c", _NO_IMPORT, self._name(), self.library],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("outcome", Outcome)
    def test_the_outcome_arrives(
        self, outcome: Outcome, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """How a run ended is recorded, with the reason if it did not finish."""
        section = self.section(tmp_path / "place")
        training.start(section)
        training.step(1)
        if outcome is Outcome.FINISHED:
            training.finish(1)
        elif outcome is Outcome.FAILED:
            training.fail(1, "out of memory")
        else:
            training.interrupt(1, "SIGTERM")
        (run,) = self.recorded(section, training.directory)
        assert run.outcome is outcome
        expected = {Outcome.FAILED: "out of memory", Outcome.INTERRUPTED: "SIGTERM"}
        assert expected.get(outcome, "") in run.reason

    def test_a_resumed_run_continues(self, training: SimulatedTraining, tmp_path: Path) -> None:
        """It stays one run; steps that are done again end with their new values."""
        section = self.section(tmp_path / "place")
        training.start(section)
        for step in (1, 2, 3):
            training.step(step, 3.0)
        training.interrupt(3, "SIGTERM")
        training.start(section, step=2)
        training.step(3, 1.0)
        training.step(4, 1.0)
        training.finish(4)
        (run,) = self.recorded(section, training.directory)
        assert dict(run.history["loss"]) == {1: 3.0, 2: 3.0, 3: 1.0, 4: 1.0}
        assert run.outcome is Outcome.FINISHED

    def test_a_resumed_run_that_the_service_has_lost_is_a_new_one(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """A key that the service does not know costs nothing but the earlier steps."""
        section = self.section(tmp_path / "place")
        training.directory.mkdir()
        key = json.dumps({"key": uuid.uuid4().hex})
        (training.directory / f"{self._name()}-run.json").write_text(key, encoding="utf-8")
        training.start(section, step=1)
        training.step(2)
        training.finish(2)
        (run,) = self.recorded(section, training.directory)
        assert [step for step, _ in run.history["loss"]] == [2]

    def test_a_run_from_the_beginning_is_a_new_one(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """Another run in the same output directory is not mixed with the one before."""
        section = self.section(tmp_path / "place")
        for loss in (3.0, 1.0):
            training.start(section)
            training.step(1, loss)
            training.finish(1)
        runs = self.recorded(section, training.directory)
        assert [list(run.history["loss"]) for run in runs] == [[(1, 3.0)], [(1, 1.0)]]

    def test_a_service_that_cannot_be_reached_is_one_note(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """Training goes on to its end, and the tracker says once what is wrong.

        At the end it may say in a second note how much has not arrived.
        """
        training.start(self.unreachable(tmp_path / "place"))
        for step in (1, 2, 3):
            training.step(step)
        training.finish(3)
        assert training.notes == training.tracker_notes
        lost = f"{self._name()}: 3 steps, evaluations and notes have not arrived"
        assert len([note for note in training.notes if note != lost]) == 1

    def test_an_output_directory_that_cannot_be_written_is_a_note(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """Training goes on to its end, and the tracker says what is wrong."""
        (tmp_path / "file").touch()
        training.directory = tmp_path / "file" / "out"
        training.start(self.section(tmp_path / "place"))
        training.step(1)
        training.finish(1)
        assert training.tracker_notes

    def test_the_random_numbers_of_training_stay(
        self, training: SimulatedTraining, tmp_path: Path
    ) -> None:
        """A tracked run draws the same random numbers as one that is not tracked."""
        section = self.section(tmp_path / "place")
        random.seed(0)
        before = random.getstate()
        training.start(section)
        training.step(1)
        training.finish(1)
        assert random.getstate() == before
        assert self.recorded(section, training.directory)

    def _name(self) -> str:
        return self.plugin().name
