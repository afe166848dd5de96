"""Decoding several prompts together: one pass through the model for a token of each."""

from __future__ import annotations

import collections.abc as abc
from contextlib import contextmanager
from typing import Any

import torch

from truthgpt_core.hookspecs import Hooks
from truthgpt_services.inference.decoding import Sampling, Sequence, choose


def generate_rows(
    model: Any,
    hooks: Hooks,
    prompts: abc.Sequence[abc.Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: frozenset[int] = frozenset(),
    ended: abc.Callable[[int, int], bool] | None = None,
) -> list[list[int]]:
    """Generate the tokens that follow each of some prompts.

    Each row is what `stream` yields for its prompt alone, but for rounding: a sum over more
    rows may be added up in another order, and in less than float32, or with layers that are
    quantized, that can decide between two tokens which are nearly as likely.

    Args:
        model: a causal language model of transformers.
        hooks: the hooks of the plugin manager.
        prompts: the tokens of each, at least one.
        max_new_tokens: how many at most, for each.
        sampling: how to choose; each row draws from a generator of its own.
        stop: tokens that end a text; they are not returned.
        ended: is told the number of a row and its next token; True ends the row with it.

    Raises:
        GenerationError: the model cannot hold the longest of them.
    """
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    # A new token is beside those of the other rows, so what is short is padded on the left.
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, longest - len(prompt) :] = 1
    generators = [torch.Generator(device=device).manual_seed(sampling.seed) for _ in prompts]
    made: list[list[int]] = [[] for _ in prompts]
    going = set(range(len(prompts)))
    sequence = Sequence(model, hooks, longest + max_new_tokens, rows=len(prompts))
    with torch.inference_mode(), _padding_hidden(model, sequence, mask):
        logits = sequence.prefill(ids, (mask.cumsum(-1) - 1).clamp(min=0))
        for number in range(1, max_new_tokens + 1):
            tokens = _choose_each(logits, sampling, generators)
            for row, token in enumerate(tokens[:, 0].tolist()):
                if row not in going:
                    continue
                if token in stop:
                    going.remove(row)
                    continue
                made[row].append(token)
                if ended is not None and ended(row, token):
                    going.remove(row)
            if not going or number == max_new_tokens:
                break
            # Rows that have ended go on unheard: to take them out of the cache would change
            # its shape, for which code is compiled anew.
            logits = sequence.step(tokens)
    return made


def _choose_each(
    logits: torch.Tensor, sampling: Sampling, generators: list[torch.Generator]
) -> torch.Tensor:
    if sampling.temperature == 0:
        return choose(logits, sampling, None)
    rows = [
        choose(logits[row : row + 1], sampling, generator)
        for row, generator in enumerate(generators)
    ]
    return torch.cat(rows)


@contextmanager
def _padding_hidden(model: Any, sequence: Sequence, prompt: torch.Tensor) -> abc.Iterator[None]:
    """Let nobody who calls the model with the cache of some rows attend to their padding.

    Plugins do so too: a step of theirs need not know that there is padding.

    Args:
        model: the model.
        sequence: the rows.
        prompt: of shape (rows, tokens), 0 where there is padding.
    """
    if bool(prompt.all()):
        # Then nothing need be added to what `stream` computes.
        yield
        return

    def add_mask(module: Any, arguments: Any, keywords: Any) -> Any:
        if keywords.get("past_key_values") is sequence.cache:
            length = sequence.fixed_length
            if length is None:
                length = int(sequence.cache.get_seq_length()) + keywords["input_ids"].shape[1]
            mask = torch.nn.functional.pad(prompt, (0, length - prompt.shape[1]), value=1)
            keywords = {**keywords, "attention_mask": mask}
        return arguments, keywords

    handle = model.register_forward_pre_hook(add_mask, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
