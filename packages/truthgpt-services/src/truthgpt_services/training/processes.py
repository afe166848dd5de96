"""What the processes of a run compute together, and how a signal to one of them ends all."""

from __future__ import annotations

import signal

import torch

from truthgpt_core.training import TrainingBackend
from truthgpt_services.training.batches import Batch, to_device
from truthgpt_services.training.distributed import share_of
from truthgpt_services.training.signals import StopSignals


class Processes:
    """The processes of one run; one of them, unless its backend has several.

    Args:
        backend: of the run.
        signals: that may end it.
    """

    def __init__(self, backend: TrainingBackend, signals: StopSignals) -> None:
        self._backend = backend
        self._signals = signals
        self._agreed: signal.Signals | None = None

    def share(self, batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
        """Return what this process computes of a batch, on a device."""
        return to_device(share_of(batch, self._backend), device)

    def total(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the sum of a loss over all processes, who learn of each other's signals by it."""
        if self._backend.processes == 1:
            return loss
        pending = torch.full_like(loss, float(self._signals.pending))
        total, signalled = self._backend.total(torch.stack((loss, pending)))
        if signalled and self._agreed is None:
            received = self._backend.gather(self._signals.received)
            self._agreed = next(each for each in received if each is not None)
        return total  # type: ignore[no-any-return]  # of a backend, whose tensors are Any

    @property
    def leaving(self) -> bool:
        """Whether a signal came; with several processes, whether `total` has told them so."""
        return self._signals.pending if self._backend.processes == 1 else self._agreed is not None

    @property
    def received(self) -> signal.Signals:
        """The signal that all leave for; there is one if `leaving`."""
        received = self._agreed or self._signals.received
        assert received is not None
        return received
