"""The decode loop gives what the model says, token by token."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.decoding import GenerationError, SamplingParams
from truthgpt_core.hookspecs import hookimpl
from truthgpt_services import InferenceService
from truthgpt_services.inference.decoder import stream
from truthgpt_services.inference.engine import SMALLEST_CACHE, TorchEngine, cache_length

PROMPT = torch.tensor([[40, 69, 76, 76, 79]])
CONTEXT = 512


def decoding(model, plugins, prompt=PROMPT, end=frozenset(), **options):
    params = SamplingParams(**({"max_new_tokens": 40} | options))
    return stream(TorchEngine(model, plugins.hooks), prompt[0].tolist(), params, end=end)


def decoded(model, plugins, *args, **options):
    return list(decoding(model, plugins, *args, **options))


def test_greedy_tokens_are_those_of_transformers(model, bare_plugins):
    """Our loop is faster than `generate` and not different from it."""
    theirs = model.generate(
        PROMPT,
        attention_mask=torch.ones_like(PROMPT),
        max_new_tokens=40,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert decoded(model, bare_plugins) == theirs[0, PROMPT.shape[1] :].tolist()


def test_every_length_up_to_the_model_s_context_works(model, bare_plugins):
    """The last position of the cache can be used, and the one after it is refused."""
    prompt = torch.arange(1, CONTEXT - 9).remainder(300).unsqueeze(0)
    assert len(decoded(model, bare_plugins, prompt, max_new_tokens=10)) == 10
    with pytest.raises(GenerationError, match=r"have 513 tokens, and the model holds 512"):
        decoded(model, bare_plugins, prompt, max_new_tokens=11)


def test_a_prompt_longer_than_the_smallest_cache_is_read_whole(model, bare_plugins):
    """The first token after a long prompt is what one forward pass over it gives."""
    prompt = torch.arange(5, 5 + SMALLEST_CACHE + 20).remainder(300).unsqueeze(0)
    with torch.inference_mode():
        expected = int(model(input_ids=prompt).logits[0, -1].argmax())
    assert decoded(model, bare_plugins, prompt, max_new_tokens=1) == [expected]


def test_tokens_come_as_soon_as_they_are_known(model, bare_plugins):
    """Nothing is computed that nobody asked for, and no token waits for the next."""
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    tokens = decoding(model, bare_plugins)
    next(tokens)
    assert len(calls) == 1
    next(tokens)
    assert len(calls) == 2


def test_a_consumer_is_not_left_in_inference_mode(model, bare_plugins):
    """What is computed between two tokens can have gradients."""
    for _ in decoding(model, bare_plugins, max_new_tokens=2):
        assert not torch.is_inference_mode_enabled()


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(model, bare_plugins):
    """The text stops before the first one, however many may follow."""
    tokens = decoded(model, bare_plugins)
    stop = tokens[7]
    expected = tokens[: tokens.index(stop)]
    assert decoded(model, bare_plugins, end=frozenset({stop})) == expected


@pytest.mark.parametrize(("declared", "expected"), [(None, set()), (7, {7}), ([7, 8], {7, 8})])
def test_a_model_says_what_ends_a_text(model, bare_plugins, declared, expected):
    """It may declare several tokens, one or none."""
    model.generation_config.eos_token_id = declared
    assert TorchEngine(model, bare_plugins.hooks).end_tokens == expected


def test_the_tokenizer_says_what_ends_a_text_too(model, tokenizer, bare_plugins):
    """A text ends with its end-of-text token, if the model declares another or none."""
    model.generation_config.eos_token_id = None
    tokenizer = copy.deepcopy(tokenizer)
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer)
    whole = service.stream("The ", {"max_new_tokens": 8})
    list(whole)
    tokenizer.eos_token_id = whole.tokens[3]
    ended = service.stream("The ", {"max_new_tokens": 8})
    list(ended)
    assert ended.finish_reason == "eos_token"
    assert ended.tokens == whole.tokens[: whole.tokens.index(whole.tokens[3])]


def test_an_empty_prompt_is_an_error(model, bare_plugins):
    """There is no token to continue from."""
    with pytest.raises(GenerationError, match="The prompt is empty"):
        decoded(model, bare_plugins, torch.empty(1, 0, dtype=torch.int64))


def test_no_new_tokens_is_an_error(model, bare_plugins):
    """Asking for none is a mistake and not an empty text."""
    with pytest.raises(GenerationError, match="max_new_tokens is 0"):
        decoded(model, bare_plugins, max_new_tokens=0)


def test_the_same_seed_gives_the_same_text(model, bare_plugins):
    """Whatever else draws random numbers meanwhile; and another seed gives another text."""
    once = decoded(model, bare_plugins, temperature=1.0, seed=3)
    torch.rand(10)
    assert decoded(model, bare_plugins, temperature=1.0, seed=3) == once
    assert decoded(model, bare_plugins, temperature=1.0, seed=4) != once


def test_a_plugin_can_make_the_decode_step(model, bare_plugins):
    """Whoever implements the hook computes every token after the first, given its position."""
    positions = []

    class Parrot:
        @hookimpl
        def make_decode_step(self, model, cache):
            def step(token, position):
                positions.append(int(position))
                return torch.nn.functional.one_hot(token[:, 0] + 1, 320).float()

            return step

    bare_plugins.register_plugin(Parrot(), "parrot")
    tokens = decoded(model, bare_plugins, max_new_tokens=4)
    assert tokens == [tokens[0] + more for more in range(4)]
    assert positions == [5, 6, 7]


@given(st.integers(1, 100_000), st.one_of(st.none(), st.integers(1, 100_000)))
def test_a_cache_holds_what_it_must_and_not_more_than_the_model(positions, limit):
    """Its length is a power of two, or the model's limit, or an error."""
    if limit is not None and positions > limit:
        with pytest.raises(GenerationError, match=f"the model holds {limit}"):
            cache_length(positions, limit)
        return
    length = cache_length(positions, limit)
    assert positions <= length
    assert length == limit or (length >= SMALLEST_CACHE and length & (length - 1) == 0)
    assert limit is None or length <= limit
    assert length in (SMALLEST_CACHE, limit) or length < 2 * positions
