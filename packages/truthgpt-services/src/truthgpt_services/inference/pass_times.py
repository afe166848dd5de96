"""How long passes take, and how much of a prompt fits into one that others wait for."""

from __future__ import annotations

MOST_PROMPT_TOKENS = 512
"""Tokens of prompts in one pass at most."""

LEAST_PROMPT_TOKENS = 8
"""Tokens of prompts in one pass at least, however slow the passes are."""

UNMEASURED_PROMPT_TOKENS = 64
"""Tokens of prompts in one pass while others wait and no pass was measured yet."""

ONE_PROMPT = 0.85
"""How long the tokens of a prompt may take in a pass, as a multiple of what the pass takes without
them."""


class PassTimes:
    """Learns from passes how long the next ones take."""

    def __init__(self) -> None:
        # By how many texts get their next token.
        self._without: dict[int, float] = {}
        self._prompt_token = 0.0

    def room(self, texts: int, prompts: int) -> int:
        """Return how many tokens of prompts the next pass may have.

        While one prompt is read, a pass takes about twice as long as without it. Larger pieces take
        less time in all, so they grow with the prompts that wait for each other.

        Args:
            texts: how many wait for their next token in it.
            prompts: how many wait to be read.
        """
        if texts == 0:
            return MOST_PROMPT_TOKENS
        room = UNMEASURED_PROMPT_TOKENS
        if self._without and self._prompt_token > 0.0:
            spare = ONE_PROMPT * prompts**2 * self._known(texts)
            room = int(spare / self._prompt_token)
        return max(LEAST_PROMPT_TOKENS, min(room, MOST_PROMPT_TOKENS))

    def learn(self, texts: int, read: int, seconds: float) -> None:
        """Take in how long a pass took.

        Args:
            texts: how many got their next token in it.
            read: how many tokens of prompts were read in it.
            seconds: how long it took.
        """
        if read == 0:
            self._without[texts] = _blend(self._without.get(texts, 0.0), seconds)
        elif read >= LEAST_PROMPT_TOKENS and (texts == 0 or self._without):
            # Tokens late in a prompt take longer than the first ones: their passes say so.
            more = seconds - (self._known(texts) if texts else 0.0)
            if more > 0.0:
                self._prompt_token = _blend(self._prompt_token, more / read)

    def _known(self, texts: int) -> float:
        """Return how long a pass takes without prompts, of the nearest number of texts."""
        return self._without[min(self._without, key=lambda known: abs(known - texts))]


def _blend(before: float, now: float) -> float:
    return now if before == 0.0 else 0.8 * before + 0.2 * now
