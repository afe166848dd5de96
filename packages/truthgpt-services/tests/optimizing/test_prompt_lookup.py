"""The optimization `prompt_lookup` where nothing repeats, and decoders of their own, measured."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
from following import ever_new, follow, in_fives, save

from truthgpt_core.decoding import SamplingParams
from truthgpt_core.optimization import OptimizationContext
from truthgpt_services.errors import ModelError
from truthgpt_services.inference.decoder import TokenByToken, stream
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.inference.prompt_lookup import PromptLookupDecoding
from truthgpt_services.inference.speculation import PromptLookup
from truthgpt_services.measuring import bench
from truthgpt_services.measuring.bench import FOLLOWED, Bench
from truthgpt_services.results.io import read_report
from truthgpt_services.results.schema import Outcome

PROMPT = "The lambda"


def test_a_text_in_which_nothing_repeats_uses_none(configured, model):
    """Nothing was guessed, so nothing is proven."""
    context = OptimizationContext(device="cpu", cache_dir=Path())
    PromptLookupDecoding().apply(follow(model, ever_new), context)
    configured(model).generate(PROMPT, {"max_new_tokens": 40})
    assert not PromptLookupDecoding().was_used(model)


# Measuring


class Recorded(PromptLookup):
    """Looks up, and keeps what it yields."""

    def __init__(self, most):
        super().__init__(most)
        self.yielded = []

    def decode(self, *args):
        for tokens in super().decode(*args):
            self.yielded.append(list(tokens))
            yield tokens


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but when it is moved."""
    made = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(bench, "time", types.SimpleNamespace(perf_counter=lambda: made.now))
    return made


@pytest.fixture
def measured(bare_plugins, tokenizer, clock):
    """A bench for a model in which each pass takes a second."""

    def make(model, own_decoder=lambda: None):
        def tick(*_):
            clock.now += 1

        model.register_forward_hook(tick)
        return Bench(TorchEngine(model, bare_plugins.hooks), tokenizer, own_decoder)

    return make


def test_a_slice_takes_its_share_of_the_passes(measured, repeating, tokenizer, bare_plugins):
    """Each token takes the passes through the tokens that they gave; the tokens are the model's."""
    ids = tokenizer(PROMPT).input_ids
    decoder = Recorded(16)
    found = measured(repeating, lambda: decoder)
    assert found.read_prompt(ids, 13) == 1.0
    seconds = [found.decode(tokens) for tokens in (4, 4, 4)]
    given = [len(tokens) for tokens in decoder.yielded[1:]]
    assert seconds == [pytest.approx(4 * len(given) / sum(given))] * 3
    assert len(given) < sum(given) / 2
    made = [token for tokens in decoder.yielded for token in tokens]
    assert len(made) >= FOLLOWED
    engine = TorchEngine(repeating, bare_plugins.hooks)
    greedy = stream(engine, ids, SamplingParams(max_new_tokens=len(made)))
    assert made == list(greedy)


def test_without_a_decoder_of_its_own_each_token_is_a_pass(measured, repeating, tokenizer):
    found = measured(repeating)
    assert found.read_prompt(tokenizer(PROMPT).input_ids, 6) == 1.0
    assert [found.decode(3), found.decode(2)] == [3.0, 2.0]


def test_each_prompt_is_a_text_of_its_own(measured, repeating, tokenizer):
    """What was looked up in one is not known in the next."""
    decoders = []

    def make():
        decoders.append(Recorded(16))
        return decoders[-1]

    found, ids = measured(repeating, make), tokenizer(PROMPT).input_ids
    for _ in range(2):
        found.read_prompt(ids, 5)
        found.decode(4)
    assert decoders[0].yielded == decoders[1].yielded


def test_a_context_that_is_full_ends_the_text(measured, repeating, tokenizer):
    """It is followed for as many tokens as there is room for."""
    limit = repeating.config.max_position_embeddings
    ids = (tokenizer(PROMPT).input_ids * limit)[: limit - 20]
    decoder = Recorded(64)
    found = measured(repeating, lambda: decoder)
    found.read_prompt(ids, 13)
    assert 0 < found.decode(12) <= 12
    assert 20 <= sum(map(len, decoder.yielded)) <= 21


def test_what_follows_the_end_of_a_text_is_not_timed(measured, repeating, tokenizer):
    ids = tokenizer(PROMPT).input_ids
    repeating.generation_config.eos_token_id = in_fives(in_fives(ids[-1]))
    decoder = Recorded(16)
    found = measured(repeating, lambda: decoder)
    found.read_prompt(ids, 13)
    assert found.decode(12) == 12.0
    assert sum(map(len, decoder.yielded)) == 2


def test_a_decoder_that_ends_too_early_is_named(measured, repeating, tokenizer):
    class Short(TokenByToken):
        name = "short"

        def decode(self, *args):
            yield from [next(super().decode(*args))]

    found = measured(repeating, Short)
    found.read_prompt(tokenizer(PROMPT).input_ids, 5)
    with pytest.raises(ModelError, match='"short" ended after 1 tokens'):
        found.decode(4)


# The main job


@pytest.mark.slow
def test_a_model_that_repeats_nothing_is_left_without(model, tokenizer, tmp_path, truthgpt):
    """No guess was checked, so nothing that is measured would be its doing."""
    source = save(follow(model, ever_new), tokenizer, tmp_path / "source")
    done = truthgpt(
        *("optimize", source, "--apply", "prompt_lookup", "--quick"),
        *("--device", "cpu", "--engine", "torch", "-o", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    (step,) = read_report(tmp_path / "out").steps
    assert step.outcome is Outcome.REJECTED
    assert step.reason.startswith("No measured token is known to have run through it")
