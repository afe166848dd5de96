"""What trackers hear of a run that the training service runs."""

from __future__ import annotations

import json
from contextlib import contextmanager

import torch

from truthgpt_core.config import Section
from truthgpt_core.event_system import EventType
from truthgpt_core.tracking import Outcome, TrackerPlugin
from truthgpt_services import TrainingService


class DiarySection(Section):
    """Keep a diary."""

    place: str


class Diary(TrackerPlugin):
    """A tracker that keeps what it is handed."""

    section = DiarySection
    rows_at_once = 100

    def __init__(self, broken=False):
        super().__init__()
        self.broken, self.rows, self.starts, self.ended = broken, [], [], []

    name = "diary"
    version = "1.0"
    key = "one"

    def open(self, settings, start):
        if self.broken:
            raise ConnectionError("away")
        self.starts.append(start)
        return self

    def log(self, rows):
        self.rows += rows

    def end(self, outcome, reason):
        self.ended.append(outcome)


@contextmanager
def configured(runs, out, diary):
    """Configure a service with a tracker, and with a configuration that has its section."""
    plugins = runs.new_plugins(diary)
    service = TrainingService(plugins)
    model = runs.toy_model()
    service.configure(
        config={"precision": "float32", "epochs": 1},
        model=model,
        train_loader=runs.ToyLoader(),
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2),
        device="cpu",
        output_dir=out,
        whole_config={"diary": {"place": "here"}, "output_dir": "elsewhere"},
    )
    yield service
    plugins.deactivate("diary")


def run(runs, out, diary):
    """Train with a tracker; return the service."""
    with configured(runs, out, diary) as service:
        service.run()
    return service


def test_every_step_arrives(runs, tmp_path) -> None:
    """A tracker has a row of each step, and the configuration of the run as plain JSON."""
    diary = Diary()
    service = run(runs, tmp_path / "out", diary)
    steps = [row.step for row in diary.rows if "loss" in row.numbers]
    assert steps == list(range(1, service.progress.step + 1))
    assert diary.ended == [Outcome.FINISHED]
    (start,) = diary.starts
    assert start.directory == tmp_path / "out"
    assert start.config["training"]["epochs"] == 1
    assert json.loads(json.dumps(start.config)) == start.config


def test_a_run_that_the_caller_starts_is_tracked(runs, tmp_path) -> None:
    """A caller's own mapping tells a tracker the configuration of the run, too."""
    diary = Diary()
    with configured(runs, tmp_path / "out", diary) as service:
        service.emit(EventType.TRAINING_STARTED, {"step": 0})
        service.run()
    (start,) = diary.starts
    assert start.config["diary"] == {"place": "here"}
    assert diary.ended == [Outcome.FINISHED]


def test_a_tracker_that_fails_changes_no_weight(runs, tmp_path, events) -> None:
    """A run whose tracker fails ends with the very weights of one that is tracked well."""
    good = run(runs, tmp_path / "good", Diary())
    bad = run(runs, tmp_path / "bad", Diary(broken=True))
    assert runs.fingerprint(good) == runs.fingerprint(bad)
    notes = [each.data["note"] for each in events if each.type is EventType.TRAINING_NOTED]
    assert "diary: ConnectionError: away; training goes on" in notes
