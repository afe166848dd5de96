"""A run of training: what the loop works with besides the state that it resumes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from truthgpt_core.config.sections import TrainingSection
from truthgpt_core.event_system import EventType
from truthgpt_core.hookspecs import Hooks
from truthgpt_core.training import TrainingProgress
from truthgpt_services.training.batches import Batch, count_targets, summed_loss, to_device
from truthgpt_services.training.checkpoint_files import read_checkpoint
from truthgpt_services.training.checkpoints import CheckpointStore
from truthgpt_services.training.errors import TrainingError, TrainingInterrupted
from truthgpt_services.training.guards import StepGuard, note_evaluation
from truthgpt_services.training.precision import autocast
from truthgpt_services.training.randomness import kept_random_state, random_state
from truthgpt_services.training.signals import StopSignals
from truthgpt_services.training.state import Moment, Position, ResumableLoader, TrainingState

Emit = Callable[[EventType, Mapping[str, Any]], None]


class EvaluationInterrupted(Exception):  # noqa: N818 - nothing has failed
    """A signal came during an evaluation."""


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
        hooks: of the plugins.
        store: of its checkpoints.
        signals: that may end it.
        emit: tells an event.
        guard: judges each step.
        evaluate_epochs: evaluate and save at the ends of epochs, too; a caller that
            calls for each epoch does so itself.
        on_evaluated: called after each evaluation.
    """

    state: TrainingState
    settings: TrainingSection
    loader: Iterable[Batch]
    validation: Iterable[Batch] | None
    device: torch.device
    precision: str
    hooks: Hooks
    store: CheckpointStore
    signals: StopSignals
    emit: Emit
    guard: StepGuard
    evaluate_epochs: bool = True
    on_evaluated: Callable[[], None] = field(default=lambda: None)

    @cached_property
    def total_steps(self) -> int | None:
        """How many steps there will be at most; None if the loader does not know its length."""
        return count_steps(self.loader, self.settings)

    def go_to_epoch(self) -> None:
        """Bring the loader to the epoch under way, and to where it was in it."""
        state = self.state
        set_epoch = getattr(self.loader, "set_epoch", None)
        if state.position is not None and isinstance(self.loader, ResumableLoader):
            self.loader.load_state_dict(dict(state.position))
        elif set_epoch is not None:
            set_epoch(state.progress.epoch)

    def end_epoch(self) -> dict[str, Any]:
        """Go on to the next epoch; return what there is to tell of the one that ended."""
        progress = self.state.progress
        ended: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step}
        if progress.epoch_targets:
            ended["loss"] = progress.epoch_loss / progress.epoch_targets
        progress.epoch, self.state.position = progress.epoch + 1, None
        progress.epoch_loss, progress.epoch_targets = 0.0, 0
        return ended

    def told(self, loss: float, last_of_epoch: bool, epoch: int) -> TrainingProgress:
        """Return what hooks are told after a step."""
        progress = self.state.progress
        return TrainingProgress(
            step=progress.step,
            total_steps=self.total_steps,
            epoch=epoch,
            last_of_epoch=last_of_epoch,
            tokens=progress.tokens,
            loss=loss,
            metrics=dict(progress.metrics),
        )

    def note(self, about: str, note: str) -> None:
        """Tell of something that was found out."""
        step = self.state.progress.step
        self.emit(EventType.TRAINING_NOTED, {"step": step, "about": about, "note": note})

    def moment(self, position: Position | None) -> Moment:
        """Return where the data is, as said, and the random numbers, as they are."""
        return Moment(position, random_state())

    def roll_back(self, reason: str) -> None:
        """Take the weights and what belongs to them from the newest checkpoint.

        Raises:
            TrainingError: there is none.
        """
        self.store.wait()
        found = self.store.newest()
        if found.path is None:
            raise TrainingError(f"{reason}, and there is no checkpoint to go back to")
        contents = read_checkpoint(found.path)
        self.state.roll_back(contents)
        self.note("roll_back", f"{reason}: back to the weights of step {contents.step}")

    def evaluate(self) -> None:
        """Evaluate, and keep in mind whether the model is the best so far.

        Raises:
            EvaluationInterrupted: a signal came.
        """
        progress = self.state.progress
        assert self.validation is not None
        self.emit(EventType.EVALUATION_STARTED, {"step": progress.step})
        metrics = evaluate(
            self.state.model, self.validation, self.device, self.precision, self.signals
        )
        progress.metrics, progress.metrics_step = metrics, progress.step
        progress.evaluation_pending = False
        note_evaluation(progress, metrics["loss"], self.settings)
        self.emit(EventType.EVALUATION_FINISHED, {"step": progress.step, "metrics": metrics})
        self.on_evaluated()

    def save(self, moment: Moment | None = None) -> Path:
        """Save a checkpoint; see `CheckpointStore.save`.

        Args:
            moment: as for `TrainingState.capture`.

        Raises:
            CheckpointError: it cannot be written, or the one before could not.
        """
        self.state.guard = self.guard.state_dict()
        progress = self.state.progress
        known = progress.metrics_step == progress.step
        metric = progress.metrics["loss"] if known else None
        self.tell_saved(self.store.wait())
        return self.store.save(self.state.capture(moment, metric=metric))

    def tell_saved(self, path: Path | None) -> None:
        """Tell of a checkpoint that is complete."""
        if path is not None:
            step = int(path.name.rpartition("-")[2])
            self.emit(EventType.CHECKPOINT_SAVED, {"path": str(path), "step": step})

    def leave(self, moment: Moment | None = None) -> TrainingInterrupted:
        """Save, and return the error that ends the run because of a signal.

        Args:
            moment: as for `TrainingState.capture`.
        """
        signal = self.signals.received
        assert signal is not None
        path = self.save(moment)
        self.tell_saved(self.store.wait())
        return TrainingInterrupted(signal.name, signal.value, path)


def evaluate(
    model: Any,
    loader: Iterable[Batch],
    device: torch.device,
    precision: str,
    signals: StopSignals | None = None,
) -> dict[str, float]:
    """Return how well a model predicts.

    Random numbers are left as they were, and the model in the mode it was in.

    Args:
        model: on the device.
        loader: the batches.
        device: where to compute.
        precision: in which matrix products are computed.
        signals: looked at after each batch.

    Returns:
        `loss` in nats per token, `perplexity`, and `tokens` that were predicted.

    Raises:
        TrainingError: there is nothing to predict.
        EvaluationInterrupted: a signal came.
    """
    total, targets = 0.0, 0
    training = model.training
    model.eval()
    try:
        with kept_random_state(), torch.inference_mode():
            for batch in loader:
                with autocast(precision, device):
                    total += float(summed_loss(model, to_device(batch, device)))
                targets += count_targets(batch)
                if signals is not None and signals.pending:
                    raise EvaluationInterrupted
    finally:
        model.train(training)
    if targets == 0:
        raise TrainingError(
            "There is no token to predict in the validation data",
            hint="Look at its texts, or set data.validation_fraction.",
        )
    loss = total / targets
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return {
        "loss": loss,
        "perplexity": perplexity,
        "tokens": targets,
    }


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
