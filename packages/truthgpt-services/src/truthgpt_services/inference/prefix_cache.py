"""Sequences that are kept when their texts have ended, for prompts that begin the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from truthgpt_core.decoding import Engine, SequenceState


@dataclass(eq=False, slots=True)
class Kept:
    """A sequence that an engine holds, and the tokens in it."""

    state: SequenceState
    tokens: tuple[int, ...]


class PrefixCache:
    """Keeps sequences of one engine; the least recently used go first.

    Args:
        engine: holds them, and can copy the beginning of one.
        max_tokens: how many tokens they have together at most.
    """

    def __init__(self, engine: Engine, max_tokens: int) -> None:
        self._engine = engine
        self._max_tokens = max_tokens
        # The most recently used last.
        self._kept: list[Kept] = []

    @property
    def tokens(self) -> int:
        """How many tokens are kept."""
        return sum(len(each.tokens) for each in self._kept)

    def find(self, prompt: Sequence[int]) -> tuple[Kept | None, int]:
        """Return the sequence that has most of the beginning of a prompt, and how much it has."""
        best, most = None, 0
        for each in self._kept:
            if (common := common_prefix(each.tokens, prompt)) > most:
                best, most = each, common
        if best is not None:
            self._kept.remove(best)
            self._kept.append(best)
        return best, most

    def keep(self, state: SequenceState, tokens: tuple[int, ...]) -> None:
        """Keep a sequence, or close it: one that is too long, or that another has all of.

        Args:
            state: the sequence; it must not be used otherwise from here on.
            tokens: all that are in it.
        """
        begun = [each for each in self._kept if each.tokens == tokens[: len(each.tokens)]]
        held = any(each.tokens[: len(tokens)] == tokens for each in self._kept)
        if held or not 0 < len(tokens) <= self._max_tokens:
            self._engine.close([state])
            return
        # What the new one begins with is in it.
        self._drop(begun)
        self._kept.append(Kept(state, tokens))
        excess = self.tokens - self._max_tokens
        oldest = []
        for each in self._kept:
            if excess <= 0:
                break
            oldest.append(each)
            excess -= len(each.tokens)
        self._drop(oldest)

    def clear(self) -> None:
        """Close all of them."""
        self._drop(list(self._kept))

    def _drop(self, dropped: Sequence[Kept]) -> None:
        self._kept = [each for each in self._kept if each not in dropped]
        if dropped:
            self._engine.close([each.state for each in dropped])


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common from their beginning on.

    Args:
        one: a tuple or list.
        other: of the same type.
    """
    low, high = 0, min(len(one), len(other))
    # Slices compare at the speed of C, and tokens one by one do not.
    while low < high:
        middle = (low + high + 1) // 2
        if tuple(one[low:middle]) == tuple(other[low:middle]):
            low = middle
        else:
            high = middle - 1
    return low
