"""Trackers: what they are handed, when, and that nothing they do reaches the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from truthgpt_core.config import ConfigManager, Section, plain_config
from truthgpt_core.event_system import Event, EventType, emit_event, on_event
from truthgpt_core.plugin_system import PluginManager
from truthgpt_core.tracking import Outcome, Row, RunStart, TrackerPlugin, flattened

FILE = "seed: 1\n"


class DiarySection(Section):
    """Keep a diary."""

    place: str


class Diary(TrackerPlugin):
    """Keeps what it is handed in lists; `fails` says when it raises.

    Attributes:
        opened: starts of the runs that it opened.
        rows: all rows that it took.
        ended: how runs ended, and why.
        fails: called before anything is done, with the name of what is.
    """

    section = DiarySection

    def __init__(self, fails: Callable[[str], None] = lambda what: None) -> None:
        super().__init__()
        self.fails = fails
        self.opened: list[RunStart] = []
        self.rows: list[Row] = []
        self.ended: list[tuple[Outcome, str]] = []

    @property
    def name(self) -> str:
        return "diary"

    @property
    def version(self) -> str:
        return "1.0"

    @property
    def key(self) -> str:
        return "first"

    def open(self, settings: DiarySection, start: RunStart) -> Diary:
        self.fails("open")
        assert settings.place == "here"
        self.opened.append(start)
        return self

    def log(self, rows: Sequence[Row]) -> None:
        self.fails("log")
        self.rows += rows

    def end(self, outcome: Outcome, reason: str) -> None:
        self.fails("end")
        self.ended.append((outcome, reason))


def activate(diary: Diary) -> PluginManager:
    """Return a manager in which the diary is active."""
    manager = PluginManager()
    manager.register_plugin(diary)
    return manager


@pytest.fixture
def diary() -> Iterator[Diary]:
    """One that is active."""
    made = Diary()
    manager = activate(made)
    yield made
    manager.deactivate("diary")


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """The notes of runs."""
    told: list[str] = []

    def note(event: Event) -> None:
        told.append(event.data["note"])

    with on_event(EventType.TRAINING_NOTED, note):
        yield told


def config(directory: Path, **sections: Any) -> dict[str, Any]:
    """Return a configuration that has the diary's section."""
    return {"diary": {"place": "here"}, "output_dir": str(directory), **sections}


def start(directory: Path, *, step: int = 0, **sections: Any) -> None:
    """Begin a run."""
    emit_event(EventType.TRAINING_STARTED, {"step": step, "config": config(directory, **sections)})


def take_step(step: int) -> None:
    """Tell of a step."""
    data = {"step": step, "epoch": 0, "loss": 2.0 / step, "learning_rate": 0.1, "grad_norm": 1.0}
    emit_event(
        EventType.TRAINING_STEP,
        {**data, "lr": 0.1, "tokens": 8, "tokens_per_second": 4.0, "flops": 16},
    )


def finish(step: int = 0) -> None:
    """End the run well."""
    emit_event(EventType.TRAINING_FINISHED, {"step": step})


def test_steps_evaluations_and_notes_arrive_in_order(diary: Diary, tmp_path: Path) -> None:
    """A tracker gets the numbers of each step, of evaluations as val_*, and notes."""
    start(tmp_path)
    take_step(1)
    emit_event(EventType.EVALUATION_FINISHED, {"step": 1, "metrics": {"loss": 3.0}})
    emit_event(EventType.TRAINING_NOTED, {"step": 1, "about": "spike", "note": "High."})
    take_step(2)
    finish(2)
    assert [row.step for row in diary.rows] == [1, 1, 1, 2]
    step, evaluation, note, _ = diary.rows
    assert step.numbers == {
        "epoch": 0,
        "loss": 2.0,
        "learning_rate": 0.1,
        "grad_norm": 1.0,
        "tokens": 8,
        "tokens_per_second": 4.0,
        "flops": 16,
    }
    assert evaluation.numbers == {"val_loss": 3.0}
    assert (note.about, note.note, note.numbers) == ("spike", "High.", {})
    assert diary.ended == [(Outcome.FINISHED, "")]


@pytest.mark.parametrize(
    ("kind", "data", "ended"),
    [
        (EventType.TRAINING_FAILED, {"reason": "no"}, (Outcome.FAILED, "no")),
        (EventType.TRAINING_FINISHED, {"interrupted": "SIGTERM"}, (Outcome.INTERRUPTED, "SIGTERM")),
    ],
)
def test_it_learns_how_a_run_ended(
    kind: EventType, data: dict[str, str], ended: Any, diary: Diary, tmp_path: Path
) -> None:
    """A run that failed or was interrupted ends so for the tracker, with the reason."""
    start(tmp_path)
    emit_event(kind, {"step": 0, **data})
    assert diary.ended == [ended]


def test_without_its_section_it_does_nothing(diary: Diary, tmp_path: Path) -> None:
    """A tracker that is installed, and not asked for, opens no run."""
    path = tmp_path / "train.yaml"
    path.write_text(FILE, encoding="utf-8")
    loaded = ConfigManager.load_config(path, environment={})
    assert loaded.diary is None
    emit_event(EventType.TRAINING_STARTED, {"step": 0, "config": plain_config(loaded)})
    take_step(1)
    finish(1)
    assert not diary.opened
    assert not diary.rows


def test_a_file_with_its_section_switches_it_on(diary: Diary, tmp_path: Path) -> None:
    """The configuration of a file, as plain JSON, opens a run that is told all of it."""
    path = tmp_path / "train.yaml"
    path.write_text(f"{FILE}diary: {{place: here}}\noutput_dir: {tmp_path}\n", encoding="utf-8")
    plain = plain_config(ConfigManager.load_config(path, environment={}))
    assert json.loads(json.dumps(plain)) == plain
    emit_event(EventType.TRAINING_STARTED, {"step": 0, "config": plain})
    finish()
    (opened,) = diary.opened
    assert opened.config == plain
    assert opened.directory == tmp_path


def test_a_resumed_run_goes_on(diary: Diary, tmp_path: Path) -> None:
    """A run that begins after its first step is given its key; one from the beginning is not."""
    for step in (0, 5, 0):
        start(tmp_path / "new", step=step)
        finish(step)
    assert [each.key for each in diary.opened] == [None, "first", None]


@pytest.mark.parametrize("what", ["open", "log", "end"])
@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_what_it_raises_is_one_note(
    what: str, kind: type[BaseException], diary: Diary, notes: list[str], tmp_path: Path
) -> None:
    """A tracker that always fails costs a note, and another of how much was lost."""

    def fails(doing: str) -> None:
        if doing == what:
            raise kind("no\nway")

    diary.fails = fails
    start(tmp_path)
    for step in range(1, 4):
        take_step(step)
    finish(3)
    assert notes[0] == f"diary: {kind.__name__}: no way; training goes on"
    lost = ["diary: 3 steps, evaluations and notes have not arrived"]
    assert notes[1:] == (lost if what != "end" else [])


def test_what_failed_is_tried_again(diary: Diary, notes: list[str], tmp_path: Path) -> None:
    """Rows that a tracker refused come again, once each, when it is back."""
    refused = threading.Event()

    def fails(doing: str) -> None:
        if doing == "log" and not refused.is_set():
            refused.set()
            raise ConnectionError("away")

    diary.fails = fails
    start(tmp_path)
    take_step(1)
    assert refused.wait(60)
    take_step(2)
    finish(2)
    assert [row.step for row in diary.rows] == [1, 2]
    assert notes == ["diary: ConnectionError: away; training goes on"]


def test_one_that_hangs_holds_nothing_up(diary: Diary, notes: list[str], tmp_path: Path) -> None:
    """No step waits for a tracker, and the end of the run only so long."""
    released = threading.Event()
    diary.fails = lambda doing: hold(released)
    diary.seconds_to_end = 0.1
    start(tmp_path)
    for step in range(1, 20_000):
        take_step(step)
    finish(20_000)
    released.set()
    assert not diary.rows
    assert notes == ["diary: not everything has arrived after 0.1 seconds"]


def hold(event: threading.Event) -> None:
    """Wait until a test is over with its checks."""
    assert event.wait(60)


def test_a_full_disk_costs_the_key_alone(diary: Diary, notes: list[str], tmp_path: Path) -> None:
    """If the key of a run cannot be kept, a note says so and the run is tracked all the same."""
    (tmp_path / "file").touch()
    start(tmp_path / "file" / "out")
    take_step(1)
    finish(1)
    assert len(diary.rows) == 1
    (note,) = notes
    assert "a resumed run will be a new one there" in note


def test_a_note_of_the_tracker_itself_is_told(
    diary: Diary, notes: list[str], tmp_path: Path
) -> None:
    """What a tracker has to say of itself becomes a note of the run."""
    diary.fails = lambda doing: diary.opened[0].note("hm") if doing == "end" else None
    start(tmp_path)
    finish()
    assert notes == ["diary: hm"]


def test_notes_are_told_by_the_thread_that_trains(diary: Diary, tmp_path: Path) -> None:
    """Those who hear a tracker's note hear it in the thread that emits the other events."""
    threads: list[threading.Thread] = []

    def fails(doing: str) -> None:
        raise ValueError

    def hear(_event: Event) -> None:
        threads.append(threading.current_thread())

    diary.fails = fails
    with on_event(EventType.TRAINING_NOTED, hear):
        start(tmp_path)
        take_step(1)
        finish(1)
    assert set(threads) == {threading.current_thread()}


def test_a_run_that_was_never_ended_ends_with_the_next(diary: Diary, tmp_path: Path) -> None:
    """Another run, and deactivating the plugin, end the one under way as interrupted."""
    start(tmp_path)
    start(tmp_path)
    assert diary.ended == [(Outcome.INTERRUPTED, "another run began")]
    diary.shutdown()
    assert diary.ended[1] == (Outcome.INTERRUPTED, "the tracker was deactivated")


def test_a_configuration_is_flattened() -> None:
    """Sections become dotted names; lists stay as they are."""
    assert flattened({"a": {"b": {"c": 1}, "d": [2]}, "e": None, "f": {}}) == {
        "a.b.c": 1,
        "a.d": [2],
        "e": None,
    }
