"""What the tests of this package share: a run that is emitted as training emits it."""

from __future__ import annotations

import os

# What is not offline on purpose finds nobody; nothing is reported to anybody.
os.environ["WANDB_BASE_URL"] = "http://127.0.0.1:9"
os.environ["WANDB_ERROR_REPORTING"] = "false"
os.environ.pop("WANDB_API_KEY", None)
os.environ["NETRC"] = os.devnull
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from truthgpt_core.event_system import Event, EventType, emit_event, on_event
from truthgpt_core.plugin_system import PluginManager


class Training:
    """Emits the events of runs, as the training service does.

    Attributes:
        directory: the output directory of the runs.
        notes: those of all runs.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.notes: list[str] = []

    def start(self, section: dict[str, Any] | None, *, step: int = 0, rate: float = 0.1) -> None:
        """Begin a run, or go on with one after a step."""
        config: dict[str, Any] = {
            "training": {"learning_rate": rate, "optimizer_options": {}},
            "output_dir": str(self.directory),
            "wandb": section,
        }
        started = {"step": step, "epoch": 0, "total_steps": 4, "config": config}
        emit_event(EventType.TRAINING_STARTED, started)

    def step(self, step: int, loss: float = 2.0) -> None:
        """Take a step."""
        data = {"step": step, "epoch": 0, "loss": loss, "learning_rate": 0.1, "grad_norm": 1.0}
        emit_event(
            EventType.TRAINING_STEP, {**data, "lr": 0.1, "tokens": 8, "tokens_per_second": 4.0}
        )

    def evaluate(self, step: int, loss: float) -> None:
        """Evaluate."""
        emit_event(EventType.EVALUATION_FINISHED, {"step": step, "metrics": {"loss": loss}})

    def note(self, step: int, about: str, note: str) -> None:
        """Find something out."""
        emit_event(EventType.TRAINING_NOTED, {"step": step, "about": about, "note": note})

    def finish(self, step: int, **ended: str) -> None:
        """End a run well, or by a signal."""
        emit_event(EventType.TRAINING_FINISHED, {"step": step, **ended})

    def fail(self, step: int, reason: str) -> None:
        """End a run with an error."""
        emit_event(EventType.TRAINING_FAILED, {"step": step, "reason": reason})

    def hear(self, event: Event) -> None:
        """Keep a note."""
        self.notes.append(event.data["note"])


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    """Runs, with the plugin active that is installed."""
    manager = PluginManager()
    manager.activate("wandb")
    made = Training(tmp_path / "out")
    with on_event(EventType.TRAINING_NOTED, made.hear):
        yield made
    manager.deactivate("wandb")
