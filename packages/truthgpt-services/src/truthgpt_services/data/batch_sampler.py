"""The order of the rows in an epoch: a function of the seed and the epoch, and of nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from truthgpt_services.data.packing import Int64s, Rows

# Large enough to find rows of one length, small enough to keep an epoch mixed.
_BATCHES_SORTED = 64


@dataclass(frozen=True)
class Order:
    """The batches of each epoch.

    Args:
        rows: what is put into batches.
        batch_size: how many rows a batch has.
        shuffle: whether each epoch has an order of its own.
        bucketing: whether rows of similar length are put into a batch.
        drop_last: whether to leave out a last batch that is smaller.
        seed: another one gives other orders.
    """

    rows: Rows
    batch_size: int
    shuffle: bool
    bucketing: bool
    drop_last: bool
    seed: int

    def __len__(self) -> int:
        """How many batches an epoch has."""
        whole, rest = divmod(len(self.rows), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def batches(self, epoch: int, first: int) -> Iterator[Int64s]:
        """Yield which rows are in each batch of an epoch.

        Args:
            epoch: from 0.
            first: the number of the batch to begin with.
        """
        order = np.arange(len(self.rows))
        if self.shuffle:
            order = shuffled(len(self.rows), f"{self.seed} {epoch} rows")
        size = self.batch_size
        if self.bucketing:
            order = self._by_length(order)
        batches = np.arange(len(self))
        if self.bucketing and self.shuffle:
            # Else the lengths would rise and fall in waves.
            batches = shuffled(len(self), f"{self.seed} {epoch} batches")
        for number in batches[first:]:
            yield order[number * size : (number + 1) * size]

    def _by_length(self, order: Int64s) -> Int64s:
        lengths = self.rows.lengths(order)
        window = np.arange(len(order)) // (self.batch_size * _BATCHES_SORTED)
        # Stable, so what is of one length stays in the order that it had.
        sorted_order: Int64s = order[np.lexsort((lengths, window))]
        return sorted_order


def shuffled(count: int, name: str) -> Int64s:
    """Return the numbers below `count` in an order that depends on `name` alone.

    They are sorted by keys of splitmix64: numpy's own permutations may be other ones in its
    next version, and a run that is resumed with it would see texts twice.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    keys: NDArray[np.uint64] = np.arange(1, count + 1, dtype=np.uint64)
    keys *= np.uint64(0x9E3779B97F4A7C15)
    keys += np.uint64(int.from_bytes(digest, "little"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        keys ^= keys >> np.uint64(shift)
        keys *= np.uint64(factor)
    keys ^= keys >> np.uint64(31)
    # No two are equal: each step of it can be undone.
    return np.argsort(keys)
