"""A run of training: what the loop works with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from truthgpt_core.event_system import (
    EvaluationFinished,
    EvaluationStarted,
    EventPayload,
    TrainingNoted,
)
from truthgpt_core.hookspecs import Hooks
from truthgpt_core.training import TrainingBackend
from truthgpt_services.training.batches import Batch
from truthgpt_services.training.config_sections import TrainingSection
from truthgpt_services.training.evaluation import evaluate
from truthgpt_services.training.guards import StepGuard, note_evaluation
from truthgpt_services.training.processes import Processes
from truthgpt_services.training.run_checkpoints import RunCheckpoints
from truthgpt_services.training.state import TrainingState


@dataclass
class Run:
    """Everything that one run of training works with.

    Attributes:
        state: what it resumes from.
        settings: how to train.
        loader: the batches to train on.
        validation: the batches to evaluate on, if there are any.
        device: where the model is.
        precision: in which matrix products are computed.
        prepared: the model as the backend has it called in training.
        hooks: of the plugins.
        processes: that compute it together.
        checkpoints: that it saves.
        emit: emits an event.
        guard: judges each step.
        evaluate_epochs: evaluate and save at the ends of epochs, too; a caller that
            calls for each epoch does so itself.
        on_evaluated: called after each evaluation.
        last_loss: of the newest step or, once it is complete, epoch, in nats per token; None
            before the first step.
    """

    state: TrainingState
    settings: TrainingSection
    loader: Iterable[Batch]
    validation: Iterable[Batch] | None
    device: torch.device
    precision: str
    prepared: Any
    hooks: Hooks
    processes: Processes
    checkpoints: RunCheckpoints
    emit: Callable[[EventPayload], None]
    guard: StepGuard
    evaluate_epochs: bool = True
    on_evaluated: Callable[[], None] = field(default=lambda: None)
    last_loss: float | None = None

    @property
    def backend(self) -> TrainingBackend:
        """Where it trains."""
        return self.state.backend

    @cached_property
    def total_steps(self) -> int | None:
        """How many steps there will be at most; None if the loader does not know its length."""
        return count_steps(self.loader, self.settings)

    def note(self, about: str, note: str) -> None:
        """Emit an event about something that was found out."""
        self.emit(TrainingNoted(step=self.state.progress.step, about=about, note=note))

    def evaluate(self) -> None:
        """Evaluate, and note whether the model is the best so far.

        Raises:
            EvaluationInterrupted: a signal came.
        """
        progress = self.state.progress
        assert self.validation is not None
        self.emit(EvaluationStarted(step=progress.step))
        metrics = evaluate(
            self.state.model,
            self.validation,
            self.device,
            processes=self.processes,
            precision=self.precision,
        )
        progress.metrics, progress.metrics_step = metrics, progress.step
        progress.evaluation_pending = False
        note_evaluation(progress, metrics["loss"], self.settings)
        self.emit(EvaluationFinished(step=progress.step, metrics=metrics))
        self.on_evaluated()


def count_steps(loader: Iterable[Any], settings: TrainingSection) -> int | None:
    """Return how many steps a run has at most; None if the loader does not know its length."""
    try:
        batches = len(loader) if isinstance(loader, Sized) else None
    except TypeError:  # a DataLoader of a stream
        batches = None
    if batches is None:
        return settings.max_steps
    steps = math.ceil(batches / settings.gradient_accumulation_steps) * settings.epochs
    return steps if settings.max_steps is None else min(steps, settings.max_steps)
