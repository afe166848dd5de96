"""The batches of a data set, epoch after epoch, from wherever a run was stopped."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from truthgpt_services.data.batch_sampler import Order
from truthgpt_services.data.packing import Int64s, Rows
from truthgpt_services.data.token_store import TokenStore
from truthgpt_services.errors import DataError

Batch = dict[str, torch.Tensor]

IGNORED = -100
"""The label of a token without loss, which torch's cross entropy leaves out."""

_FORMAT = 1


@dataclass(frozen=True)
class DataSummary:
    """What a loader has in an epoch.

    Args:
        documents: texts and conversations, those left out too.
        left_out: those with nothing to learn in them, within a row's length.
        rows: how many rows there are; without packing as many as documents that are used.
        tokens: in the rows, padding not counted.
        efficiency: the part of the rows that is tokens, if each is as wide as the widest may
            be; rows that are not packed are padded to the longest of a batch only.
    """

    documents: int
    left_out: int
    rows: int
    tokens: int
    efficiency: float


class BatchLoader:
    """Yields batches, and knows which ones were taken.

    A batch has int64 tensors of (rows, length): `input_ids`; `labels`, which are the same and
    not shifted, or -100 where there is no loss: on padding, on what the assistant did not say,
    and on the first token of each document; and `position_ids`. Rows with one text each have
    an `attention_mask` of that shape. Packed rows have none: positions begin again with each
    document, from which transformers keeps attention within documents, if the model is called
    with `use_cache=False`. With a cache, it does not look.

    Args:
        store: the tokens.
        rows: which of them are in which row.
        order: of the rows.
        padding: the token that fills up rows.
        num_workers: processes that prepare batches; 0 prepares them in this one.
        prefetch: batches that each of these processes prepares ahead.
        resumes: whether an iteration begins where the last one stopped; else at the beginning.
    """

    def __init__(
        self,
        store: TokenStore,
        rows: Rows,
        order: Order,
        *,
        padding: int,
        num_workers: int,
        prefetch: int,
        resumes: bool,
    ) -> None:
        self._batches = _Batches(store, rows, padding)
        self._order = order
        self._workers: dict[str, Any] = {"num_workers": num_workers}
        if num_workers:
            self._workers["prefetch_factor"] = prefetch
            self._workers["worker_init_fn"] = _leave_signals_to_the_trainer
        self._resumes = resumes
        self._epoch = 0
        self._taken = 0
        self._made_of: dict[str, Any] = {
            "data": store.key,
            "max_length": rows.width,
            "packing": rows.packed,
            "batch_size": order.batch_size,
            "shuffle": order.shuffle,
            "length_bucketing": order.bucketing,
            "drop_last": order.drop_last,
            "seed": order.seed,
        }
        documents, tokens = rows.fact("documents"), rows.fact("tokens")
        efficiency = tokens / (len(rows) * rows.width)
        self.summary = DataSummary(documents, rows.fact("left_out"), len(rows), tokens, efficiency)

    def __len__(self) -> int:
        """How many batches a whole epoch has."""
        return len(self._order)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch that are left; after the last one the next epoch begins.

        One iteration at a time: a second one goes on where the first is.
        """
        if not self._resumes:
            self._taken = 0
        epoch = self._epoch
        loader: DataLoader[Batch] = DataLoader(
            self._batches,
            batch_size=None,
            sampler=self._order.batches(epoch, self._taken),
            # Its own: the process's would be one number further on after each resume.
            generator=torch.Generator().manual_seed(self._order.seed + epoch),
            **self._workers,
        )
        for batch in loader:
            self._taken += 1
            yield batch
        self._epoch, self._taken = epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch; stay in the middle of it, if it is the present one.

        Args:
            epoch: from 0.
        """
        if epoch != self._epoch:
            self._epoch, self._taken = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch that was yielded, in JSON types."""
        return {
            "format": _FORMAT,
            "epoch": self._epoch,
            "batch": self._taken,
            "made_of": dict(self._made_of),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position that a state has.

        Raises:
            DataError: it is no such state, or that of other data or settings, whose batches
                are others.
        """
        try:
            epoch, batch, made_of = state["epoch"], state["batch"], state["made_of"]
            known = state["format"] == _FORMAT
            whole = isinstance(epoch, int) and isinstance(batch, int) and isinstance(made_of, dict)
        except (KeyError, TypeError):
            known = whole = False
        if not (known and whole and epoch >= 0 and 0 <= batch <= len(self)):
            raise DataError(f"This is not a position in the data: {state!r:.200}")
        for name, now in self._made_of.items():
            then = made_of.get(name)
            if then == now:
                continue
            if name == "data":
                raise DataError(
                    "The position is one in other data: the texts, the tokenizer or how texts "
                    "become tokens changed since it was saved",
                    hint="Go on with the same data, or begin anew.",
                )
            raise DataError(
                f"The position was saved with {name}={then}, and now it is {now}",
                hint="Go on with the same settings, or begin anew.",
            )
        self._epoch, self._taken = epoch, batch


def _leave_signals_to_the_trainer(_number: int) -> None:
    """Ignore what a terminal, or what ends a whole service, sends to this process too.

    The process that trains wants its batches until it has saved; when it is gone, torch ends
    this one.
    """
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)


class _Batches(Dataset[Batch]):
    """Makes a batch of rows: all that worker processes do."""

    def __init__(self, store: TokenStore, rows: Rows, padding: int) -> None:
        self._store = store
        self._rows = rows
        self._padding = padding

    def __getitem__(self, numbers: Int64s) -> Batch:
        rows = [list(self._rows.pieces(int(number))) for number in numbers]
        packed = self._rows.packed
        width = self._rows.width if packed else max(length for ((_, length),) in rows)
        shape = (len(rows), width)
        ids = np.full(shape, self._padding, np.int64)
        labels = np.full(shape, IGNORED, np.int64)
        positions = np.empty(shape, np.int64)
        mask = np.zeros(shape, np.int64)
        for row, pieces in enumerate(rows):
            at = 0
            for start, length in pieces:
                here, there = slice(at, at + length), slice(start, start + length)
                ids[row, here] = self._store.ids[there]
                loss = True if self._store.loss is None else self._store.loss[there]
                labels[row, here] = np.where(loss, ids[row, here], IGNORED)
                # Nothing predicts it: before it there is another document, or nothing.
                labels[row, at] = IGNORED
                positions[row, here] = np.arange(length)
                at += length
            mask[row, :at] = 1
            # What is left of a packed row is one more document, which sees itself alone.
            positions[row, at:] = np.arange(width - at) if packed else np.arange(at, width)
        batch = {"input_ids": ids, "labels": labels, "position_ids": positions}
        if not packed:
            batch["attention_mask"] = mask
        return {name: torch.from_numpy(array) for name, array in batch.items()}
