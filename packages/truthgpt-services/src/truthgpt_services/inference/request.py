"""One text that is being generated, as the scheduler and its caller see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

from truthgpt_core.decoding import Decoder, SamplingParams, TokenLogprobs


class Chooser(Protocol):
    """What chooses the tokens of one text; a `Sampler` does.

    Attributes:
        logprobs: of the tokens that it chose, if they were asked for.
    """

    logprobs: list[TokenLogprobs]

    @property
    def finished(self) -> bool:
        """Whether nothing can follow, because a constraint allows nothing more."""

    def __call__(self, logits: Any, tokens: Sequence[int]) -> int:
        """Return the next token."""


@dataclass(eq=False, slots=True, kw_only=True)
class Request:
    """One text to generate.

    Attributes:
        prompt: its tokens, at least one.
        params: how many tokens, and what is returned beside them.
        choose: chooses the tokens.
        accept: called with each token of the text, in order; returns whether the text ends there.
        end: tokens that end the text, and are not part of it.
        progressed: called after each token, and when the text has ended, by the thread that takes
            the passes; it must not raise.
        decoder: the strategy; None takes one token from each pass, together with other texts.
        priority: requests with lower numbers begin first.
        deadline: in seconds of `time.monotonic`, after which no more is generated.
        submitted: when it was submitted, the same way.
        started: when its prompt was first read; None before.
        first_token: when its first token was known; None before.
        ended: when it ended; None before.
        made: how many tokens were generated, the one that ended the text not counted.
        reused: how many tokens of the prompt were taken from another sequence.
        prompt_logprobs: of the prompt, if they were asked for.
        finish_reason: None until it ends; then `eos_token`, `length`, `stop_sequence`,
            `cancelled`, `timeout` or `error`.
        error: what went wrong, if anything did.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    choose: Chooser
    accept: Callable[[int], bool]
    end: frozenset[int] = frozenset()
    progressed: Callable[[], None] = lambda: None
    decoder: Decoder | None = None
    priority: int = 0
    deadline: float | None = None
    submitted: float = field(default_factory=monotonic)
    started: float | None = None
    first_token: float | None = None
    ended: float | None = None
    made: int = 0
    reused: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    error: BaseException | None = None
    is_cancelled: bool = False

    @property
    def positions(self) -> int:
        """How many tokens prompt and answer have at most."""
        return len(self.prompt) + self.params.max_new_tokens

    @property
    def first_token_seconds(self) -> float | None:
        """From when it was submitted to its first token; None if there is none."""
        return None if self.first_token is None else self.first_token - self.submitted

    def finish(self, reason: str, error: BaseException | None = None) -> None:
        """End it, once."""
        if self.finish_reason is None:
            self.ended = monotonic()
            self.error = error
            self.finish_reason = reason

    def why_over(self, now: float) -> str | None:
        """Return why no more is wanted of it; None if more is."""
        if self.is_cancelled:
            return "cancelled"
        return "timeout" if self.deadline is not None and now >= self.deadline else None
