"""Tokens are chosen as the generation options say, to the last digit of their probabilities."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from truthgpt_core.decoding import GenerationError, LogitsProcessor, SamplingParams
from truthgpt_services.inference.sampling import Sampler, candidates, token_logprobs

LOGITS = [2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -8.0]
PROMPT, ANSWER = [4, 1], [0, 0, 3]

LEAST_P = 1e-4
"""A distribution is another one if less than this speaks for it; seeds are fixed."""


def exact(logits=LOGITS, temperature=1.0, keep=None):
    """The distribution over tokens, computed without the code under test."""
    keep = range(len(logits)) if keep is None else keep
    weights = {token: math.exp(logits[token] / temperature) for token in keep}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


def chi_square_p(tokens, expected):
    """How likely it is that tokens which follow a distribution are as far from it as these."""
    counts = Counter(tokens)
    if not counts.keys() <= expected.keys():
        return 0.0
    statistic = sum(
        (counts[token] - len(tokens) * share) ** 2 / (len(tokens) * share)
        for token, share in expected.items()
    )
    freedom = torch.tensor((len(expected) - 1) / 2)
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2)))


def changed(**new):
    """The logits, some of them replaced."""
    return [new.get(f"t{token}", logit) for token, logit in enumerate(LOGITS)]


CASES = [
    ({}, exact()),
    ({"temperature": 0.5}, exact(temperature=0.5)),
    ({"temperature": 3.0}, exact(temperature=3.0)),
    ({"top_k": 3}, exact(keep=range(3))),
    ({"temperature": 2.0, "top_k": 100}, exact(temperature=2.0)),
    # 0.392 + 0.238 + 0.144 = 0.774 is the first sum that reaches 0.7.
    ({"top_p": 0.7}, exact(keep=range(3))),
    ({"top_k": 4, "top_p": 0.99}, exact(keep=range(4))),
    # Of three tokens, the first two have 0.814 of the probability.
    ({"top_k": 3, "top_p": 0.81}, exact(keep=range(2))),
    # exp(-1.5) is 0.223, exp(-1) is 0.368.
    ({"min_p": 0.3}, exact(keep=range(3))),
    ({"min_p": 0.3, "temperature": 2.0}, exact(temperature=2.0, keep=range(5))),
    ({"min_p": 0.3, "top_k": 2}, exact(keep=range(2))),
    ({"min_p": 0.5, "top_p": 0.99}, exact(keep=range(2))),
    ({"logit_bias": {0: -100.0, 7: 9.5}}, exact(changed(t0=-98.0, t7=1.5))),
    ({"logit_bias": {7: 9.5}, "top_k": 2}, exact(changed(t7=1.5), keep=[0, 1])),
    # Of prompt and answer: 4, 1, 0 and 3.
    ({"repetition_penalty": 2.0}, exact(changed(t0=1.0, t1=0.75, t3=0.25))),
    ({"repetition_penalty": 0.5, "top_p": 0.8}, exact(changed(t0=4.0, t1=3.0), keep=[0, 1])),
    # Of the answer alone: 0 twice and 3 once.
    ({"presence_penalty": 1.0}, exact(changed(t0=1.0, t3=-0.5))),
    ({"frequency_penalty": 1.0}, exact(changed(t0=0.0, t3=-0.5))),
    (
        {"frequency_penalty": 1.0, "presence_penalty": -0.5},
        exact(changed(t0=0.5, t3=0.0)),
    ),
    (
        {"repetition_penalty": 2.0, "frequency_penalty": 1.0},
        exact(changed(t0=-1.0, t1=0.75, t3=-0.75)),
    ),
    (
        {"logit_bias": {3: -2.5}, "repetition_penalty": 2.0},
        exact(changed(t0=1.0, t1=0.75, t3=-4.0)),
    ),
    ({"min_new_tokens": 4}, exact(keep=[0, 1, 3, 4, 5, 6, 7])),
    ({"min_new_tokens": 3}, exact()),
    (
        {"min_new_tokens": 4, "top_k": 2, "temperature": 2.0},
        exact(temperature=2.0, keep=[0, 1]),
    ),
]


def sampler_of(options, seed=0, **more):
    """A sampler of the sequence that `CASES` are about; token 2 ends a text."""
    params = SamplingParams(**({"temperature": 1.0, "seed": seed} | options))
    return Sampler(params, prompt_length=len(PROMPT), end=frozenset({2}), **more)


@pytest.mark.parametrize(("options", "expected"), CASES, ids=[str(each[0]) for each in CASES])
def test_tokens_are_drawn_with_their_exact_probabilities(options, expected):
    """Chi-square over 10000 draws through the sampler: each option does what it says."""
    sampler = sampler_of(options)
    logits = torch.tensor(LOGITS)
    tokens = [sampler(logits, PROMPT + ANSWER) for _ in range(10_000)]
    assert chi_square_p(tokens, expected) > LEAST_P


@pytest.mark.parametrize(
    ("options", "expected"), CASES[:12], ids=[str(each[0]) for each in CASES[:12]]
)
def test_the_candidates_have_their_exact_probabilities(options, expected):
    """Chi-square over 100000 draws of the last step, and the probabilities themselves."""
    params = SamplingParams(**({"temperature": 1.0} | options))
    found = candidates(np.array(LOGITS, dtype=np.float32), params)
    kept = range(len(LOGITS)) if found.tokens is None else found.tokens.tolist()
    shares = np.diff(found.cumulative, prepend=0) / found.cumulative[-1]
    assert dict(zip(kept, shares, strict=True)) == pytest.approx(expected, rel=1e-5)
    uniform = np.random.default_rng(0).random(100_000)
    assert chi_square_p(found.pick(uniform).tolist(), expected) > LEAST_P


def test_the_ends_of_the_random_numbers_give_tokens_that_can_come():
    """Neither 0 nor the number below 1 gives a token whose probability is 0."""
    found = candidates(
        np.array([-np.inf, 0.0, 0.0, -np.inf], dtype=np.float32), SamplingParams(temperature=1.0)
    )
    assert found.pick(np.array([0.0, 0.5, 1.0 - 2.0**-53])).tolist() == [1, 2, 2]


def test_seeds_that_follow_each_other_are_independent():
    """Texts of one prompt have seeds one apart: their first tokens are as random as any."""
    logits = torch.tensor(LOGITS)
    tokens = [sampler_of({}, seed=seed)(logits, PROMPT) for seed in range(5_000)]
    assert chi_square_p(tokens, exact()) > LEAST_P
    alike = sum(a == b for a, b in pairwise(tokens)) / len(tokens)
    assert alike == pytest.approx(sum(share**2 for share in exact().values()), abs=0.03)


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**32, 2**64 - 1])
def test_every_seed_gives_the_same_tokens_again(seed):
    """And not those of another seed, whose lower bits are the same."""
    logits = torch.zeros(1000)

    def drawn(seed):
        sampler = sampler_of({}, seed=seed)
        return [sampler(logits, PROMPT) for _ in range(8)]

    assert drawn(seed) == drawn(seed)
    assert drawn(seed) != drawn(seed + 2**33 if seed < 0 else seed - 2**33)


# Eighths: two that differ by less than float32 can tell would be equally likely.
logit_rows = st.lists(st.integers(-160, 160), min_size=2, max_size=40, unique=True).map(
    lambda row: torch.tensor(row) / 8
)
floats = {"allow_nan": False, "width": 32}


def kept_by(params, row):
    """The tokens that can be chosen."""
    found = candidates(row.numpy().copy(), params)
    return set(range(len(row)) if found.tokens is None else found.tokens.tolist())


def kept_by_transformers(row, *warpers):
    scores = row[None].clone()
    for warper in warpers:
        scores = warper(None, scores)
    return set(torch.isfinite(scores[0]).nonzero()[:, 0].tolist())


@given(logit_rows, st.floats(0.25, 5.0, **floats), st.integers(1, 50))
@example(torch.tensor([0, 1, 69, -138, -137]) / 8, 0.25, 4)
def test_top_k_keeps_what_that_of_transformers_keeps(row, temperature, k):
    """After the temperature."""
    ours = kept_by(SamplingParams(temperature=temperature, top_k=k), row)
    theirs = [TemperatureLogitsWarper(temperature), TopKLogitsWarper(k)]
    assert ours == kept_by_transformers(row, *theirs)


@given(logit_rows, st.floats(0.25, 5.0, **floats), st.integers(0, 50), st.floats(0.01, 0.99))
def test_top_p_keeps_what_that_of_transformers_keeps(row, temperature, k, p):
    """With and without top_k before it, but for what reaches p to the sixth digit."""
    theirs = [TemperatureLogitsWarper(temperature)] + ([TopKLogitsWarper(k)] if k else [])
    params = [
        SamplingParams(temperature=temperature, top_k=k, top_p=min(max(near, 1e-6), 1.0))
        for near in (p - 2e-6, p + 2e-6)
    ]
    least, most = (kept_by(each, row) for each in params)
    assert least <= kept_by_transformers(row, *theirs, TopPLogitsWarper(p)) <= most


@given(logit_rows, st.floats(0.25, 5.0, **floats), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_min_p_keeps_what_that_of_transformers_keeps(row, temperature, p, least):
    """After top_p, but for what is at the border to the sixth digit."""
    theirs = [TemperatureLogitsWarper(temperature), TopPLogitsWarper(1.0), MinPLogitsWarper(least)]
    narrow, wide = (
        kept_by(SamplingParams(temperature=temperature, min_p=least * factor), row)
        for factor in (1 + 2e-6, 1 - 2e-6)
    )
    assert narrow <= kept_by_transformers(row, *theirs) <= wide
    both = SamplingParams(temperature=temperature, top_p=p, min_p=least)
    assert kept_by(both, row) == kept_by(
        SamplingParams(temperature=temperature, top_p=p), row
    ) & kept_by(SamplingParams(temperature=temperature, min_p=least), row)


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("p", [0.1, 0.9, 0.999])
def test_top_p_keeps_the_fewest_tokens_of_a_large_vocabulary(spread, p):
    """However flat the distribution is: one fewer would not reach p."""
    row = torch.randn(30_000, generator=torch.Generator().manual_seed(0)) * spread
    kept = candidates(row.numpy().copy(), SamplingParams(temperature=1.0, top_p=p)).tokens
    shares = row.double().softmax(-1)
    assert len(set(kept.tolist())) == len(kept)
    assert float(shares[kept].sum()) >= p - 1e-6
    assert float(shares[kept[:-1]].sum()) < p + 1e-6
    left = torch.ones(len(row), dtype=torch.bool)
    left[kept] = False
    assert float(shares[left].max()) <= float(shares[kept].min()) * (1 + 1e-6)


@given(
    logit_rows,
    st.lists(st.integers(0, 1), max_size=9),
    st.floats(0.125, 9.0, **floats),
)
def test_the_repetition_penalty_is_that_of_transformers(row, tokens, penalty):
    """It counts a token once, wherever it is, and whichever sign its logit has."""
    sampler = Sampler(
        SamplingParams(repetition_penalty=penalty, logprobs=0), prompt_length=len(tokens) // 2
    )
    chosen = sampler(row, tokens)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(
        torch.tensor([tokens], dtype=torch.int64), row[None].clone()
    )
    assert float(theirs[0, chosen]) == pytest.approx(float(theirs.max()))


@given(logit_rows, st.integers(0, 6), st.integers(0, 6))
def test_min_new_tokens_is_that_of_transformers(row, made, least):
    """End tokens cannot come before, and can after."""
    end, tokens = int(row.argmax()), [0] * (3 + made)
    params = SamplingParams(min_new_tokens=least)
    ours = Sampler(params, prompt_length=3, end=frozenset({end, 10**6}))(row, tokens)
    processor = MinNewTokensLengthLogitsProcessor(3, least, end, device="cpu")
    assert ours == int(processor(torch.tensor([tokens]), row[None].clone()).argmax())


@given(st.lists(st.integers(0, 7), min_size=1, max_size=20), st.data())
def test_counts_are_right_however_many_tokens_come_at_once(tokens, data):
    """A sampler that sees each token chooses as one that sees them all together."""
    options = {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.7}
    prompt = data.draw(st.integers(0, len(tokens)))
    params, logits = SamplingParams(**options, presence_penalty=0.2), torch.tensor(LOGITS)
    often = Sampler(params, prompt_length=prompt)
    lengths = data.draw(st.sets(st.integers(prompt, len(tokens))))
    for length in sorted(lengths):
        often(logits, tokens[:length])
    once = Sampler(params, prompt_length=prompt)
    assert often(logits, tokens) == once(logits, tokens)


@given(logit_rows, st.sampled_from([{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, None]))
def test_the_narrowest_sampling_is_greedy(row, narrow):
    """One token to choose from, or no temperature: the likeliest is taken."""
    params = SamplingParams(**({"temperature": 1.0} | narrow if narrow else {}))
    assert Sampler(params, prompt_length=0)(row, []) == int(row.argmax())


@given(logit_rows, st.floats(1e-300, 1e-3))
def test_a_temperature_near_nothing_does_not_crash(row, temperature):
    """However small it is, a token is drawn, and it is the likeliest."""
    sampler = Sampler(SamplingParams(temperature=temperature), prompt_length=0)
    assert sampler(row, []) == int(row.argmax())


@pytest.mark.parametrize("narrow", [{"top_k": 3}, {"top_p": 0.3}])
def test_of_equally_likely_tokens_those_with_lower_ids_are_kept(narrow):
    """In half precision many are, and the number that was asked for is the number there is."""
    found = candidates(np.zeros(10, dtype=np.float32), SamplingParams(temperature=1.0, **narrow))
    assert found.tokens.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_of_any_precision_are_taken_and_left_as_they_are(dtype, temperature):
    """The engine may use them again."""
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    params = SamplingParams(temperature=temperature, logit_bias={0: 1.0}, top_k=2)
    assert Sampler(params, prompt_length=0)(logits, []) in (0, 1)
    assert logits.tolist() == LOGITS


OPTIONS = [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}, {"logit_bias": {0: 1.0}}]
BROKEN = [[0.0, math.nan, 1.0], [0.0, math.inf, 1.0]]


@pytest.mark.parametrize("options", [*OPTIONS, {"temperature": 1.0, "top_k": 1}, {"logprobs": 2}])
@pytest.mark.parametrize("logits", BROKEN)
def test_logits_that_are_not_finite_are_one_clear_error(options, logits):
    """NaN and infinity, however the token is chosen."""
    with pytest.raises(GenerationError, match=r"the model's logits have (nan|inf)"):
        Sampler(SamplingParams(**options), prompt_length=0)(torch.tensor(logits), [])


class Everything(LogitsProcessor):
    """Rules out all tokens."""

    def __call__(self, logits, tokens):
        return logits - torch.inf


@pytest.mark.parametrize("options", OPTIONS)
def test_that_every_token_is_ruled_out_is_one_clear_error(options):
    """Not a draw from nothing."""
    sampler = Sampler(SamplingParams(**options), prompt_length=0, processors=[Everything()])
    with pytest.raises(GenerationError, match="every one is ruled out"):
        sampler(torch.tensor(LOGITS), [])


def test_a_bias_of_an_unknown_token_is_refused():
    """Its id stands in the error."""
    sampler = Sampler(SamplingParams(logit_bias={8: 1.0}), prompt_length=0)
    with pytest.raises(GenerationError, match="the token 8, and the model knows 8"):
        sampler(torch.tensor(LOGITS), [])


def test_log_probabilities_are_those_of_the_model_itself():
    """Before anything changes them, whichever token is chosen."""
    options = {"logit_bias": {0: -100.0}, "temperature": 0.3, "top_k": 1}
    sampler = sampler_of(options | {"logprobs": 2})
    assert sampler(torch.tensor(LOGITS), PROMPT) == 1
    expected = torch.tensor(LOGITS).log_softmax(-1).tolist()
    (found,) = sampler.logprobs
    assert (found.token, found.logprob) == (1, pytest.approx(expected[1]))
    assert [token for token, _ in found.top] == [0, 1]
    assert [log for _, log in found.top] == pytest.approx(expected[:2])


def test_none_are_returned_where_none_are_wanted():
    """Zero is not none: the token itself has one."""
    assert sampler_of({}).logprobs == []
    sampler = sampler_of({"logprobs": 0})
    sampler(torch.tensor(LOGITS), PROMPT)
    assert [each.top for each in sampler.logprobs] == [()]


def test_the_likeliest_token_is_the_greedy_one_and_none_is_impossible():
    """Of equally likely ones too; a token that the model rules out is not named."""
    logits = torch.tensor([[-torch.inf, 3.0, 3.0, 1.0]])
    (found,) = token_logprobs(logits, [3], 4)
    assert [token for token, _ in found.top] == [1, 2, 3]


def test_pieces_of_a_prompt_have_the_log_probabilities_of_the_whole():
    """However long the pieces are."""
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    tokens = list(range(50)) * 4
    whole = token_logprobs(logits, tokens, 3)
    pieces = token_logprobs(logits[:130], tokens[:130], 3)
    assert pieces + token_logprobs(logits[130:], tokens[130:], 3) == whole
    expected = logits.log_softmax(-1)[torch.arange(200), tokens].tolist()
    assert [each.logprob for each in whole] == pytest.approx(expected)


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
