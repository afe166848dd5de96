"""All that a run of training resumes from, in one object, and its way to and from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from truthgpt_core.errors import in_one_line
from truthgpt_core.training import TrainingBackend
from truthgpt_services.training import state_dict_io
from truthgpt_services.training.checkpoint_files import Contents
from truthgpt_services.training.errors import CheckpointError
from truthgpt_services.training.rng import random_state, set_random_state

Position = Mapping[str, Any]
"""Where a loader is, as its `state_dict` returns it."""

Compiled = tuple[int, ...] | Literal["padded", False] | None
"""What steps are compiled for: batches of one shape, any padded one, none; None: undecided."""


@runtime_checkable
class ResumableLoader(Protocol):
    """A loader that can go on where it was."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch that was taken."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to such a position."""


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: the epoch under way, or the next one if the last is complete; from 0.
        step: steps of the optimizer, those that were left out included.
        tokens: tokens trained on, padding left out.
        epoch_loss: the sum of the losses of all targets of the epoch so far.
        epoch_targets: how many these are.
        evaluation_pending: an evaluation is due that did not come to its end.
        metrics: of the newest evaluation.
        metrics_step: when that was.
        best: the lowest validation loss.
        best_step: when it was reached.
        evaluations_without_better: since then.
    """

    epoch: int = 0
    step: int = 0
    tokens: int = 0
    epoch_loss: float = 0.0
    epoch_targets: int = 0
    evaluation_pending: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_step: int | None = None
    best: float | None = None
    best_step: int | None = None
    evaluations_without_better: int = 0


@dataclass(frozen=True, slots=True)
class Moment:
    """Where the data and the random numbers were at some time."""

    position: Position | None
    random: Mapping[str, Any]


@dataclass
class TrainingState:
    """What a run resumes from.

    Attributes:
        model: what is trained.
        optimizer: of its parameters.
        scheduler: of its learning rate, if there is one.
        scaler: of its loss; one that is disabled does nothing.
        progress: how far it has come.
        backend: where it is trained. Of several processes, each holds this object.
        position: of the loader after the last step; None at the beginning of an epoch.
        guard: what the guard of the loop remembers.
        compiled: whether steps are compiled, and what for.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None
    scaler: torch.amp.GradScaler
    backend: TrainingBackend = field(default_factory=TrainingBackend)
    progress: Progress = field(default_factory=Progress)
    position: Position | None = None
    guard: dict[str, Any] = field(default_factory=dict)
    compiled: Compiled = None

    def begin_epoch(self, loader: Any) -> None:
        """Bring a loader to the epoch under way, and to where it was in it."""
        set_epoch = getattr(loader, "set_epoch", None)
        if self.position is not None and isinstance(loader, ResumableLoader):
            loader.load_state_dict(dict(self.position))
        elif set_epoch is not None:
            set_epoch(self.progress.epoch)

    def end_epoch(self) -> float | None:
        """Go on to the next epoch; return the loss of the one that ended, in nats per token.

        It is None if no step of the epoch counted.
        """
        progress = self.progress
        targets = progress.epoch_targets
        loss = progress.epoch_loss / targets if targets else None
        progress.epoch, self.position = progress.epoch + 1, None
        progress.epoch_loss, progress.epoch_targets = 0.0, 0
        return loss

    def capture(self, moment: Moment | None = None, *, metric: float | None = None) -> Contents:
        """Return what a checkpoint holds; all processes call this.

        Its tensors are those that are trained, not copies. Only the main process has all.

        Args:
            moment: if given, the data and random numbers as they were then.
            metric: the validation loss at this step, if it is known.

        Raises:
            CheckpointError: something cannot be put into a checkpoint.
        """
        training: dict[str, torch.Tensor] = {}
        weights, aliases = _weights(self.model)
        random = self.backend.gather(random_state() if moment is None else moment.random)
        state = {
            "progress": asdict(self.progress),
            "guard": self.guard,
            "compiled": self.compiled,
            "position": self.position if moment is None else moment.position,
            "random": random,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "aliases": aliases,
        }
        encoded = {name: state_dict_io.encode(each, training, name) for name, each in state.items()}
        whole, whole_training = self._whole(weights), self._whole(training)
        return Contents(self.progress.step, encoded, whole, whole_training, metric)

    def restore(self, contents: Contents) -> None:
        """Become what a checkpoint holds, in place; all processes call this.

        The loader is not touched: `position` says where it goes. Random numbers are.

        Raises:
            CheckpointError: it is of another model, optimizer or schedule.
        """
        with _as_damage():
            state = self._load(contents)
            known = Progress.__dataclass_fields__
            self.progress = Progress(**{k: v for k, v in state["progress"].items() if k in known})
            self.guard = state["guard"]
            self.compiled = state.get("compiled")
            self.position = state["position"]
            if self.backend.rank < len(state["random"]):
                set_random_state(state["random"][self.backend.rank])

    def roll_back(self, contents: Contents) -> None:
        """Take weights, optimizer, schedule and scaler from a checkpoint, and go on from here.

        The data goes on where it is: the same batches would bring the same trouble again.

        Raises:
            CheckpointError: it is of another model, optimizer or schedule.
        """
        with _as_damage():
            self._load(contents)

    def _load(self, contents: Contents) -> dict[str, Any]:
        state: dict[str, Any] = state_dict_io.decode(contents.state, contents.training)
        self._load_weights(contents.model, state["aliases"])
        if (self.scheduler is None) != (state["scheduler"] is None):
            has, had = ("no", "one") if self.scheduler is None else ("one", "none")
            raise CheckpointError(
                f"The run has {has} learning-rate schedule, and the checkpoint {had}",
                hint="Resume with the configuration that it was made with.",
            )
        try:
            saved = self._parts(state["optimizer"])
            self.optimizer.load_state_dict(saved)
            self._give_back_types(saved)
            if self.scheduler is not None:
                self.scheduler.load_state_dict(state["scheduler"])
            if state["scaler"] and self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
        except (ValueError, KeyError, RuntimeError, TypeError, IndexError) as error:
            raise CheckpointError(
                f"The checkpoint is of another optimizer or schedule: {error}",
                hint="Resume with the configuration that it was made with.",
            ) from error
        return state

    def _give_back_types(self, saved: Mapping[str, Any]) -> None:
        """Replace what torch turned into the type of the weights, which may have fewer bits."""
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        for number, values in saved["state"].items():
            loaded = self.optimizer.state[parameters[number]]
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and value.dtype != loaded[name].dtype:
                    loaded[name] = value.to(loaded[name].device, copy=True)

    def _load_weights(
        self, weights: Mapping[str, torch.Tensor], aliases: Mapping[str, str]
    ) -> None:
        expected, expected_aliases = _weights(self.model)
        if expected.keys() != weights.keys() or expected_aliases != dict(aliases):
            different = sorted(expected.keys() ^ weights.keys())
            example = f", such as {different[0]}" if different else ""
            raise CheckpointError(
                f"The checkpoint is of another model: {len(different)} weights are in one of them "
                f"alone{example}",
                hint="Resume with the model, and the choice of weights to train, of then.",
            )
        for name, tensor in expected.items():
            if tensor.shape != weights[name].shape:
                raise CheckpointError(
                    f"The checkpoint is of another model: {name} has the shape "
                    f"{tuple(weights[name].shape)} there, and {tuple(tensor.shape)} here"
                )
        with torch.no_grad():
            for name, tensor in expected.items():
                tensor.copy_(self.backend.part(weights[name], tensor))

    def _whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return tensors of which each process may hold a part, whole, in the main process."""
        found = {}
        for name, tensor in tensors.items():
            whole = self.backend.whole(tensor)
            # Else each process would come to hold the whole model.
            if self.backend.is_main:
                found[name] = whole
        return found

    def _parts(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        """Return the state of an optimizer with what this process holds of each tensor."""
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        parts = {
            number: {
                name: self.backend.part(value, parameters[number])
                if isinstance(value, torch.Tensor) and value.shape == parameters[number].shape
                else value
                for name, value in values.items()
            }
            for number, values in optimizer["state"].items()
        }
        return {**optimizer, "state": parts}


@contextmanager
def _as_damage() -> Iterator[None]:
    """Say of a state that is not made as every state is that the checkpoint is damaged."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise CheckpointError(
            f"The checkpoint's state is not what a checkpoint holds: {in_one_line(error)}",
            hint="Remove it, to resume from the one before.",
        ) from error


def whole_weights(model: nn.Module, backend: TrainingBackend) -> dict[str, torch.Tensor] | None:
    """Return the weights of a model of which each process may hold a part; all call this.

    Returns:
        They, with their names, in the main process; None elsewhere, and if the model has them.
    """
    if backend.processes == 1:
        return None
    made: dict[int, torch.Tensor] = {}
    weights = {}
    for name, tensor in unwrapped(model).state_dict(keep_vars=True).items():
        if id(tensor) not in made:
            whole = backend.whole(tensor.detach())
            # Else each process would come to hold the whole model.
            made[id(tensor)] = whole if backend.is_main else torch.empty(0)
        weights[name] = made[id(tensor)]
    return weights if backend.is_main else None


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model itself, if torch.compile wrapped it."""
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


def _weights(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return what training changes, each tensor once, and the other names of those with several."""
    model = unwrapped(model)
    frozen = {id(each) for each in model.parameters() if not each.requires_grad}
    weights: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[int, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in frozen:
            continue
        if id(tensor) in seen:
            aliases[name] = seen[id(tensor)]
            continue
        seen[id(tensor)] = name
        weights[name] = tensor.detach()
    return weights, aliases
