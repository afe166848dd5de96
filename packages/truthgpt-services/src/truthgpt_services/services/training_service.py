"""TrainingService: train a model, evaluate it, save it, and go on after anything at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from truthgpt_core.errors import in_one_line
from truthgpt_core.event_system import (
    CheckpointLoaded,
    CheckpointSaved,
    EvaluationFinished,
    EvaluationStarted,
    EventEmitter,
    EventPayload,
    EventType,
    TrainingFailed,
    TrainingFinished,
    TrainingStarted,
)
from truthgpt_core.plugin_system import PluginManager, get_plugin_manager
from truthgpt_core.training import TrainingBackend
from truthgpt_services.models.loading import pick_device
from truthgpt_services.training.batches import Batch, explain_lost_worker
from truthgpt_services.training.checkpoint_files import read_checkpoint, write_checkpoint
from truthgpt_services.training.checkpoints import CheckpointStore, Found
from truthgpt_services.training.config_sections import read_settings
from truthgpt_services.training.distributed import choose_backend
from truthgpt_services.training.errors import CheckpointError, TrainingError, TrainingInterrupted
from truthgpt_services.training.evaluation import EvaluationInterrupted, evaluate
from truthgpt_services.training.guards import StepGuard
from truthgpt_services.training.loop import train
from truthgpt_services.training.memory import retain_freed_memory
from truthgpt_services.training.precision import choose_precision, make_scaler
from truthgpt_services.training.processes import Processes
from truthgpt_services.training.run import Run
from truthgpt_services.training.run_checkpoints import RunCheckpoints
from truthgpt_services.training.signals import StopSignals
from truthgpt_services.training.state import Progress, ResumableLoader, TrainingState


class TrainingService:
    """Trains a model that is configured with all it takes.

        service.configure(config=..., model=..., train_loader=..., optimizer=...)
        service.run()

    or, with an own loop over the epochs, `train_epoch`, `evaluate`, `save_checkpoint` and, at
    the end, `finish`. Both are the same loop. `resume` before either goes on from the newest
    checkpoint in the output directory.

    Args:
        plugins: whose hooks are called; that of the default application if None.
        events: where it emits events; the emitter of `plugins` if None.
        signals: that end training; SIGTERM and SIGINT if None.

    Attributes:
        signals: as given. A program that has more to do than to train enters them itself.
    """

    def __init__(
        self,
        plugins: PluginManager | None = None,
        events: EventEmitter | None = None,
        signals: StopSignals | None = None,
    ) -> None:
        self._plugins = plugins or get_plugin_manager()
        self._events = events or self._plugins.events
        self.signals = signals or StopSignals()
        self._run: Run | None = None
        self._config: Mapping[str, Any] = {}
        self._has_whole_config = False
        self._started_emitted = False
        self._ended_emitted = False
        self._done_epochs = 0

    def configure(
        self,
        *,
        config: Mapping[str, Any],
        model: nn.Module,
        train_loader: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        val_loader: Iterable[Batch] | None = None,
        scheduler: LRScheduler | None = None,
        scaler: torch.amp.GradScaler | None = None,
        device: torch.device | str | None = None,
        output_dir: str | Path = "runs",
        backend: TrainingBackend | None = None,
        whole_config: Mapping[str, Any] | None = None,
    ) -> None:
        """Say what to train, on what, and how. A run begins anew.

        Args:
            config: of the keys of the section `training`, such as the `__dict__` of one;
                those that are left out have their defaults.
            model: a causal language model of transformers; it is moved to the device.
            train_loader: yields batches as `DataLoaderFactory` makes them. If it has
                `state_dict`, training resumes in the middle of an epoch.
            optimizer: of the model's parameters.
            val_loader: batches to evaluate on.
            scheduler: stepped after each step of the optimizer.
            scaler: of the loss; made for float16 if None.
            device: where to train; the first GPU or the CPU if None.
            output_dir: its folder `checkpoints` is where checkpoints go.
            backend: in how many processes to train; as the configuration says if None.
            whole_config: what `plain_config` returns. It is in the event that training
                starts, where trackers find their sections.

        Raises:
            TrainingError: the configuration is wrong.
            ModelError: there is no such device.
        """
        self._close()
        settings = read_settings(config)
        self._plugins.activate_all()
        backend = backend or choose_backend(settings, self._plugins)
        where = pick_device(backend.device(str(device or "auto")))
        precision = choose_precision(settings.precision, where)
        model.to(where)
        if not isinstance(train_loader, ResumableLoader):
            warnings.warn(
                f"{type(train_loader).__name__} has no state_dict and load_state_dict, so training "
                "that is resumed begins its epoch anew",
                stacklevel=2,
            )
        prepared = backend.prepare(model, optimizer)
        scaler = scaler or make_scaler(precision, where)
        state = TrainingState(model, optimizer, scheduler, scaler, backend)
        store = CheckpointStore(
            Path(output_dir) / "checkpoints",
            keep_last=settings.keep_last,
            keep_best=settings.keep_best,
            background=settings.async_save,
        )
        guard, processes = StepGuard(settings), Processes(backend, self.signals)
        self._run = Run(
            state=state,
            settings=settings,
            loader=train_loader,
            validation=val_loader,
            device=where,
            precision=precision,
            prepared=prepared,
            hooks=self._plugins.hooks,
            processes=processes,
            checkpoints=RunCheckpoints(state, guard, store, processes, self.emit),
            emit=self.emit,
            guard=guard,
        )
        known = {"training": settings.model_dump(mode="json"), **(whole_config or {})}
        self._config = {**known, "output_dir": str(output_dir)}
        self._has_whole_config = whole_config is not None
        self._started_emitted = self._ended_emitted = False
        self._done_epochs = 0

    @property
    def progress(self) -> Progress:
        """How far the run has come.

        Raises:
            TrainingError: the service is not configured.
        """
        return self._configured().state.progress

    def open(self) -> None:
        """Take the output directory, before anything else is written there.

        `run` and `train_epoch` do it if it was not called.

        Raises:
            TrainingError: the service is not configured.
            CheckpointError: another run has it, or it cannot be made.
        """
        self._configured().checkpoints.open()

    def run(
        self,
        *,
        on_evaluated: Callable[[], None] = lambda: None,
        first_and_last: bool = False,
    ) -> dict[str, float]:
        """Train all epochs, evaluating and saving as configured, and save at the end.

        Args:
            on_evaluated: called after each evaluation.
            first_and_last: evaluate before the first step and after the last one, too. Early
                stopping and the choice of the best checkpoint take no note of these, so that
                a run that is resumed is the same as one that is not.

        Returns:
            What `train_epoch` returns, of the last step, with the metrics of the newest
            evaluation as `val_loss` and so on.

        Raises:
            TrainingError: it cannot begin or go on.
            TrainingInterrupted: a signal came; all is saved.
        """
        run = self._configured()
        run.evaluate_epochs, run.on_evaluated = True, on_evaluated
        metrics = self._train(run, run.settings.epochs, save=True, first_and_last=first_and_last)
        self.finish()
        return metrics

    def resume(self, path: str | Path | None = None) -> Found:
        """Go on from a checkpoint: the next step will be what it would have been.

        Args:
            path: of the checkpoint; if None, the newest whole one in the output directory.

        Returns:
            The checkpoint and those that were skipped because they are damaged. If there is
            none at all, its path is None, and training begins at the beginning.

        Raises:
            CheckpointError: the one that was named is not whole, all there are are not, or
                it is of another model, optimizer or schedule.
        """
        run = self._configured()
        found = run.checkpoints.newest() if path is None else Found(Path(path), ())
        if found.path is None:
            if found.skipped:
                reasons = "; ".join(each.reason for each in found.skipped)
                raise CheckpointError(
                    f"No checkpoint in {run.checkpoints.directory} is whole: {reasons}",
                    hint="Name another output directory to begin anew.",
                )
            return found
        state = run.state
        state.restore(read_checkpoint(found.path))
        run.guard.load_state_dict(state.guard)
        self._done_epochs = state.progress.epoch
        step = state.progress.step
        self.emit(CheckpointLoaded(path=str(found.path), step=step))
        return found

    def train_epoch(
        self,
        model: nn.Module,
        loader: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None,
        scaler: torch.amp.GradScaler | None,
        epoch: int,
    ) -> dict[str, float]:
        """Train one epoch, or what is left of it after `resume`.

        Evaluations and checkpoints at the ends of epochs are left to the caller.

        Args:
            model: as for `configure`.
            loader: as for `configure`.
            optimizer: as for `configure`.
            scheduler: as for `configure`.
            scaler: as for `configure`.
            epoch: from 0. One that a resumed run has done already is passed over.

        Returns:
            `loss` in nats per token over the epoch, `step`, `tokens` and, if the run ended
            before all epochs, `stopped` as 1.0.

        Raises:
            TrainingError: the service is not configured, or training cannot go on.
            TrainingInterrupted: a signal came; all is saved.
        """
        run = self._configured()
        self._take(run, model, optimizer, scheduler, scaler)
        run.loader, run.evaluate_epochs = loader, False
        progress = run.state.progress
        if epoch < self._done_epochs:
            run.last_loss = None
            return self._metrics(run, None)
        if epoch != progress.epoch:
            progress.epoch, run.state.position = epoch, None
            progress.epoch_loss, progress.epoch_targets = 0.0, 0
        return self._train(run, epoch + 1, save=False)

    def evaluate(
        self,
        model: nn.Module,
        loader: Iterable[Batch],
        device: torch.device | str | None = None,
    ) -> dict[str, float]:
        """Return how well a model predicts.

        Args:
            model: as for `configure`.
            loader: the batches.
            device: where to compute; where the run trains if None.

        Returns:
            `loss` in nats per token, `perplexity`, and `tokens` that were predicted.

        Raises:
            TrainingError: the service is not configured, or there is nothing to predict.
            TrainingInterrupted: a signal came; all is saved.
        """
        run = self._configured()
        where = run.device if device is None else torch.device(device)
        step = run.state.progress.step
        self.emit(EvaluationStarted(step=step))
        with self.signals:
            try:
                metrics = evaluate(
                    model.to(where),
                    loader,
                    where,
                    processes=run.processes,
                    precision=run.precision,
                )
            except EvaluationInterrupted:
                raise self._interrupted(run.checkpoints.leave()) from None
        self.emit(EvaluationFinished(step=step, metrics=metrics))
        return metrics

    def save_checkpoint(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None,
        scaler: torch.amp.GradScaler | None,
        epoch: int,
        path: str | Path,
    ) -> Path:
        """Save all that `resume(path)` needs, and wait until it is on the disk.

        Args:
            model: as for `configure`.
            optimizer: as for `configure`.
            scheduler: as for `configure`.
            scaler: as for `configure`.
            epoch: the one that is complete.
            path: a directory; a checkpoint that is there is replaced in one step.

        Returns:
            The path.

        Raises:
            CheckpointError: it cannot be written, or something else is there.
        """
        run = self._configured()
        self._take(run, model, optimizer, scheduler, scaler)
        path = Path(path)
        run.state.guard = run.guard.state_dict()
        if run.state.position is None:
            run.state.progress.epoch = epoch + 1
        contents = run.state.capture()
        for tensors in (contents.model, contents.training):
            for name, tensor in tensors.items():
                tensors[name] = tensor.cpu().clone(memory_format=torch.contiguous_format)
        if not run.backend.is_main:
            return path
        write_checkpoint(path, contents)
        self.emit(CheckpointSaved(path=str(path), step=contents.step))
        return path

    @overload
    def emit(self, event: EventPayload) -> None: ...
    @overload
    def emit(self, event: EventType, data: Mapping[str, Any] = ...) -> None: ...
    def emit(self, event: EventPayload | EventType, data: Mapping[str, Any] | None = None) -> None:
        """Emit an event. The start and the end of a run are emitted only once.

        Of several processes, the main one alone emits.

        Args:
            event: the dataclass of an event, or the type of one.
            data: with a type, what there is to tell. A start also has the `whole_config` that
                the service was configured with, if it was.
        """
        event_type = event.event_type if isinstance(event, EventPayload) else event
        if event_type is EventType.TRAINING_STARTED:
            if self._started_emitted:
                return
            self._started_emitted = True
        if event_type in (EventType.TRAINING_FINISHED, EventType.TRAINING_FAILED):
            if self._ended_emitted:
                return
            self._ended_emitted = True
        if self._run is not None and not self._run.backend.is_main:
            return
        if isinstance(event, EventPayload):
            self._events.emit(event)
        elif event is EventType.TRAINING_STARTED and self._has_whole_config:
            self._events.emit(event, {"config": self._config, **(data or {})})
        else:
            self._events.emit(event, data or {})

    def finish(self) -> None:
        """Wait for checkpoints that are being written, and end the run.

        Raises:
            CheckpointError: one could not be written.
        """
        run = self._configured()
        run.checkpoints.close()
        if self._started_emitted:
            progress = run.state.progress
            self.emit(
                TrainingFinished(step=progress.step, epoch=progress.epoch, tokens=progress.tokens)
            )

    def _train(
        self, run: Run, until_epoch: int, *, save: bool, first_and_last: bool = False
    ) -> dict[str, float]:
        progress = run.state.progress
        began = progress.step
        run.last_loss = None
        self.emit(
            TrainingStarted(
                step=progress.step,
                epoch=progress.epoch,
                total_steps=run.total_steps,
                config=self._config,
            )
        )
        try:
            with self.signals, retain_freed_memory(run.device):
                self.open()
                if first_and_last and began == 0:
                    self._evaluate_besides(run)
                reason = train(run, until_epoch)
                if reason is not None:
                    run.note("end", f"Training ends: {reason}")
                if (
                    first_and_last
                    and began < progress.step
                    and progress.metrics_step != progress.step
                ):
                    self._evaluate_besides(run)
                if save:
                    run.checkpoints.save()
                    run.checkpoints.wait()
        except TrainingInterrupted as error:
            raise self._interrupted(error) from None
        except BaseException as failure:
            explained = failure
            if isinstance(failure, Exception):
                explained = run.backend.explain(failure) or explain_lost_worker(failure) or failure
                # What is being written is waited for; that it fails too is no news any more.
                with suppress(CheckpointError):
                    run.checkpoints.close()
            self.emit(TrainingFailed(step=progress.step, reason=in_one_line(explained)))
            if explained is not failure:
                raise explained from failure
            raise
        return self._metrics(run, reason)

    def _evaluate_besides(self, run: Run) -> None:
        if run.validation is not None:
            self.evaluate(run.state.model, run.validation)
            run.on_evaluated()

    def _interrupted(self, error: TrainingInterrupted) -> TrainingInterrupted:
        run = self._configured()
        run.checkpoints.close()
        step = run.state.progress.step
        self.emit(TrainingFinished(step=step, interrupted=error.signal_name))
        return error

    @staticmethod
    def _metrics(run: Run, reason: str | None) -> dict[str, float]:
        progress = run.state.progress
        metrics: dict[str, float] = {} if run.last_loss is None else {"loss": run.last_loss}
        metrics |= {"step": progress.step, "tokens": progress.tokens}
        metrics |= {f"val_{name}": value for name, value in progress.metrics.items()}
        return metrics if reason is None else {**metrics, "stopped": 1.0}

    @staticmethod
    def _take(
        run: Run,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        state = run.state
        if model is not state.model:
            run.prepared = run.backend.prepare(model, optimizer)
        state.model, state.optimizer, state.scheduler = model, optimizer, scheduler
        state.scaler = scaler or state.scaler

    def _configured(self) -> Run:
        if self._run is None:
            raise TrainingError(
                "The training service is not configured", hint="Call configure(...) first."
            )
        return self._run

    def _close(self) -> None:
        if self._run is not None:
            self._run.checkpoints.close()
            self._run = None
