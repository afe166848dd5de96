"""The errors of this package, all of them `TruthGPTError`s."""

from __future__ import annotations

from truthgpt_core.errors import TruthGPTError


class ModelError(TruthGPTError):
    """A model cannot be found, read or saved."""


class DeviceError(ModelError):
    """There is no such device on this machine."""

    exit_code = 2


class DataError(TruthGPTError):
    """A data set cannot be found, read or used."""


class OutputError(TruthGPTError):
    """An output directory cannot be written."""


class DamagedError(TruthGPTError):
    """A file is missing, or is not what was written."""


class WorkerError(TruthGPTError):
    """A worker process failed or went away.

    Args:
        message: what happened.
        worker: its name.
        hint: what to do about it.
    """

    def __init__(self, message: str, *, worker: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.worker = worker
