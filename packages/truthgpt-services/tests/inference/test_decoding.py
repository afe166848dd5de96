"""The decode loop gives what the model says, token by token."""

from __future__ import annotations

import copy
import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.decoding import GenerationError, SamplingParams
from truthgpt_core.hookspecs import hookimpl
from truthgpt_services import InferenceService
from truthgpt_services.inference.decoder import stream
from truthgpt_services.inference.engine import SMALLEST_CACHE, TorchEngine, cache_length
from truthgpt_services.inference.sampling import choose

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


LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -8.0])


def exact(temperature=1.0, keep=range(8)):
    """The distribution over tokens, computed without the code under test."""
    weights = [math.exp(float(LOGITS[token]) / temperature) for token in keep]
    return {token: weight / sum(weights) for token, weight in zip(keep, weights, strict=True)}


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingParams(temperature=1.0), exact()),
        (SamplingParams(temperature=0.5), exact(0.5)),
        (SamplingParams(temperature=3.0), exact(3.0)),
        (SamplingParams(temperature=1.0, top_k=3), exact(keep=range(3))),
        # 0.392 + 0.238 + 0.144 = 0.774 is the first sum that reaches 0.7.
        (SamplingParams(temperature=1.0, top_p=0.7), exact(keep=range(3))),
        (SamplingParams(temperature=1.0, top_k=4, top_p=0.99), exact(keep=range(4))),
        (SamplingParams(temperature=2.0, top_k=100), exact(2.0)),
    ],
)
def test_tokens_are_drawn_with_their_exact_probabilities(sampling, expected):
    """Chi-square over 20000 draws with a fixed seed: temperature, top_k and top_p do what they say.

    The bound is the 99.99th percentile for 7 degrees of freedom, the most there are here.
    """
    draws = 20_000
    rows = LOGITS.expand(draws, -1)
    tokens = choose(rows, sampling, torch.Generator().manual_seed(0))
    counts = Counter(tokens[:, 0].tolist())
    assert set(counts) <= set(expected)
    statistic = sum(
        (counts[token] - draws * share) ** 2 / (draws * share) for token, share in expected.items()
    )
    assert statistic < 29.88


# Eighths: two that differ by less than float32 can tell would be equally likely.
logit_rows = st.lists(st.integers(-160, 160), min_size=2, max_size=12, unique=True).map(
    lambda row: torch.tensor([row]) / 8
)


@given(logit_rows, st.integers(1, 12), st.integers(0, 99))
def test_top_k_never_draws_what_is_not_among_the_k_likeliest(row, k, seed):
    """For whatever logits and k."""
    generator = torch.Generator().manual_seed(seed)
    token = choose(row, SamplingParams(temperature=5.0, top_k=k), generator)
    assert int(token) in row[0].argsort(descending=True)[:k].tolist()


@given(logit_rows, st.floats(0.01, 1.0), st.integers(0, 99))
def test_top_p_draws_from_the_fewest_that_reach_p(row, p, seed):
    """What is likelier than the token drawn does not reach p without it."""
    generator = torch.Generator().manual_seed(seed)
    token = int(choose(row, SamplingParams(temperature=5.0, top_p=p), generator))
    probabilities = (row[0].double() / 5.0).softmax(-1)
    likelier = probabilities[probabilities > probabilities[token]].sum()
    assert float(likelier) < p + 1e-5


@given(logit_rows, st.sampled_from([{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 0.0}]))
def test_the_narrowest_sampling_is_greedy(row, narrow):
    """One token to choose from, or no temperature: the likeliest is taken."""
    sampling = SamplingParams(**({"temperature": 1.0} | narrow))
    assert int(choose(row, sampling, torch.Generator())) == int(row.argmax())


@given(logit_rows, st.floats(1e-300, 1e-3))
def test_a_temperature_near_nothing_does_not_crash(row, temperature):
    """However small it is, a token is drawn, and it is the likeliest."""
    token = int(
        choose(row, SamplingParams(temperature=temperature), torch.Generator().manual_seed(0))
    )
    assert token == int(row.argmax())


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
    ],
)
def test_a_sampling_out_of_range_is_refused_by_name(wrong):
    """The option that is wrong stands in the error."""
    with pytest.raises(GenerationError, match=next(iter(wrong))):
        SamplingParams(**wrong)


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
