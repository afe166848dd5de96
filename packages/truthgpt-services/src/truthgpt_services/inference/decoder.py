"""Decoding token by token: one sequence, or several side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from truthgpt_core.decoding import (
    Choose,
    Decoder,
    Engine,
    GenerationError,
    LogitsProcessor,
    SamplingParams,
    SequenceState,
)
from truthgpt_services.inference.sampling import Sampler


class TokenByToken(Decoder):
    """Takes one token from each pass through the model."""

    name: ClassVar[str] = "token-by-token"

    def decode(
        self, engine: Engine, state: SequenceState, prompt: Sequence[int], choose: Choose
    ) -> Iterator[Sequence[int]]:
        """Yield tokens, each as soon as it is known."""
        tokens = list(prompt)
        given = prompt
        while True:
            (logits,) = engine.forward([state], [given])
            token = choose(logits[-1], tokens)
            yield [token]
            tokens.append(token)
            given = [token]


def stream(
    engine: Engine,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    end: frozenset[int] = frozenset(),
    decoder: Decoder | None = None,
    processors: Sequence[LogitsProcessor] = (),
) -> Iterator[int]:
    """Generate the tokens that follow a prompt, each as soon as it is known.

    Args:
        engine: runs the model.
        prompt: its tokens, at least one.
        params: how tokens are chosen, and how many; stop strings are left to the caller.
        end: tokens that end the text; they are not yielded.
        decoder: the strategy; token by token if None.
        processors: change the logits.

    Raises:
        GenerationError: the prompt is empty, or too long for the model.
    """
    if not prompt:
        raise GenerationError("The prompt is empty")
    choose = Sampler(params, getattr(engine, "device", "cpu"), processors)
    with engine.session():
        (state,) = engine.open(len(prompt) + params.max_new_tokens)
        made = 0
        try:
            for tokens in (decoder or TokenByToken()).decode(engine, state, prompt, choose):
                for token in tokens:
                    if token in end:
                        return
                    yield token
                    made += 1
                    if made == params.max_new_tokens:
                        return
        finally:
            engine.close([state])


def decode_rows(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    choosers: Sequence[Choose],
    *,
    max_new_tokens: int,
    ended: Callable[[int, int], bool],
) -> None:
    """Decode several prompts together: one pass through the model for a token of each.

    What follows each prompt is what `TokenByToken` yields for it alone, but for rounding: a sum
    over more rows may be added up in another order, and in less than float32, or with layers
    that are quantized, that can decide between two tokens which are nearly as likely.

    Args:
        engine: takes that many rows.
        prompts: the tokens of each, at least one.
        choosers: chooses the tokens of each.
        max_new_tokens: how many at most, for each.
        ended: called with the number of a row and its next token; returns whether the row ends.

    Raises:
        GenerationError: the model cannot hold the longest of them.
    """
    states = engine.open(max(map(len, prompts)) + max_new_tokens, len(prompts))
    tokens = [list(prompt) for prompt in prompts]
    given: list[Sequence[int]] = list(prompts)
    going = list(range(len(prompts)))
    try:
        for _ in range(max_new_tokens):
            found = engine.forward([states[row] for row in going], [given[row] for row in going])
            left = []
            for row, logits in zip(going, found, strict=True):
                token = choosers[row](logits[-1], tokens[row])
                if ended(row, token):
                    engine.close([states[row]])
                else:
                    tokens[row].append(token)
                    given[row] = [token]
                    left.append(row)
            going = left
            if not going:
                return
    finally:
        engine.close([states[row] for row in going])
