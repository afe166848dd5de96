"""Choosing the next token from logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from truthgpt_core.decoding import LogitsProcessor, SamplingParams, TokenLogprobs


class Sampler:
    """Chooses the tokens of one sequence.

    Args:
        params: how.
        device: where the logits are.
        processors: change the logits before a token is chosen, in this order.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt_length: int = 0,
        end: frozenset[int] = frozenset(),
        device: torch.device | str = "cpu",
        processors: Sequence[LogitsProcessor] = (),
    ) -> None:
        self.logprobs: list[TokenLogprobs] = []
        self.finished = False
        self._params = params
        self._processors = processors
        self._generator = torch.Generator(device=device).manual_seed(params.seed)

    def __call__(self, logits: torch.Tensor, tokens: Sequence[int]) -> int:
        """Return the next token.

        Args:
            logits: of shape (vocabulary,).
            tokens: the sequence so far, prompt included.
        """
        if self._processors:
            logits = logits.float()
            for processor in self._processors:
                logits = processor(logits, tokens)
        return int(choose(logits, self._params, self._generator))


def choose(
    logits: torch.Tensor, params: SamplingParams, generator: torch.Generator | None
) -> torch.Tensor:
    """Choose the next token.

    Args:
        logits: of shape (..., vocabulary).
        params: how.
        generator: for the random choice; not used at temperature 0.

    Returns:
        Tokens, int64 of shape (..., 1), on the device of the logits.
    """
    if params.temperature == 0.0:
        return logits.argmax(-1, keepdim=True)
    scores = logits.float()
    # From the highest down: divided by a small temperature it would be infinite.
    scores = scores - scores.amax(-1, keepdim=True)
    scores = scores / max(params.temperature, torch.finfo(scores.dtype).tiny)
    if 0 < params.top_k < scores.shape[-1]:
        least = scores.topk(params.top_k, dim=-1).values[..., -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    probabilities = scores.softmax(-1)
    if params.top_p < 1.0:
        ranked, order = probabilities.sort(dim=-1, descending=True)
        # A token is dropped if those before it already have top_p: the first never is.
        dropped = ranked.cumsum(-1) - ranked >= params.top_p
        probabilities = torch.zeros_like(probabilities).scatter(
            -1, order, ranked.masked_fill(dropped, 0.0)
        )
    return torch.multinomial(probabilities, 1, generator=generator)


def token_logprobs(logits: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprobs]:
    scores = logits.float().log_softmax(-1)
    return [
        TokenLogprobs(token=token, logprob=float(row[token]))
        for token, row in zip(tokens, scores, strict=True)
    ]
