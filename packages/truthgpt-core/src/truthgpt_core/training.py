"""Contracts of training: how far a run has come, and on which devices it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.optimization import Model

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """How far training has come, after a step of the optimizer.

    Attributes:
        step: steps so far.
        total_steps: steps that there will be at most; None if that is not known.
        epoch: the epoch under way, from 0.
        last_of_epoch: whether the step was the last one of it.
        tokens: tokens trained on so far, padding left out.
        loss: of the step, in nats per token.
        metrics: of the newest evaluation, by name; empty before the first.
    """

    step: int
    total_steps: int | None
    epoch: int
    last_of_epoch: bool
    tokens: int
    loss: float
    metrics: Mapping[str, float]


class TrainingBackend:
    """Training in one process. Others derive from this, and say what is different with several.

    Every process of a run reads the same batches, computes its share of the rows of each, and
    takes the same step: whatever the number of processes, a step is that of the whole batch.
    Where a method says that all processes call it, they call it in the same order.

    A backend is registered, under its name, in `factories["training_backend_factory"]`, in
    the hook `register_components`. What is given in `training.backend_options` goes to
    `__init__`, by name.

    Attributes:
        name: what it is registered as.
    """

    name: ClassVar[str] = "local"

    @classmethod
    def launched(cls, environment: Mapping[str, str]) -> bool:
        """Return whether a launcher of this backend, such as torchrun, started this process.

        It is asked where `training.backend` is `auto`.

        Args:
            environment: the variables of this process.
        """
        return False

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return 1

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""
        return 0

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and tells."""
        return self.rank == 0

    def device(self, requested: str) -> str:
        """Return the device of this process.

        Args:
            requested: `auto`, `cpu`, `cuda`, `cuda:1` and so on.

        Returns:
            A device, or `auto` to take the first GPU or the CPU.

        Raises:
            TruthGPTError: this process cannot train there.
        """
        return requested

    def prepare(self, model: Model, optimizer: Any) -> Any:
        """Prepare a model for being trained by all processes, which all call this.

        Args:
            model: on its device, in float32 or whatever it is trained in. It may be changed in
                place, and must keep the names of its parameters.
            optimizer: of its parameters. Where these become others, it gets the others.

        Returns:
            What is called in the place of the model in training, and takes and returns what
            the model does. The gradients of a backward pass through it are the mean of those
            of all processes.
        """
        del optimizer
        return model

    def accumulating(self, prepared: Any) -> AbstractContextManager[Any]:
        """Return a context for backward passes that others follow before the optimizer steps.

        Gradients need not be exchanged in it.

        Args:
            prepared: what `prepare` returned.
        """
        del prepared
        return nullcontext()

    def total(self, tensor: Any) -> Any:
        """Return the sum of a tensor over all processes, which all call this.

        Args:
            tensor: of one shape and type in all of them.
        """
        return tensor

    def gather(self, value: _T) -> list[_T]:
        """Return the value of each process, in order of rank; all processes call this.

        Args:
            value: something that can be pickled.
        """
        return [value]

    def broadcast(self, value: _T) -> _T:
        """Return the main process's value to all processes, which all call this.

        Args:
            value: something that can be pickled; what others than the main process give does
                not matter.
        """
        return value

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let one process of each machine go through the block before the others.

        All processes enter it.
        """
        yield

    def whole(self, tensor: Any) -> Any:
        """Return all of a tensor of which this process may hold a part; all processes call this.

        Args:
            tensor: a parameter, a gradient or its norm, or part of an optimizer's state.

        Returns:
            The tensor itself if this process holds all of it; else a copy.
        """
        return tensor

    def part(self, whole: Any, like: Any) -> Any:
        """Return what this process holds of a tensor; all processes call this.

        Args:
            whole: all of it, the same in each process.
            like: a parameter of that shape.

        Returns:
            The tensor itself if this process holds all of it.
        """
        del like
        return whole

    def explain(self, error: Exception) -> TruthGPTError | None:
        """Say in words that the user understands what ended training in this process.

        Args:
            error: what was raised in it, such as by an exchange with a process that is dead.

        Returns:
            What to raise in its place; None if it has nothing to do with other processes.
        """
        del error
        return None

    def close(self) -> None:
        """Take leave of the other processes; nothing else is called afterwards."""
