"""From tokens to text, one token at a time, up to a text that ends it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

from truthgpt_services.inference.prompts import Prompt


class StopStrings:
    """Passes text on until one of some strings is in it.

    What may become the beginning of such a string is held back until it cannot. Of several
    strings, the one that is complete first ends the text, and of those the longest; so it
    does not matter in which pieces the text comes.

    Args:
        strings: none of them empty.

    Attributes:
        found: the string that ended the text; None before.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""
        self.found: str | None = None

    def add(self, piece: str) -> str:
        """Take the next piece of text; return what can be passed on."""
        if self.found is not None:
            return ""
        text = self._held + piece
        ends = [
            (begin + len(string), begin, string)
            for string in self._strings
            if (begin := text.find(string)) >= 0
        ]
        if ends:
            _, begin, self.found = min(ends)
            self._held = ""
            return text[:begin]
        keep = max((_overlap(text, string) for string in self._strings), default=0)
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
        tokenizer: of transformers.
        stop: texts that end it; they are not part of it.

    Attributes:
        tokens: those that came.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokens: list[int] = []
        self._tokenizer = tokenizer
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
        known = self._tokenizer.decode(self.tokens[self._start : self._done])
        text = self._tokenizer.decode(self.tokens[self._start :])
        # A token can be a part of a character; the rest of it comes with the next.
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._start, self._done = self._done, len(self.tokens)
        return self._stop.add(text[len(known) :])

    def rest(self) -> str:
        """Return what was held back, once there are no more tokens."""
        known = self._tokenizer.decode(self.tokens[self._start : self._done])
        text = self._tokenizer.decode(self.tokens[self._start :])
        self._start = self._done = len(self.tokens)
        return self._stop.add(text[len(known) :]) + self._stop.rest()


class TextStream(Iterator[str]):
    """An answer as it comes: an iterator over pieces of its text.

    Args:
        prompt: what is continued.
        answer: what its pieces go through; None if no tokens are known.

    Attributes:
        prompt: what is continued.
        finish_reason: None until the end is read; then `eos_token` (the model ended the text),
            `length` (there are as many tokens as were asked for) or `stop_sequence`.
        cached: whether it came from the response cache.
        first_token_seconds: from the first piece that was asked for to the first token; None
            before, and if there is none.
        seconds: the same to the end.
    """

    def __init__(self, prompt: Prompt, answer: AnswerText | None = None) -> None:
        self.prompt = prompt
        self.finish_reason: str | None = None
        self.cached = False
        self.first_token_seconds: float | None = None
        self.seconds = 0.0
        self._answer = answer
        self._pieces: Generator[str] | None = None

    @property
    def tokens(self) -> list[int]:
        """The tokens that were made so far, those of a stop string included."""
        return [] if self._answer is None else self._answer.tokens

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended it, if one did."""
        return None if self._answer is None else self._answer.stopped_by

    def start(self, pieces: Generator[str]) -> TextStream:
        """Take the pieces from here."""
        self._pieces = pieces
        return self

    def __next__(self) -> str:
        """Return the next piece of text, which is not empty."""
        if self._pieces is None:
            raise StopIteration
        while not (piece := next(self._pieces)):
            pass
        return piece

    def close(self) -> None:
        """Make no more of it."""
        if self._pieces is not None:
            self._pieces.close()


def _overlap(text: str, string: str) -> int:
    """Return how many characters at the end of a text begin a string, but are not all of it."""
    longest = min(len(text), len(string) - 1)
    return next((size for size in range(longest, 0, -1) if string.startswith(text[-size:])), 0)
