"""From tokens to pieces of text: whole characters, up to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\N{REPLACEMENT CHARACTER}"


class TextPieces:
    """The text of one answer.

    Args:
        decode: returns the text of tokens.
        stop: strings that end the text before them.

    Attributes:
        stopped: whether one of them was found.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self.stopped = False
        self._decode = decode
        self._stop = stop
        self._tokens: list[int] = []
        # Tokens before `done` have become text; those from `begin` on are decoded with the next.
        self._begin = self._done = 0
        self._held = ""

    def add(self, token: int) -> str:
        """Return what can be shown after one more token."""
        self._tokens.append(token)
        # What a token looks like may depend on those before it.
        before = self._decode(self._tokens[self._begin : self._done])
        now = self._decode(self._tokens[self._begin :])
        if now.endswith(_BROKEN):  # a character whose other bytes come with the next token
            return ""
        self._begin, self._done = self._done, len(self._tokens)
        return self._shown(now[len(before) :])

    def rest(self) -> str:
        """Return what was held back, at the end."""
        if self.stopped:
            return ""
        before = self._decode(self._tokens[self._begin : self._done])
        shown = self._shown(self._decode(self._tokens[self._begin :])[len(before) :])
        return shown if self.stopped else shown + self._held

    def _shown(self, new: str) -> str:
        text = self._held + new
        found = [place for each in self._stop if (place := text.find(each)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        # The longest end of it that a stop string may begin with.
        begins = (each[:size] for each in self._stop for size in range(1, len(each)))
        held = max((len(each) for each in begins if text.endswith(each)), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]
