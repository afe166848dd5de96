"""The training backend `accelerate`.

A run that is one process asks it too whether it was launched, so torch and accelerate are
imported when there are several.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from truthgpt_core.errors import did_you_mean
from truthgpt_core.training import TrainingBackend
from truthgpt_plugin_accelerate.errors import BackendError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch.distributed.fsdp import FSDPModule

_T = TypeVar("_T")

SHARDING = ("none", "fsdp2")


class AccelerateBackend(TrainingBackend):
    """Training in the processes that torchrun or `accelerate launch` started.

    Args:
        sharding: `none`, every process holds the whole model (DDP); or `fsdp2`, each holds a
            part of it and of the optimizer's state.
        find_unused_parameters: as for DDP, for models of which a step may leave out a part.

    Raises:
        BackendError: there is no such sharding.
    """

    name: ClassVar[str] = "accelerate"

    def __init__(self, sharding: str = "none", find_unused_parameters: bool = False) -> None:
        if sharding not in SHARDING:
            raise BackendError(
                f"There is no sharding {sharding!r}",
                hint=did_you_mean(str(sharding), SHARDING) or f"There are: {', '.join(SHARDING)}.",
            )
        self._sharding = sharding
        self._find_unused_parameters = find_unused_parameters
        self._cpu = False

    @classmethod
    def launched(cls, environment: Mapping[str, str]) -> bool:
        """Return whether this is one of several processes that a launcher started."""
        return _number(environment, "WORLD_SIZE", 1) > 1 and "RANK" in environment

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return _number(os.environ, "WORLD_SIZE", 1)

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""
        return _number(os.environ, "RANK", 0)

    def device(self, requested: str) -> str:
        """Return the device of this process, and meet the others.

        Args:
            requested: `auto`, for a GPU of each process's own if there are any, or `cpu`.

        Raises:
            BackendError: one GPU is asked for, for several processes.
        """
        if (
            self.processes > 1
            and ":" in requested
            and self._accelerator.device != _device(requested)
        ):
            raise BackendError(
                f"{self.processes} processes cannot all train on {requested}",
                hint="Ask for the device auto: each process takes one of its own. The variable "
                "CUDA_VISIBLE_DEVICES says which there are.",
            )
        self._cpu = requested == "cpu"
        return str(self._accelerator.device) if self.processes > 1 else requested

    def prepare(self, model: Any, optimizer: Any) -> Any:
        """Have the processes exchange gradients, or parts of the model; all of them call this.

        Args:
            model: as for `TrainingBackend.prepare`.
            optimizer: as for `TrainingBackend.prepare`.

        Raises:
            BackendError: the optimizer has taken a step already, and the model is divided.
        """
        if self.processes == 1:
            return model
        if self._sharding == "fsdp2":
            from truthgpt_plugin_accelerate.sharding import shard

            shard(model, optimizer, self._accelerator.device, self.processes)
            return model
        return self._accelerator.prepare_model(model)

    def accumulating(self, prepared: Any) -> AbstractContextManager[Any]:
        """Return a context in which gradients are not exchanged."""
        from torch.distributed.fsdp import FSDPModule

        if isinstance(prepared, FSDPModule):
            return _without_exchange(prepared)
        waiting: AbstractContextManager[Any] = self._accelerator.no_sync(prepared)
        return waiting

    def total(self, tensor: torch.Tensor) -> Any:
        """Return the sum of a tensor over all processes, which all call this."""
        return self._accelerator.reduce(tensor, "sum")

    def gather(self, value: _T) -> list[_T]:
        """Return the value of each process to all of them, which all call this."""
        from accelerate.utils import gather_object

        return list(gather_object([value]))

    def broadcast(self, value: _T) -> _T:
        """Return the main process's value to all processes, which all call this."""
        if self.processes == 1:
            return value
        from accelerate.utils import broadcast_object_list

        (sent,) = broadcast_object_list([value])
        return sent  # type: ignore[no-any-return]  # accelerate says nothing of its type

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let one process of each machine go through the block before the others."""
        with self._accelerator.local_main_process_first():
            yield

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return all of a tensor; all processes call this."""
        from truthgpt_plugin_accelerate.sharding import whole

        return whole(tensor)

    def part(self, whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return what this process holds of a tensor; all processes call this."""
        from truthgpt_plugin_accelerate.sharding import part

        return part(whole, like)

    def explain(self, error: Exception) -> BackendError | None:
        """Say it where an exchange with the other processes failed."""
        import torch

        text = str(error)
        # gloo raises plain errors, in whatever was waiting for the other process.
        exchange = isinstance(error, torch.distributed.DistError) or (
            isinstance(error, RuntimeError) and ("gloo" in text or "NCCL" in text)
        )
        if not exchange or self.processes == 1:
            return None
        return BackendError(
            f"Process {self.rank} of {self.processes} cannot reach the others any more: one of "
            "them has ended",
            hint="See what that one said last. Start all again with --resume to go on from the "
            "newest checkpoint.",
        )

    def close(self) -> None:
        """Take leave of the other processes."""
        self._accelerator.end_training()

    @cached_property
    def _accelerator(self) -> Accelerator:
        import torch
        from accelerate import Accelerator, DistributedDataParallelKwargs

        made = Accelerator(
            # Without a GPU accelerate would leave the processes on their own.
            cpu=self._cpu or not torch.accelerator.is_available(),
            # The loop itself says where it computes in which precision.
            mixed_precision="no",
            device_placement=False,
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=self._find_unused_parameters)
            ],
        )
        if (made.num_processes, made.process_index) != (self.processes, self.rank):
            raise BackendError(
                f"This is process {self.rank} of {self.processes} by the variables RANK and "
                f"WORLD_SIZE, and {made.process_index} of {made.num_processes} for accelerate",
                hint="Start all processes with torchrun or accelerate launch.",
            )
        return made


def _device(requested: str) -> torch.device:
    import torch

    return torch.device(requested)


@contextmanager
def _without_exchange(model: FSDPModule) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else default
