"""The optimization `prompt_lookup`: which requests it decodes, and how it is measured."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
import torch

from truthgpt_core.decoding import Capabilities, SamplingParams
from truthgpt_core.optimization import OptimizationContext, OptimizationError, Stage
from truthgpt_services import InferenceService, ModelService
from truthgpt_services.errors import ModelError
from truthgpt_services.inference.decoder import TokenByToken, stream
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.inference.prompt_lookup import PromptLookupDecoding, choice_of
from truthgpt_services.inference.speculation import PromptLookup
from truthgpt_services.measuring import bench
from truthgpt_services.measuring.bench import FOLLOWED, Bench
from truthgpt_services.models.recipe import SavedStep
from truthgpt_services.results.io import read_report
from truthgpt_services.results.schema import Outcome
from truthgpt_services.services.batch_job import BatchRequest, run_batch
from truthgpt_services.services.speculation import beside_others

LOOKUP = "prompt_lookup_num_tokens"
CONTEXT = OptimizationContext(device="cpu", cache_dir=Path())
GREEDY = {"max_new_tokens": 40}
PROMPT = "The lambda"


def follow(model, next_token):
    """Let a model say after each token what a permutation says, whatever stood before."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding = model.model.embed_tokens.weight
        embedding.copy_(torch.nn.functional.normalize(embedding, dim=-1))
        for token, row in enumerate(embedding):
            model.lm_head.weight[next_token(token)] = row
    return model


def in_fives(token):
    """Return the next of five tokens, which come again and again."""
    return token // 5 * 5 + (token + 1) % 5


def ever_new(token):
    """Return a token so that all come before one comes again."""
    return (token + 111) % 320


def save(model, tokenizer, directory):
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture
def repeating(model):
    return follow(model, in_fives)


@pytest.fixture
def optimized(repeating):
    """A model that repeats itself, with the optimization."""
    return PromptLookupDecoding().apply(repeating, CONTEXT).model


@pytest.fixture
def configured(bare_plugins, tokenizer):
    def configure(model, **config):
        service = InferenceService(bare_plugins)
        service.configure(model, tokenizer, config)
        return service

    return configure


@pytest.fixture
def passes():
    """Count the tokens of each pass through a model."""

    def count(model):
        sizes = []
        model.register_forward_pre_hook(
            lambda _, __, given: sizes.append(given["input_ids"].shape[1]), with_kwargs=True
        )
        return sizes

    return count


def test_a_request_that_says_nothing_is_looked_up(configured, optimized, passes):
    """It has the same text in fewer passes, and an option turns it off."""
    service, sizes = configured(optimized), passes(optimized)
    plain = service.generate(PROMPT, {**GREEDY, LOOKUP: 0})
    assert len(sizes) == GREEDY["max_new_tokens"]
    assert not PromptLookupDecoding().was_used(optimized)
    sizes.clear()
    assert service.generate(PROMPT, GREEDY) == plain
    assert len(sizes) < GREEDY["max_new_tokens"] / 2
    assert PromptLookupDecoding().was_used(optimized)


def test_right_guesses_are_counted(configured, optimized):
    """Those of a text that repeats itself are all right."""
    configured(optimized).generate(PROMPT, GREEDY)
    choice = choice_of(optimized)
    assert choice.right == choice.guessed > 0


def test_a_text_in_which_nothing_repeats_uses_none(configured, model):
    """Nothing was guessed, so nothing is proven."""
    PromptLookupDecoding().apply(follow(model, ever_new), CONTEXT)
    configured(model).generate(PROMPT, GREEDY)
    assert not PromptLookupDecoding().was_used(model)


def test_it_guesses_no_more_than_was_chosen(configured, repeating, passes):
    PromptLookupDecoding(tokens=2).apply(repeating, CONTEXT)
    service, sizes = configured(repeating), passes(repeating)
    service.generate(PROMPT, GREEDY)
    assert max(sizes[1:]) == 3


def test_it_is_not_applied_twice(optimized):
    with pytest.raises(OptimizationError, match="looks tokens up in its text already"):
        PromptLookupDecoding().apply(optimized, CONTEXT)


@pytest.mark.parametrize("wrong", [0, 65, "many", None])
def test_a_wrong_option_is_named(wrong):
    with pytest.raises(OptimizationError, match="tokens"):
        PromptLookupDecoding(tokens=wrong)


def test_its_settings_make_the_same_again(repeating):
    """What is saved with a model is what it was made with."""
    settings = PromptLookupDecoding(tokens=3).apply(repeating, CONTEXT).settings
    assert settings == {"tokens": 3}
    assert PromptLookupDecoding(**settings).stage is Stage.EXECUTION
    assert PromptLookupDecoding().check("cuda:0").ok


def test_an_engine_that_cannot_crop_decodes_token_by_token(bare_plugins, configured, optimized):
    """The model still generates: nobody asked for more with this request."""
    engine = TorchEngine(optimized, bare_plugins.hooks)
    engine.capabilities = Capabilities(crop=False)
    assert configured(engine).generate(PROMPT, GREEDY)
    assert not PromptLookupDecoding().was_used(optimized)


def test_answers_are_found_again_in_the_response_cache(configured, optimized):
    """What is counted is not part of the model."""
    service = configured(optimized, use_cache=True)
    assert service.generate(PROMPT, GREEDY) == service.generate(PROMPT, GREEDY)
    assert service.cache_statistics.hits == 1


@pytest.mark.parametrize("options", [{}, {LOOKUP: 8}], ids=["chosen", "asked for"])
def test_prompts_are_scored_all_the_same(configured, optimized, tokenizer, options):
    """Each token of the prompt has its log-probability, as without looking up."""
    service = configured(optimized)
    found = []
    for more in (options, {LOOKUP: 0}):
        text = service.stream(PROMPT, {**GREEDY, "prompt_logprobs": 0, **more})
        list(text)
        found.append(text.prompt_logprobs)
    assert found[0] == found[1]
    assert len(found[0]) == len(tokenizer(PROMPT).input_ids)


@pytest.mark.parametrize(
    ("options", "looks_up"),
    [({}, False), ({"temperature": 0.0}, False), ({LOOKUP: 4}, True)],
)
def test_beside_others_it_has_to_be_asked_for(
    configured, optimized, passes, bare_plugins, options, looks_up
):
    """Where several texts are generated at once, none is kept out of their passes."""
    service, sizes = configured(optimized), passes(optimized)
    engine = TorchEngine(optimized, bare_plugins.hooks)
    service.generate(PROMPT, beside_others(engine, {**GREEDY, **options}))
    assert (len(sizes) < GREEDY["max_new_tokens"]) is looks_up


def test_other_models_are_given_no_option(repeating, bare_plugins):
    """A plugin's decoder would have to know it."""
    assert beside_others(TorchEngine(repeating, bare_plugins.hooks), GREEDY) == GREEDY


@pytest.mark.parametrize(("given", "looks_up"), [({}, False), ({LOOKUP: 4}, True)])
def test_a_batch_looks_up_where_the_command_says_so(
    repeating, tokenizer, tmp_path, monkeypatch, given, looks_up
):
    """Its texts are generated together."""
    looked = []
    decode = PromptLookup.decode

    def spy(self, *args):
        looked.append(args)
        return decode(self, *args)

    monkeypatch.setattr(PromptLookup, "decode", spy)
    step = SavedStep("prompt_lookup", "execution", {"tokens": 16}, "")
    ModelService().save_model(repeating, tokenizer, tmp_path / "model", source="", steps=[step])
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": PROMPT}))
    request = BatchRequest(
        model=str(tmp_path / "model"),
        prompts=prompts,
        output=tmp_path / "out.jsonl",
        options=GREEDY,
        given=given,
        raw=True,
        device="cpu",
    )
    assert run_batch(request).failed == 0
    assert bool(looked) is looks_up


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
def test_a_model_that_repeats_itself_is_saved_with_it(
    repeating, tokenizer, tmp_path, truthgpt, configured, bare_plugins
):
    """It is proven that tokens ran through it; the saved model looks up, and has the same text."""
    source, out = save(repeating, tokenizer, tmp_path / "source"), tmp_path / "out"
    done = truthgpt(
        *("optimize", source, "--apply", "prompt_lookup:tokens=8", "--keep-all", "--quick"),
        *("--device", "cpu", "--engine", "torch", "-o", out),
    )
    assert done.returncode == 0, done.stderr
    (step,) = read_report(out).steps
    assert step.outcome is Outcome.ACCEPTED
    assert step.notes[0].startswith("How fast it decodes depends on the text")
    quality = read_report(out).variant("prompt_lookup").measured.quality
    assert (quality.kl_mean, quality.top1_agreement) == (0.0, 1.0)
    (saved,) = json.loads((out / "truthgpt.json").read_text())["steps"]
    assert (saved["name"], saved["settings"]) == ("prompt_lookup", {"tokens": 8})
    model = ModelService(bare_plugins).load_model(str(out))
    text = configured(model).generate(PROMPT, GREEDY)
    assert text == configured(repeating).generate(PROMPT, GREEDY)
    assert choice_of(model).guessed > 0
    again = truthgpt("optimize", out, "--apply", "prompt_lookup", "-o", tmp_path / "again")
    assert again.returncode != 0
    assert "the model has it already" in again.stderr


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
