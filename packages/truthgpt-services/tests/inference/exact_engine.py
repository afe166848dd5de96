"""An engine whose logits depend on every token of a sequence: what is mixed up shows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from truthgpt_core.decoding import Capabilities, Engine, GenerationError, SequenceState

LONG = {"max_new_tokens": 60, "logit_bias": {0: -100}}
"""Options of a text that does not end by itself."""

VOCABULARY = 64
CONTEXT = 256


@dataclass(eq=False)
class Sequence_(SequenceState):
    """One sequence: its tokens."""

    engine: ExactEngine
    positions: int
    tokens: list[int] = field(default_factory=list)
    closed: bool = False

    @property
    def length(self) -> int:  # type: ignore[override]
        """How many tokens it has."""
        return len(self.tokens)


class ExactEngine(Engine):
    """Gives the logits that a hash of all tokens so far makes up.

    Args:
        capabilities: what it says that it can do.
        before: called before each pass with what each sequence is given; may raise.
    """

    name: ClassVar[str] = "exact"

    def __init__(
        self,
        capabilities: Capabilities | None = None,
        before: Callable[[list[list[int]]], None] = lambda pieces: None,
    ) -> None:
        self.capabilities = capabilities or Capabilities(fork=True, continuous_batching=True)
        self.context_length = CONTEXT
        self.vocabulary_size = VOCABULARY
        self.end_tokens = frozenset({0})
        self.tokenizer = Letters()
        self.before = before
        self.passes: list[list[int]] = []
        self.opened: list[Sequence_] = []
        self.sessions = 0

    @property
    def held(self) -> list[Sequence_]:
        """Sequences that are not closed."""
        return [each for each in self.opened if not each.closed]

    def open(self, positions: int, count: int = 1) -> list[SequenceState]:
        made = [Sequence_(self, positions) for _ in range(count)]
        self.opened += made
        return list(made)

    def fork(self, state: Any, length: int, positions: int) -> SequenceState:
        assert not state.closed
        assert 0 < length <= len(state.tokens)
        copy = Sequence_(self, positions, state.tokens[:length])
        self.opened.append(copy)
        return copy

    def forward(
        self, states: Sequence[Any], tokens: Sequence[Sequence[int]], *, all_logits: bool = False
    ) -> list[torch.Tensor]:
        assert len({id(each) for each in states}) == len(states)
        assert all(each.engine is self and not each.closed for each in states)
        self.passes.append([len(each) for each in tokens])
        self.before([list(each) for each in tokens])
        found = []
        for state, piece in zip(states, tokens, strict=True):
            rows = []
            for token in piece:
                state.tokens.append(token)
                rows.append(logits_of(state.tokens))
            if len(state.tokens) > state.positions:
                raise GenerationError("The sequence is too long")
            found.append(torch.stack(rows if all_logits else rows[-1:]))
        return found

    def crop(self, state: Any, length: int) -> None:
        del state.tokens[length:]

    def close(self, states: Sequence[Any]) -> None:
        for state in states:
            assert not state.closed
            state.closed = True

    def session(self) -> AbstractContextManager[None]:
        @contextmanager
        def counted() -> Any:
            self.sessions += 1
            yield
            self.sessions -= 1

        return counted()


class Letters:
    """A tokenizer with a token for each letter."""

    eos_token_id = 0

    def __call__(self, text: str, **_: Any) -> Any:
        return type(
            "Encoded", (), {"input_ids": [1 + ord(each) % (VOCABULARY - 1) for each in text]}
        )

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(0x4E00 + token) for token in tokens)

    def get_chat_template(self) -> str:
        raise ValueError


def logits_of(tokens: Sequence[int]) -> torch.Tensor:
    """Return the logits after some tokens."""
    digest = hashlib.sha256(bytes(tokens)).digest()
    logits = torch.tensor(list(digest + hashlib.sha256(digest).digest()), dtype=torch.float32) / 32
    logits[0] -= 4.0  # texts end, but not at once
    return logits


def alone(make: Any, prompt: str, options: Any = None) -> Any:
    """Return what a service with nothing else to do makes of a prompt."""
    return make(ExactEngine()).generate(prompt, options)
