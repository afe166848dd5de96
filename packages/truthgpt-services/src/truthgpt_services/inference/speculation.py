"""Speculative decoding: tokens are guessed, and one pass of the model checks several of them.

The text is the one that the model gives token by token. Each guess is compared with the token that
is chosen from the model's own logits, and the first that differs ends it; so whatever is guessed,
each token is drawn from the model's distribution (Leviathan et al., "Fast Inference from
Transformers via Speculative Decoding", 2023, with drafts that have probability 1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import ClassVar

from truthgpt_core.decoding import Choose, Decoder, Engine, SequenceState
from truthgpt_services.inference.prefix_cache import common_prefix

_SAME = 3
"""Tokens that have to stand where a text is looked up; with fewer, most guesses are wrong."""

_FIRST_GUESSES = 4
_LONGEST_PAUSE = 64


class _Pace:
    """How many tokens to guess: more while guesses are right, none for a while if none was.

    Args:
        most: tokens in one guess.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = min(_FIRST_GUESSES, most)
        self._pause = 1
        self._waiting = 0

    def next(self) -> int:
        """Return how many tokens to guess now."""
        if self._waiting > 0:
            self._waiting -= 1
            return 0
        return self._count

    def learn(self, guessed: int, right: int) -> None:
        """Take in what became of a guess."""
        if right == guessed:
            self._count = min(2 * self._count, self._most)
            self._pause = 1
        elif right == 0:
            # A wrong guess costs a wider pass. Where all are wrong, fewer and fewer are made.
            self._count = min(_FIRST_GUESSES, self._most)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._waiting = self._pause


class Guesser(ABC):
    """Guesses how one sequence goes on."""

    @abstractmethod
    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        """Return tokens that may come next.

        Args:
            tokens: the sequence so far, which begins with what it was before.
            count: how many at most; fewer may come, or none.
        """

    def close(self) -> None:  # noqa: B027 - optional
        """Free what it holds."""


def _ignore(guessed: int, right: int) -> None:
    pass


class Speculative(Decoder):
    """Guesses tokens and lets the model check them.

    Args:
        most: how many tokens are guessed for one pass at most.
        checked: called after each pass that checked a guess, with the number of tokens that were
            guessed, and of those that were right.
    """

    requires: ClassVar[tuple[str, ...]] = ("logits", "crop")
    continues: ClassVar[bool] = True

    def __init__(self, most: int, checked: Callable[[int, int], None] = _ignore) -> None:
        self._most = most
        self._checked = checked

    @abstractmethod
    def guesser(self, positions: int) -> Guesser:
        """Return what guesses one sequence of at most so many tokens."""

    def decode(
        self, engine: Engine, state: SequenceState, prompt: Sequence[int], choose: Choose
    ) -> Iterator[Sequence[int]]:
        """Yield the tokens of each pass: those that were guessed right, and one more."""
        tokens, pace = list(prompt), _Pace(self._most)
        (logits,) = engine.forward([state], [prompt[state.length :]])
        tokens.append(choose(logits[-1], tokens))
        yield tokens[-1:]
        with closing(self.guesser(state.positions)) as guesser:
            while True:
                wanted = min(pace.next(), state.positions - len(tokens))
                guess = guesser.guess(tokens, wanted) if wanted > 0 else []
                (logits,) = engine.forward([state], [[tokens[-1], *guess]], all_logits=bool(guess))
                made: list[int] = []
                for row, guessed in zip(logits, [*guess, None], strict=True):
                    made.append(choose(row, tokens))
                    tokens.append(made[-1])
                    # Where a constraint admits nothing more, no guess can be checked.
                    if made[-1] != guessed or getattr(choose, "finished", False):
                        break
                if guess:
                    pace.learn(len(guess), len(made) - 1)
                    self._checked(len(guess), len(made) - 1)
                    engine.crop(state, len(tokens) - 1)
                yield made


class PromptLookup(Speculative):
    """Guesses that a text goes on as it did where its last tokens stood before.

    It takes no second model, and pays for texts that repeat themselves or their prompt: edited
    code, summaries, quotations (Saxena, "Prompt Lookup Decoding", 2023).
    """

    name: ClassVar[str] = "prompt-lookup"

    def guesser(self, positions: int) -> Guesser:
        """Return what remembers where tokens stood."""
        return _Lookup()


class _Lookup(Guesser):
    """Finds the last place where the last tokens stood before."""

    def __init__(self) -> None:
        self._follows: dict[tuple[int, ...], int] = {}
        self._seen = _SAME

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        # The last tokens are not entered yet: they are what is looked for.
        for end in range(self._seen, len(tokens)):
            self._follows[tuple(tokens[end - _SAME : end])] = end
        self._seen = max(self._seen, len(tokens))
        begin = self._follows.get(tuple(tokens[-_SAME:]))
        return [] if begin is None else list(tokens[begin : begin + count])


class DraftModel(Speculative):
    """Guesses what a smaller model takes for likeliest.

    Args:
        engine: runs the smaller model, which has the same tokens.
        most: how many tokens are guessed for one pass at most.
        checked: as for `Speculative`.
    """

    name: ClassVar[str] = "draft-model"

    def __init__(
        self, engine: Engine, most: int, checked: Callable[[int, int], None] = _ignore
    ) -> None:
        super().__init__(most, checked)
        self._engine = engine

    def guesser(self, positions: int) -> Guesser:
        """Return a sequence of the smaller model."""
        return _Draft(self._engine, min(positions, self._engine.context_length or positions))


class _Draft(Guesser):
    """Goes along with a sequence, and runs ahead of it."""

    def __init__(self, engine: Engine, positions: int) -> None:
        self._engine = engine
        self._positions = positions
        (self._state,) = engine.open(positions)
        self._held: list[int] = []

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        count = min(count, self._positions - len(tokens))
        if count < 1:
            return []
        # Wrong guesses are removed. One token at least is read: it gives the logits.
        same = min(common_prefix(self._held, list(tokens)), len(tokens) - 1)
        if same < self._state.length:
            self._engine.crop(self._state, same)
        given = list(tokens[same:])
        made: list[int] = []
        while len(made) < count:
            (logits,) = self._engine.forward([self._state], [given])
            given = [int(logits[-1].argmax())]
            made += given
        self._held = [*tokens, *made[:-1]]
        return made

    def close(self) -> None:
        self._engine.close([self._state])
