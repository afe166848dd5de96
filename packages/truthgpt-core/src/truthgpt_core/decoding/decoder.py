"""Strategies of decoding, and what changes the scores that a token is chosen by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from truthgpt_core.decoding.engine import Engine, SequenceState

Choose = Callable[[Any, Sequence[int]], int]
"""`choose(logits, tokens)` returns the next token, from logits of shape (vocabulary,) and the
tokens so far, prompt included; it applies the logits processors and samples."""


class Decoder(ABC):
    """A strategy of decoding one sequence.

    Attributes:
        name: what messages call it.
        requires: the names of the `Capabilities` that it needs of an engine.
        continues: whether a sequence may have the beginning of its prompt already, copied from
            another; `decode` then computes the rest, which is one token at least.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ("logits",)
    continues: ClassVar[bool] = False

    @abstractmethod
    def decode(
        self, engine: Engine, state: SequenceState, prompt: Sequence[int], choose: Choose
    ) -> Iterator[Sequence[int]]:
        """Generate tokens until the caller stops asking.

        Args:
            engine: has all that `requires` names.
            state: a sequence with room for the prompt and all tokens that are asked for; drafts may
                need no more. It is empty, unless the decoder `continues`.
            prompt: its tokens, at least one.
            choose: chooses a token.

        Yields:
            One or more tokens that come next.
        """


class LogitsProcessor(ABC):
    """Changes the scores that the next token is chosen by.

    It is registered in `factories["logits_processor_factory"]`, and made with the generation
    options that it declares. A request that gives none of them does not use it.

    Attributes:
        options: names of generation options and what they mean, for help and error messages.
    """

    options: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def __call__(self, logits: Any, tokens: Sequence[int]) -> Any:
        """Return changed logits.

        Args:
            logits: of the next token, float32 of shape (vocabulary,); not to be changed in place.
            tokens: the sequence so far, prompt included.

        Returns:
            Logits of the same shape; `-inf` rules a token out.
        """
