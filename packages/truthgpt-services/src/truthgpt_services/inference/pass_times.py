"""How long passes take, and how much of a prompt fits into one that others wait for."""

from __future__ import annotations

MOST_PROMPT_TOKENS = 512
"""Tokens of prompts in one pass at most."""

LEAST_PROMPT_TOKENS = 16
"""Tokens of prompts in one pass at least, however slow the passes are."""

UNMEASURED_PROMPT_TOKENS = 64
"""Tokens of prompts in one pass while others wait and no pass was measured yet."""

LONGEST_PASS = 2.0
"""How long a pass with tokens of prompts may take while others wait for their next token, as a
multiple of one without."""


class PassTimes:
    """Learns from passes how long the next ones take."""

    def __init__(self) -> None:
        # By how many texts get their next token.
        self._without: dict[int, float] = {}
        self._prompt_token = 0.0

    def room(self, texts: int) -> int:
        """Return how many tokens of prompts the next pass may have.

        Args:
            texts: how many wait for their next token in it.
        """
        if texts == 0:
            return MOST_PROMPT_TOKENS
        room = UNMEASURED_PROMPT_TOKENS
        if self._without and self._prompt_token > 0.0:
            nearest = min(self._without, key=lambda known: abs(known - texts))
            room = int((LONGEST_PASS - 1.0) * self._without[nearest] / self._prompt_token)
        return max(LEAST_PROMPT_TOKENS, min(room, MOST_PROMPT_TOKENS))

    def learn(self, texts: int, read: int, seconds: float) -> None:
        """Take in how long a pass took.

        Args:
            texts: how many got their next token in it.
            read: how many tokens of prompts were read in it.
            seconds: how long it took.
        """
        if texts == 0:
            if read >= LEAST_PROMPT_TOKENS:
                self._prompt_token = _blend(self._prompt_token, seconds / read)
        elif read == 0 or self._prompt_token > 0.0:
            # Where prompts come all the time, there is hardly a pass without any.
            own = max(seconds - read * self._prompt_token, 0.0)
            self._without[texts] = _blend(self._without.get(texts, 0.0), own)


def _blend(before: float, now: float) -> float:
    return now if before == 0.0 else 0.8 * before + 0.2 * now
