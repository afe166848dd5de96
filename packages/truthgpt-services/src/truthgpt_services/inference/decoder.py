"""Decoding one sequence, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    choose = Sampler(
        params,
        prompt_length=len(prompt),
        end=end,
        device=getattr(engine, "device", "cpu"),
        processors=processors,
    )
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
                if choose.finished:
                    return
        finally:
            engine.close([state])
