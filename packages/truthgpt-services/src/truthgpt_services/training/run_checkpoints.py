"""The checkpoints of one run: what it saves, announces and goes back to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from truthgpt_core.event_system import CheckpointSaved, EventPayload
from truthgpt_services.training.checkpoint_files import read_checkpoint
from truthgpt_services.training.checkpoints import CheckpointStore, Found
from truthgpt_services.training.errors import TrainingError, TrainingInterrupted
from truthgpt_services.training.guards import StepGuard
from truthgpt_services.training.processes import Processes
from truthgpt_services.training.state import Moment, TrainingState


class RunCheckpoints:
    """Saves a run, and emits an event once a checkpoint is complete. All processes call it.

    Args:
        state: what is saved.
        guard: judges the steps of the run; what it remembers is saved, too.
        store: where to; the main process alone writes.
        processes: of the run.
        emit: emits an event.
    """

    def __init__(
        self,
        state: TrainingState,
        guard: StepGuard,
        store: CheckpointStore,
        processes: Processes,
        emit: Callable[[EventPayload], None],
    ) -> None:
        self._state = state
        self._guard = guard
        self._store = store
        self._processes = processes
        self._emit = emit

    @property
    def directory(self) -> Path:
        """Where they are."""
        return self._store.directory

    def open(self) -> None:
        """Take the directory; see `CheckpointStore.open`."""
        if self._state.backend.is_main:
            self._store.open()

    def newest(self) -> Found:
        """Find the newest whole checkpoint, the same one for all processes."""
        backend = self._state.backend
        return backend.broadcast(self._store.newest() if backend.is_main else Found(None, ()))

    def save(self, moment: Moment | None = None) -> Path:
        """Save a checkpoint; see `CheckpointStore.save`.

        Args:
            moment: as for `TrainingState.capture`.

        Raises:
            CheckpointError: it cannot be written, or the one before could not.
        """
        state = self._state
        state.guard = self._guard.state_dict()
        known = state.progress.metrics_step == state.progress.step
        metric = state.progress.metrics["loss"] if known else None
        self.wait()
        contents = state.capture(moment, metric=metric)
        if not state.backend.is_main:
            return self._store.path_of(contents.step)
        return self._store.save(contents)

    def leave(self, moment: Moment | None = None) -> TrainingInterrupted:
        """Save, and return the error that ends the run because of a signal.

        Args:
            moment: as for `TrainingState.capture`.
        """
        path = self.save(moment)
        self.wait()
        received = self._processes.received
        return TrainingInterrupted(received.name, received.value, path)

    def roll_back(self, reason: str) -> int:
        """Take the weights and what belongs to them from the newest checkpoint.

        Args:
            reason: why, for the error.

        Returns:
            The step that they are of.

        Raises:
            TrainingError: there is no checkpoint.
        """
        self.wait()
        found = self.newest()
        if found.path is None:
            raise TrainingError(f"{reason}, and there is no checkpoint to go back to")
        contents = read_checkpoint(found.path)
        self._state.roll_back(contents)
        return contents.step

    def look(self) -> None:
        """Emit an event if the checkpoint that is being written has become complete."""
        self._announce(self._store.finished())

    def wait(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            CheckpointError: it could not be written.
        """
        self._announce(self._store.wait())

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and give the directory back.

        Raises:
            CheckpointError: it could not be written.
        """
        self._announce(self._store.close())

    def _announce(self, path: Path | None) -> None:
        if path is not None:
            step = int(path.name.rpartition("-")[2])
            self._emit(CheckpointSaved(path=str(path), step=step))
