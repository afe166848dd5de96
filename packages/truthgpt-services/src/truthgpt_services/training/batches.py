"""Batches: taking them from a loader in groups, and counting what is in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from truthgpt_core.errors import did_you_mean
from truthgpt_services.training.errors import TrainingError
from truthgpt_services.training.rng import preserved_random_state
from truthgpt_services.training.state import Position, ResumableLoader

Batch = Mapping[str, torch.Tensor]

IGNORED = -100
"""The label of a token that is not to be predicted."""


@dataclass(frozen=True, slots=True)
class Group:
    """Batches whose gradients are added up before one step of the optimizer.

    Attributes:
        batches: on the CPU.
        first: the number of the first one in the epoch, from 0.
        before: the position of the loader before them, None at the beginning of an epoch.
        after: its position after them.
        last: whether the epoch ends with them.
        targets: how many tokens are to be predicted in them.
        tokens: how many tokens are in them, padding left out.
    """

    batches: list[Batch]
    first: int
    before: Position | None
    after: Position | None
    last: bool
    targets: int
    tokens: int

    def __str__(self) -> str:
        last = self.first + len(self.batches) - 1
        return f"batch {self.first}" if last == self.first else f"batches {self.first} to {last}"


def groups(loader: Iterable[Batch], size: int, position: Position | None) -> Iterator[Group]:
    """Yield the rest of an epoch in groups; the last one may have fewer batches.

    One batch more is taken than the group has, to know whether it is the last. What a
    resumable loader draws from the generators of random numbers is put back: it may draw
    more when training is resumed.

    Args:
        loader: at the position given.
        size: batches in a group.
        position: where the loader is, None at the beginning of an epoch.

    Raises:
        TrainingError: a batch has not what it must have.
    """
    resumable = isinstance(loader, ResumableLoader)
    iterator: Iterator[Batch] | None = None
    taken = 0

    def take() -> Batch | None:
        nonlocal iterator, taken
        with preserved_random_state() if resumable else nullcontext():
            if iterator is None:
                iterator = iter(loader)
            batch = next(iterator, None)
        if batch is not None:
            _check(batch, taken)
            taken += 1
        return batch

    first, ahead = 0, take()
    while ahead is not None:
        before, batches = position, list[Batch]()
        while ahead is not None and len(batches) < size:
            batches.append(ahead)
            position = loader.state_dict() if isinstance(loader, ResumableLoader) else None
            ahead = take()
        yield Group(
            batches,
            first,
            before,
            position,
            ahead is None,
            targets=sum(map(count_targets, batches)),
            tokens=sum(map(count_tokens, batches)),
        )
        first += len(batches)


def count_targets(batch: Batch) -> int:
    """Return how many tokens of a batch are to be predicted."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def count_tokens(batch: Batch) -> int:
    """Return how many tokens are in a batch, padding left out."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        return int(mask.sum())
    return batch["input_ids"].numel()


def explain_lost_worker(error: Exception) -> TrainingError | None:
    """Return what to say if a process that prepares batches has died; None if it is not that.

    Args:
        error: torch raises it in whatever the process that trains does just then.
    """
    if not (isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker ")):
        return None
    return TrainingError(
        f"A process that prepares batches ended: {' '.join(str(error).split())}",
        hint="If this machine has too little memory, lower data.num_workers or data.prefetch; then "
        "resume.",
    )


def to_device(batch: Batch, device: torch.device) -> dict[str, torch.Tensor]:
    """Return a batch on a device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def _check(batch: object, number: int) -> None:
    if not isinstance(batch, Mapping):
        raise TrainingError(
            f"Batch {number} of the loader is of the type {type(batch).__name__}",
            hint="A batch is a mapping with the tensors input_ids and labels.",
        )
    for name in ("input_ids", "labels"):
        if name not in batch:
            raise TrainingError(
                f"Batch {number} of the loader has no {name}",
                hint=did_you_mean(name, map(str, batch)) or f"It has: {', '.join(batch)}.",
            )
    ids, labels = batch["input_ids"].shape, batch["labels"].shape
    if len(ids) != 2 or ids != labels:
        raise TrainingError(
            f"In batch {number} of the loader input_ids has the shape {tuple(ids)} and labels "
            f"{tuple(labels)}",
            hint="Both have the shape (rows, length).",
        )
