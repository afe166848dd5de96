"""From tokens to text, one token at a time, up to a text that ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class StopStrings:
    """Passes text on until one of some strings is in it.

    What may become the beginning of such a string is held back until it cannot. Of several
    strings, the one that is complete first ends the text, and of those the longest; so it
    does not matter in which pieces the text comes.

    Args:
        strings: none of them empty.

    Attributes:
        strings: those.
        found: the one that ended the text; None before.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = strings
        self._held = ""
        self.found: str | None = None

    def add(self, piece: str) -> str:
        """Take the next piece of text; return what can be passed on."""
        if self.found is not None:
            return ""
        text = self._held + piece
        ends = [
            (begin + len(string), begin, string)
            for string in self.strings
            if (begin := text.find(string)) >= 0
        ]
        if ends:
            _, begin, self.found = min(ends)
            self._held = ""
            return text[:begin]
        keep = max((overlap(text, string) for string in self.strings), default=0)
        passed = len(text) - keep
        self._held = text[passed:]
        return text[:passed]

    def rest(self) -> str:
        """Return what was held back, once there is no more text."""
        held, self._held = self._held, ""
        return held


class AnswerText:
    """The text of an answer whose tokens come one by one.

    Args:
        decode: returns the text of tokens, such as `decode` of a tokenizer of transformers.
        stop: texts that end it; they are not part of it.

    Attributes:
        tokens: those that came.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self.tokens: list[int] = []
        self._decode = decode
        self._stop = StopStrings(stop)
        # Only a short tail is decoded each time. It begins a token before what is new,
        # because a tokenizer writes a first token without the space before it.
        self._start = self._done = 0

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended it, if one did."""
        return self._stop.found

    def add(self, token: int) -> str:
        """Take the next token; return the text that it completes."""
        self.tokens.append(token)
        known = self._decode(self.tokens[self._start : self._done])
        text = self._decode(self.tokens[self._start :])
        # A token can be a part of a character; the rest of it comes with the next.
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._start, self._done = self._done, len(self.tokens)
        return self._stop.add(text[len(known) :])

    def extend(self, tokens: Sequence[int]) -> str:
        """Take several tokens; return the text that they complete."""
        if self._stop.strings or not tokens:
            # Which token completed one counts.
            return "".join(map(self.add, tokens))
        self.tokens += tokens[:-1]
        return self.add(tokens[-1])

    def rest(self) -> str:
        """Return what was held back, once there are no more tokens."""
        known = self._decode(self.tokens[self._start : self._done])
        text = self._decode(self.tokens[self._start :])
        self._start = self._done = len(self.tokens)
        return self._stop.add(text[len(known) :]) + self._stop.rest()


def overlap(text: str, string: str) -> int:
    """Return how many characters at the end of a text begin a string, but are not all of it.

    So many are held back of a text that comes in pieces: the next one may complete the string.
    """
    longest = min(len(text), len(string) - 1)
    return next((size for size in range(longest, 0, -1) if string.startswith(text[-size:])), 0)
