"""The decode loop: a prompt is read in one forward pass, then tokens come one by one.

The loop is this project's own because, on small models, the Python that
transformers' `generate` runs for each token costs as much as the arithmetic.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from transformers import DynamicCache, StaticCache

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.hookspecs import Hooks

DecodeStep = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

SMALLEST_CACHE = 256
"""Positions in the smallest cache; larger ones double, so that few shapes are ever compiled."""


class GenerationError(TruthGPTError):
    """Text cannot be generated as asked."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token; higher is more random.
        top_k: choose among this many likeliest tokens; 0 for all.
        top_p: choose among the likeliest tokens that together have this probability.
        seed: of the random choice.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            if not isinstance(getattr(self, name), Real):
                raise GenerationError(f"{name} is {getattr(self, name)!r}: it must be a number")
        for name in ("top_k", "seed"):
            if not isinstance(getattr(self, name), Integral):
                value = getattr(self, name)
                raise GenerationError(f"{name} is {value!r}: it must be a whole number")
        if not 0.0 <= self.temperature < float("inf"):
            raise GenerationError(f"temperature is {self.temperature}: it must be 0 or more")
        if self.top_k < 0:
            raise GenerationError(f"top_k is {self.top_k}: it must be 0 or more")
        if not 0.0 < self.top_p <= 1.0:
            raise GenerationError(f"top_p is {self.top_p}: it must be above 0 and at most 1")
        if not -(2**63) <= self.seed < 2**64:
            raise GenerationError(f"seed is {self.seed}: it must fit into 64 bits")


def choose(
    logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None
) -> torch.Tensor:
    """Choose the next token.

    Args:
        logits: of shape (batch, vocabulary).
        sampling: how.
        generator: for the random choice; not used at temperature 0.

    Returns:
        Tokens, int64 of shape (batch, 1).
    """
    if sampling.temperature == 0.0:
        return logits.argmax(-1, keepdim=True)
    scores = logits.float()
    # From the highest down: divided by a small temperature it would be infinite.
    scores = scores - scores.amax(-1, keepdim=True)
    scores = scores / max(sampling.temperature, torch.finfo(scores.dtype).tiny)
    if 0 < sampling.top_k < scores.shape[-1]:
        least = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    probabilities = scores.softmax(-1)
    if sampling.top_p < 1.0:
        ranked, order = probabilities.sort(dim=-1, descending=True)
        # A token is dropped if those before it already have top_p: the first never is.
        dropped = ranked.cumsum(-1) - ranked >= sampling.top_p
        probabilities = torch.zeros_like(probabilities).scatter(
            -1, order, ranked.masked_fill(dropped, 0.0)
        )
    return torch.multinomial(probabilities, 1, generator=generator)


def check_new_tokens(asked: Any) -> None:
    """See that this many tokens can be asked for.

    Raises:
        GenerationError: it is no whole number of 1 or more.
    """
    if not isinstance(asked, Integral) or int(asked) < 1:
        raise GenerationError(f"max_new_tokens is {asked!r}: it must be a whole number, 1 or more")


def cache_length(positions: int, limit: int | None) -> int:
    """Return the length of the cache for a sequence: a power of two that holds it, up to the limit.

    Raises:
        GenerationError: the model cannot hold that many positions.
    """
    if limit is not None and positions > limit:
        raise GenerationError(
            f"Prompt and answer have {positions} tokens, and the model holds {limit}",
            hint="Shorten the prompt, or ask for fewer tokens.",
        )
    length = SMALLEST_CACHE
    while length < positions:
        length *= 2
    return length if limit is None else max(positions, min(length, limit))


class Sequence:
    """One sequence that is being generated, or several side by side: cache and positions.

    Args:
        model: a causal language model of transformers.
        hooks: the hook `make_decode_step` makes the step.
        positions: how many tokens, prompt included, the cache must hold.
        rows: how many sequences there are.

    Attributes:
        cache: the key-value cache.
        fixed_length: how many positions the cache has from the beginning; None if it grows.

    Raises:
        GenerationError: the model cannot hold that many positions.
    """

    def __init__(self, model: Any, hooks: Hooks, positions: int, *, rows: int = 1) -> None:
        self._model = model
        self._hooks = hooks
        self._device = next(model.parameters()).device
        length = cache_length(positions, context_of(model))
        self._step: DecodeStep | None = None
        self.fixed_length: int | None = None
        # torch.compile compiles once for tensors made in inference mode and again for
        # others: the step always gets these, wherever a token comes from.
        with torch.inference_mode():
            if getattr(model, "_can_compile_fullgraph", False):
                self.cache: Any = StaticCache(config=model.config, max_cache_len=length)
                self.fixed_length = length
            else:
                self.cache = DynamicCache(config=model.config)
            self._token = torch.zeros(rows, 1, dtype=torch.int64, device=self._device)
            self._position = torch.zeros_like(self._token)

    def prefill(self, ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Read the prompt.

        Args:
            ids: int64 of shape (rows, tokens).
            positions: where each of them is in its sequence, of the same shape; from 0 on
                if None.

        Returns:
            The logits after the last token, of shape (rows, vocabulary).

        Raises:
            GenerationError: a token is beyond the model's vocabulary.
        """
        refuse_unknown_tokens(ids, vocabulary_of(self._model))
        ids = ids.to(self._device)
        if positions is None:
            positions = torch.arange(ids.shape[1], device=self._device).expand_as(ids)
        logits: torch.Tensor = self._model(
            input_ids=ids,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **_last_logits_only(self._model),
        ).logits[:, -1]
        self._position.copy_(positions[:, -1:] + 1)
        self._step = self._hooks.make_decode_step(model=self._model, cache=self.cache)
        return logits

    def step(self, token: torch.Tensor) -> torch.Tensor:
        """Append a token to each row, int64 of shape (rows, 1); return the logits after it."""
        assert self._step is not None, "prefill comes first"
        self._token.copy_(token)
        logits = self._step(self._token, self._position)
        self._position += 1
        return logits


def stream(
    model: Any,
    hooks: Hooks,
    prompt: torch.Tensor,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    stop: frozenset[int] = frozenset(),
) -> Iterator[int]:
    """Generate tokens, each as soon as it is known.

    Args:
        model: a causal language model of transformers.
        hooks: the hooks of the plugin manager.
        prompt: int64 of shape (1, tokens), at least one token.
        max_new_tokens: how many at most.
        sampling: how to choose; the likeliest token if None.
        stop: tokens that end the text; they are not yielded.

    Raises:
        GenerationError: the prompt is empty, or too long for the model.
    """
    if prompt.shape[1] == 0:
        raise GenerationError("The prompt is empty")
    check_new_tokens(max_new_tokens)
    sampling = sampling or Sampling()
    sequence = Sequence(model, hooks, prompt.shape[1] + max_new_tokens)
    generator = torch.Generator(device=next(model.parameters()).device)
    generator.manual_seed(sampling.seed)
    with torch.inference_mode():
        logits = sequence.prefill(prompt)
    for made in range(1, max_new_tokens + 1):
        # Entered for each token: a consumer of this generator must not find itself
        # in inference mode between two of them.
        with torch.inference_mode():
            token = choose(logits, sampling, generator)
            number = int(token)
        if number in stop:
            return
        yield number
        if made < max_new_tokens:
            with torch.inference_mode():
                logits = sequence.step(token)


def refuse_unknown_tokens(
    tokens: list[int] | tuple[int, ...] | torch.Tensor, vocabulary: int, name: str = "The prompt"
) -> None:
    """Refuse tokens that a model has no embedding for.

    Args:
        tokens: their ids.
        vocabulary: how many tokens the model knows.
        name: what has them, for the error.

    Raises:
        GenerationError: one is beyond the vocabulary: the tokenizer is that of another model.
    """
    ids = torch.as_tensor(tokens).flatten()
    beyond = ids[(ids < 0) | (ids >= vocabulary)]
    if beyond.numel():
        raise GenerationError(
            f"{name} has the token {int(beyond[0])}, and the model knows {vocabulary}",
            hint="The tokenizer belongs to another model, or has tokens that were added to it.",
        )


def vocabulary_of(model: Any) -> int:
    """How many tokens a model knows."""
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    return int(rows or model.config.get_text_config().vocab_size)


def context_of(model: Any) -> int | None:
    """How many tokens a model holds; None if it does not say."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text, as the model and its tokenizer declare them."""
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = declared if isinstance(declared, list) else [declared]
    return frozenset(token for token in [*listed, tokenizer.eos_token_id] if isinstance(token, int))


def _last_logits_only(model: Any) -> dict[str, int]:
    accepts = "logits_to_keep" in inspect.signature(type(model).forward).parameters
    return {"logits_to_keep": 1} if accepts else {}
