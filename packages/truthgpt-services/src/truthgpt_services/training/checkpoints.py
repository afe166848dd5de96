"""The checkpoints of a run: saving beside the training, keeping some, finding the newest whole one.

One run writes into a directory at a time; what a killed one left half-written is removed
when the next one takes the directory.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import torch

from truthgpt_services.storage.atomic import remove, remove_abandoned, remove_unheld
from truthgpt_services.storage.locks import open_lock, try_for_process
from truthgpt_services.training.checkpoint_files import (
    MANIFEST,
    Contents,
    in_use,
    read_manifest,
    verify_checkpoint,
    write_checkpoint,
)
from truthgpt_services.training.errors import CheckpointError

_NAME = re.compile(r"step-(\d{8,})")
_NICER = 19


@dataclass(frozen=True, slots=True)
class Skipped:
    """A checkpoint that cannot be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """What `CheckpointStore.newest` found.

    Attributes:
        path: the newest whole checkpoint; None if there is none.
        skipped: newer ones that are not whole, newest first.
    """

    path: Path | None
    skipped: tuple[Skipped, ...]


class CheckpointStore:
    """The checkpoints in a directory, as `step-00000042`.

    Args:
        directory: where they are.
        keep_last: how many of the newest are kept.
        keep_best: how many of those with the lowest metric are kept besides.
        background: write them in a thread, from copies.
    """

    def __init__(
        self, directory: Path, *, keep_last: int = 2, keep_best: int = 1, background: bool = True
    ) -> None:
        self.directory = directory
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._background = background
        self._lock: IO[bytes] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[Path] | None = None
        # Copies are made into the same memory each time: touching new memory takes longer.
        self._copies: dict[str, torch.Tensor] = {}
        # Those of which this process wrote or read every byte.
        self._checked: set[Path] = set()

    def open(self) -> None:
        """Take the directory for writing, and remove what a killed run left half-written.

        Raises:
            CheckpointError: another run has it, or it cannot be made.
        """
        if self._lock is not None:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = open_lock(self.directory / ".lock")
        except OSError as error:
            raise CheckpointError(
                f"Checkpoints cannot be written into {self.directory}: {error.strerror or error}",
                hint="Name another output directory.",
            ) from error
        if not try_for_process(lock):
            lock.close()
            raise CheckpointError(
                f"Another run is writing checkpoints into {self.directory}",
                hint="Wait for it, or name another output directory.",
            )
        self._lock = lock
        remove_abandoned(self.directory, alone=True)

    def save(self, contents: Contents) -> Path:
        """Save a checkpoint; in the background, once its tensors are copied.

        Waits for the one before if that is still being written. If there is one of the same
        step, it stays as it is, unless its metric was not known yet.

        Args:
            contents: of it; its tensors may be changed afterwards.

        Returns:
            Where it is, or will be when `finished` or `wait` returned it.

        Raises:
            CheckpointError: this one cannot be written, or the one before could not.
        """
        self.open()
        self.wait()
        path = self.path_of(contents.step)
        if path.exists():
            whole = self._is_whole(path)
            if whole and contents.metric in (None, read_manifest(path)["metric"]):
                return path
            if not whole:
                with suppress(OSError):
                    remove(path)
        if not self._background:
            model = {name: _alone(each) for name, each in contents.model.items()}
            training = {name: _alone(each) for name, each in contents.training.items()}
            written = self._write(path, replace(contents, model=model, training=training))
            self._writing = _done(written)
            return path
        # Not in place: the caller may go on with what was passed.
        contents = replace(
            contents,
            model=self._copied("model", contents.model),
            training=self._copied("training", contents.training),
        )
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "checkpoint", initializer=_give_way)
        self._writing = self._thread.submit(self._write, path, contents)
        return path

    def finished(self) -> Path | None:
        """Return the checkpoint that was completed since it was asked last, if one was.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._writing is None or not self._writing.done():
            return None
        return self.wait()

    def wait(self) -> Path | None:
        """Wait for a checkpoint that is being written; return it, once.

        Raises:
            CheckpointError: it could not be written.
        """
        writing, self._writing = self._writing, None
        return None if writing is None else writing.result()

    def close(self) -> Path | None:
        """Wait for what is being written, and leave the directory to others.

        Returns:
            What `wait` returns.

        Raises:
            CheckpointError: it could not be written.
        """
        try:
            return self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None
            self._copies = {}
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def path_of(self, step: int) -> Path:
        """Return where the checkpoint of a step is, if there is one."""
        return self.directory / f"step-{step:08d}"

    def all(self) -> list[Path]:
        """Return all checkpoints, the newest first, whole or not."""
        try:
            found = [path for path in self.directory.iterdir() if _NAME.fullmatch(path.name)]
        except OSError:
            return []
        return sorted(found, key=_step_of, reverse=True)

    def newest(self) -> Found:
        """Find the newest whole checkpoint: every byte of it is checked."""
        while True:
            skipped = []
            for path in self.all():
                try:
                    with in_use(path):
                        verify_checkpoint(path)
                except CheckpointError as error:
                    if not path.exists():
                        # The run that writes them removed it, and so has newer ones.
                        break
                    skipped.append(Skipped(path, error.message))
                else:
                    self._checked.add(path)
                    return Found(path, tuple(skipped))
            else:
                return Found(None, tuple(skipped))

    def _write(self, path: Path, contents: Contents) -> Path:
        write_checkpoint(path, contents)
        self._checked.add(path)
        self._tidy(path)
        return path

    def _tidy(self, written: Path) -> None:
        """Remove what need not be kept. What is not a whole checkpoint does not count as kept.

        Those of later steps than the one just written are left alone: training went back behind
        them because they are damaged, or because the user wanted it to.
        """
        metrics: dict[Path, float | None] = {}
        for path in self.all():
            if _step_of(path) > _step_of(written):
                continue
            try:
                metrics[path] = read_manifest(path)["metric"]
            except CheckpointError:
                continue
        whole = list(metrics)
        best = sorted(
            (path for path in whole if metrics[path] is not None),
            key=lambda path: (metrics[path] or 0.0, _step_of(path)),
        )
        if len(whole) <= self._keep_last:
            return
        damaged: set[Path] = set()
        kept = {
            *self._first_whole(whole, self._keep_last, damaged),
            *self._first_whole(best, self._keep_best, damaged),
        }
        for path in whole:
            if path not in kept and path not in damaged:
                self._checked.discard(path)
                remove_unheld(path / MANIFEST)

    def _first_whole(self, paths: list[Path], count: int, damaged: set[Path]) -> list[Path]:
        """Return so many of some checkpoints; those that turn out to be damaged are noted.

        A manifest that is right does not say that the files are, and to read them once is cheap
        beside keeping one that cannot be used instead of one that can.
        """
        found: list[Path] = []
        for path in paths:
            if len(found) == count:
                break
            if path in self._checked or self._is_whole(path):
                self._checked.add(path)
                found.append(path)
            else:
                damaged.add(path)
        return found

    def _copied(self, kind: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        copies = {}
        for name, tensor in tensors.items():
            key = f"{kind}/{name}"
            copy = self._copies.get(key)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype)
                self._copies[key] = copy
            copy.copy_(tensor)
            copies[name] = copy
        return copies

    @staticmethod
    def _is_whole(path: Path) -> bool:
        try:
            verify_checkpoint(path)
        except CheckpointError:
            return False
        return True


def _give_way() -> None:
    """Let this thread have the time that others leave, where the system has such priorities.

    A checkpoint of a model is hashed and written for as long as some steps of a small machine
    take; at the same priority it would hold up one of the threads that compute, and so the step.
    """
    if sys.platform == "linux":
        # There a thread has a priority of its own, under its own number.
        thread = threading.get_native_id()
        with suppress(OSError):
            mine = os.getpriority(os.PRIO_PROCESS, thread)
            os.setpriority(os.PRIO_PROCESS, thread, min(19, mine + _NICER))


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor on the CPU that is contiguous and shares its memory with no other name."""
    tensor = tensor.detach().to("cpu").contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _done(path: Path) -> Future[Path]:
    future: Future[Path] = Future()
    future.set_result(path)
    return future
