"""The errors of training, all of them `TruthGPTError`s."""

from __future__ import annotations

from pathlib import Path

from truthgpt_core.errors import TruthGPTError


class TrainingError(TruthGPTError):
    """Training cannot begin, or cannot go on."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be written, read or used."""


class TrainingInterrupted(TrainingError):  # noqa: N818 - nothing has failed
    """A signal ended training.

    Args:
        signal_name: such as `SIGTERM`.
        number: its number; by custom, a process that it ended exits with 128 more.
        checkpoint: what was saved; None if there was nothing to save yet.
    """

    def __init__(self, signal_name: str, number: int, checkpoint: Path | None) -> None:
        if checkpoint is None:
            super().__init__(
                f"{signal_name} ended it before training began", hint="Nothing was lost."
            )
        else:
            super().__init__(
                f"{signal_name} ended training, and all of it is saved in {checkpoint}",
                hint="`truthgpt train CONFIG --resume`, or TrainingService.resume(), goes on "
                "from there.",
            )
        self.signal_name = signal_name
        self.number = number
        self.checkpoint = checkpoint
