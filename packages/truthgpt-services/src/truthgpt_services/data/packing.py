"""Which tokens go into which row: one text in each, or several packed into each.

Packing is best fit, longest first, a window of documents at a time: each piece goes to the
row with the least space that is enough, a new one if none has. On paragraphs of English, rows
of 1024 tokens come out more than 99.9 % full. First fit comes out the same but has to look for
the row; here rows with the same space left are alike, and so are pieces of the same length,
so a window takes about as many steps as there are different lengths in it. Windows keep
memory constant, and neighbors on disk in neighboring rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgpt_services.data.token_arrays import ArrayLists, Arrays, Sink, read_arrays, write_arrays
from truthgpt_services.data.token_store import TokenStore

Int64s = NDArray[np.int64]

_FORMAT = 1
_WINDOW_DOCUMENTS = 1 << 18
_WINDOW_TOKENS = 1 << 24


@dataclass(frozen=True)
class Rows:
    """Where the tokens of each row are.

    Args:
        arrays: `starts` and `lengths` of pieces of the token store, in the order of the rows,
            and `pieces`, how many of them each row has.
        firsts: the number of each row's first piece, and after the last how many there are.
        width: how many tokens a row has at most.
        packed: whether a row has more than one piece.
    """

    arrays: Arrays
    firsts: Int64s
    width: int
    packed: bool

    def __len__(self) -> int:
        return len(self.firsts) - 1

    def pieces(self, row: int) -> Iterator[tuple[int, int]]:
        """Yield where each piece of a row begins in the token store, and its length."""
        part = slice(int(self.firsts[row]), int(self.firsts[row + 1]))
        starts, lengths = self.arrays.arrays["starts"][part], self.arrays.arrays["lengths"][part]
        return zip(starts.tolist(), lengths.tolist(), strict=True)

    def lengths(self, rows: Int64s) -> Int64s:
        """Return how many tokens there are in each of these rows, which are not packed."""
        lengths: Int64s = self.arrays.arrays["lengths"][self.firsts[rows]]
        return lengths

    def fact(self, name: str) -> int:
        """Return what was counted: `documents`, `tokens` or `left_out`."""
        return int(self.arrays.facts[name])


def plan_rows(store: TokenStore, *, width: int, packing: bool) -> Rows:
    """Decide which tokens go into which row.

    Without packing a row is the beginning of a document, and documents without anything to
    learn in it are left out. With packing every token has its place: documents that are longer
    than a row are divided. Conversations are cut in either case: the rest of one, without its
    beginning, is none.

    Args:
        store: the tokens.
        width: how many tokens a row has at most.
        packing: whether to pack.
    """

    def fill(sink: Sink) -> tuple[str, Mapping[str, Any]]:
        return name, _fill(sink, store, width, packing)

    place = store.arrays.place
    if place is None:
        name, lists = "", ArrayLists()
        found: Arrays | None = lists.arrays(fill(lists)[1])
    else:
        about = f"{_FORMAT} {store.key} {width} {packing}"
        name = f"rows-{hashlib.sha256(about.encode()).hexdigest()[:40]}"
        found = read_arrays(place.parent / name)
        if found is None:
            found = write_arrays(place.parent, fill)
    assert found is not None
    firsts = np.concatenate([[0], np.cumsum(found.arrays["pieces"], dtype=np.int64)])
    return Rows(found, firsts, width, packing)


def best_fit(lengths: Int64s, width: int) -> Int64s:
    """Put pieces into rows, each into the fullest one that it fits into, the longest first.

    Args:
        lengths: of the pieces; from 1 to `width` each.
        width: how much a row takes.

    Returns:
        The number of each piece's row; there are none in between without pieces.
    """
    order = np.argsort(-lengths, kind="stable")
    row_of = np.empty(len(lengths), np.int64)
    by_space: dict[int, list[int]] = {}
    spaces = 0  # a bit for each space that some row has left
    count = at = 0
    sizes, many = np.unique(lengths, return_counts=True)
    for size, left in zip(sizes[::-1].tolist(), many[::-1].tolist(), strict=True):
        while left:
            fitting = spaces >> size
            if fitting:
                space = size + (fitting & -fitting).bit_length() - 1
                rows = by_space[space]
                wanted = -(-left // (space // size))
                rows, by_space[space] = rows[:wanted], rows[wanted:]
                if not by_space[space]:
                    spaces ^= 1 << space
            else:
                space = width
                rows = list(range(count, count - (-left // (space // size))))
                count += len(rows)
            # A row that took one is the fullest for the next of the same length.
            each = space // size
            taken = min(left, each * len(rows))
            row_of[order[at : at + taken]] = np.repeat(rows, each)[:taken]
            whole, rest = divmod(taken, each)
            for after, these in (
                (space - each * size, rows[:whole]),
                (space - rest * size, rows[whole:]),
            ):
                if after and these:
                    by_space.setdefault(after, []).extend(these)
                    spaces |= 1 << after
            at += taken
            left -= taken
    return row_of


def _fill(sink: Sink, store: TokenStore, width: int, packing: bool) -> dict[str, int]:
    tokens = left_out = 0
    sink.append("starts", np.empty(0, np.int64))
    sink.append("lengths", np.empty(0, np.int32))
    sink.append("pieces", np.empty(0, np.int32))
    for begin, lengths in _windows(store.lengths):
        starts = begin + np.cumsum(lengths) - lengths
        kept = _can_be_learned(store, starts, np.minimum(lengths, width), packing)
        left_out += int(len(kept) - kept.sum())
        starts, lengths = starts[kept], lengths[kept]
        if packing and store.loss is None:
            starts, lengths = _divide(starts, lengths, width)
        else:
            lengths = np.minimum(lengths, width)
        if packing:
            row_of = best_fit(lengths, width)
            order = np.argsort(row_of, kind="stable")
            starts, lengths, pieces = starts[order], lengths[order], np.bincount(row_of)
        else:
            pieces = np.ones(len(lengths), np.int64)
        sink.append("starts", starts)
        sink.append("lengths", lengths.astype(np.int32))
        sink.append("pieces", pieces.astype(np.int32))
        tokens += int(lengths.sum())
    return {"documents": len(store.lengths), "tokens": tokens, "left_out": left_out}


def _windows(lengths: Int64s) -> Iterator[tuple[int, Int64s]]:
    """Yield parts of the documents: the number of the first token, and their lengths."""
    begin = first = 0
    while first < len(lengths):
        window = np.asarray(lengths[first : first + _WINDOW_DOCUMENTS])
        # At least one document, however long.
        many = max(1, int(np.searchsorted(np.cumsum(window), _WINDOW_TOKENS, "right")))
        yield begin, window[:many]
        begin += int(window[:many].sum())
        first += many


def _can_be_learned(
    store: TokenStore, starts: Int64s, lengths: Int64s, packing: bool
) -> NDArray[np.bool_]:
    """Tell of which documents there is something to learn in so many of their tokens."""
    if store.loss is None:
        # Nothing comes before a first token that it could be learned from. Packed it costs
        # nothing, and is what comes before no second one.
        return lengths > (0 if packing else 1)
    if not len(starts):
        return np.empty(0, np.bool_)
    begin, end = int(starts[0]), int(starts[-1] + lengths[-1])
    counted = np.concatenate([[0], np.cumsum(store.loss[begin:end], dtype=np.int64)])
    firsts, lasts = np.minimum(starts + 1, starts + lengths) - begin, starts + lengths - begin
    learned: NDArray[np.bool_] = counted[lasts] > counted[firsts]
    return learned


def _divide(starts: Int64s, lengths: Int64s, width: int) -> tuple[Int64s, Int64s]:
    """Return the pieces of documents: as many whole rows as there are, and the rest."""
    many = -(-lengths // width)
    ends = np.repeat(starts + lengths, many)
    # How many pieces of the same document come before each piece.
    before = np.arange(int(many.sum())) - np.repeat(np.cumsum(many) - many, many)
    begins = np.repeat(starts, many) + before * width
    return begins, np.minimum(ends - begins, width)
