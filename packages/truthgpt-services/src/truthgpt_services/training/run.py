"""A run of training: what the loop works with besides the state that it resumes from."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from truthgpt_core.event_system import (
    CheckpointSaved,
    EvaluationFinished,
    EvaluationStarted,
    EventPayload,
    TrainingEpochFinished,
    TrainingNoted,
)
from truthgpt_core.hookspecs import Hooks
from truthgpt_core.training import TrainingBackend, TrainingProgress
from truthgpt_services.training.batches import Batch, count_targets, to_device
from truthgpt_services.training.checkpoint_files import read_checkpoint
from truthgpt_services.training.checkpoints import CheckpointStore, Found
from truthgpt_services.training.config_sections import TrainingSection
from truthgpt_services.training.distributed import share_of
from truthgpt_services.training.errors import TrainingError, TrainingInterrupted
from truthgpt_services.training.guards import StepGuard, note_evaluation
from truthgpt_services.training.loss import summed_loss
from truthgpt_services.training.precision import autocast
from truthgpt_services.training.rng import kept_random_state, random_state
from truthgpt_services.training.signals import StopSignals
from truthgpt_services.training.state import Moment, Position, ResumableLoader, TrainingState


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
        prepared: the model as the backend has it called in training.
        hooks: of the plugins.
        store: of its checkpoints; the main process alone writes.
        signals: that may end it.
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
    store: CheckpointStore
    signals: StopSignals
    emit: Callable[[EventPayload], None]
    guard: StepGuard
    evaluate_epochs: bool = True
    on_evaluated: Callable[[], None] = field(default=lambda: None)
    last_loss: float | None = None
    _agreed: signal.Signals | None = None

    @property
    def backend(self) -> TrainingBackend:
        """Where it trains."""
        return self.state.backend

    @property
    def leaving(self) -> bool:
        """Whether a signal came; with several processes, whether `total` has told them so."""
        return self.signals.pending if self.backend.processes == 1 else self._agreed is not None

    def share(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return what this process computes of a batch, on its device."""
        return to_device(share_of(batch, self.backend), self.device)

    def total(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the sum of a loss over all processes, who learn of each other's signals by it."""
        if self.backend.processes == 1:
            return loss
        pending = torch.full_like(loss, float(self.signals.pending))
        total, signalled = self.backend.total(torch.stack((loss, pending)))
        if signalled and self._agreed is None:
            received = self.backend.gather(self.signals.received)
            self._agreed = next(each for each in received if each is not None)
        return total  # type: ignore[no-any-return]  # of a backend, whose tensors are Any

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

    def end_epoch(self) -> TrainingEpochFinished:
        """Go on to the next epoch; return what there is to tell of the one that ended."""
        progress = self.state.progress
        targets = progress.epoch_targets
        loss = progress.epoch_loss / targets if targets else None
        ended = TrainingEpochFinished(epoch=progress.epoch, step=progress.step, loss=loss)
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

    def asked(self, told: TrainingProgress) -> tuple[bool | None, bool | None, str | None]:
        """Return what plugins ask for after a step, those of the main process.

        Returns:
            Whether to evaluate and whether to save, None if nobody says, and why to stop.
        """
        hooks = self.hooks
        return self.backend.broadcast(
            (
                hooks.should_evaluate(progress=told),
                hooks.should_save(progress=told),
                hooks.should_stop_training(progress=told),
            )
        )

    def note(self, about: str, note: str) -> None:
        """Tell of something that was found out."""
        step = self.state.progress.step
        self.emit(TrainingNoted(step=step, about=about, note=note))

    def moment(self, position: Position | None) -> Moment:
        """Return where the data is, as said, and the random numbers, as they are."""
        return Moment(position, random_state())

    def roll_back(self, reason: str) -> None:
        """Take the weights and what belongs to them from the newest checkpoint.

        Raises:
            TrainingError: there is none.
        """
        self.store.wait()
        found = self.newest()
        if found.path is None:
            raise TrainingError(f"{reason}, and there is no checkpoint to go back to")
        contents = read_checkpoint(found.path)
        self.state.roll_back(contents)
        self.note("roll_back", f"{reason}: back to the weights of step {contents.step}")

    def newest(self) -> Found:
        """Find the newest whole checkpoint, the same one for all processes."""
        main = self.backend.is_main
        return self.backend.broadcast(self.store.newest() if main else Found(None, ()))

    def evaluate(self) -> None:
        """Evaluate, and keep in mind whether the model is the best so far.

        Raises:
            EvaluationInterrupted: a signal came.
        """
        progress = self.state.progress
        assert self.validation is not None
        self.emit(EvaluationStarted(step=progress.step))
        metrics = evaluate(self, self.state.model, self.validation, self.device)
        progress.metrics, progress.metrics_step = metrics, progress.step
        progress.evaluation_pending = False
        note_evaluation(progress, metrics["loss"], self.settings)
        self.emit(EvaluationFinished(step=progress.step, metrics=metrics))
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
        contents = self.state.capture(moment, metric=metric)
        if not self.backend.is_main:
            return self.store.path_of(contents.step)
        return self.store.save(contents)

    def tell_saved(self, path: Path | None) -> None:
        """Tell of a checkpoint that is complete."""
        if path is not None:
            step = int(path.name.rpartition("-")[2])
            self.emit(CheckpointSaved(path=str(path), step=step))

    def leave(self, moment: Moment | None = None) -> TrainingInterrupted:
        """Save, and return the error that ends the run because of a signal.

        Args:
            moment: as for `TrainingState.capture`.
        """
        received = self._agreed or self.signals.received
        assert received is not None
        path = self.save(moment)
        self.tell_saved(self.store.wait())
        return TrainingInterrupted(received.name, received.value, path)


def evaluate(
    run: Run, model: Any, loader: Iterable[Batch], device: torch.device
) -> dict[str, float]:
    """Return how well a model predicts; all processes call this.

    Args:
        run: in which processes and precision to compute; its signals are looked at after each
            batch.
        model: on the device.
        loader: the batches.
        device: where to compute.

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
        with kept_random_state(), torch.no_grad():
            for batch in loader:
                with autocast(run.precision, device):
                    loss = summed_loss(model, to_device(share_of(batch, run.backend), device))
                total += float(run.total(loss))
                targets += count_targets(batch)
                if run.leaving:
                    raise EvaluationInterrupted
    finally:
        model.train(training)
    if targets == 0:
        raise TrainingError(
            "There is no token to predict in the validation data",
            hint="Look at its texts, or set data.validation_fraction.",
        )
    loss_per_token = total / targets
    perplexity = math.exp(loss_per_token) if loss_per_token < 700 else math.inf
    return {
        "loss": loss_per_token,
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
