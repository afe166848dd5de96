"""Prompts that are generated together give what each gives alone."""

from __future__ import annotations

import pytest
import torch

from truthgpt_core.decoding import GenerationError
from truthgpt_core.hookspecs import hookimpl
from truthgpt_services import InferenceService

PROMPTS = [
    "The import statement",
    "x",
    "A class body may hold any statement, and so may a function.",
    "def f(x): return",
    "When a name is not found at all, a NameError exception is raised, and",
]


@pytest.fixture
def service(bare_plugins, model, tokenizer):
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer)
    return service


def alone(service, prompts, options):
    return [service.generate(prompt, options) for prompt in prompts]


@pytest.mark.parametrize("grows", [False, True], ids=["fixed cache", "growing cache"])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.8, "top_k": 5, "top_p": 0.9}],
    ids=["greedy", "sampled", "top"],
)
def test_each_text_is_what_it_is_alone(service, model, options, grows):
    """Neither padding nor neighbors change a text, in whichever kind of cache."""
    model._can_compile_fullgraph = not grows
    options = {"max_new_tokens": 30} | options
    texts = service.generate(PROMPTS, options)
    assert texts == alone(service, PROMPTS, options)
    assert len(set(texts)) == len(PROMPTS)


def test_texts_that_end_early_are_finished(service, model, tokenizer, bare_plugins):
    """A row that ends is as long as alone, and the others go on."""
    first = service.generate(PROMPTS[0], {"max_new_tokens": 20})
    model.generation_config.eos_token_id = tokenizer(first).input_ids[6]
    options = {"max_new_tokens": 20}
    texts = service.generate(PROMPTS, options)
    assert texts == alone(service, PROMPTS, options)
    lengths = [len(tokenizer(text).input_ids) for text in texts]
    assert lengths[0] < max(lengths)


def test_no_more_than_max_batch_size_are_decoded_together(service, model, tokenizer):
    """Prompts of like length share a pass through the model, and the order stays."""
    service.configure(model, tokenizer, {"max_batch_size": 2})
    shapes = []
    model.register_forward_pre_hook(
        lambda _, __, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    texts = service.generate(PROMPTS, {"max_new_tokens": 4})
    lengths = sorted(len(tokenizer(prompt).input_ids) for prompt in PROMPTS)
    read = [shape for shape in shapes if shape[1] > 1]
    assert read == [(2, lengths[1]), (2, lengths[3]), (1, lengths[4])]
    assert texts == alone(service, PROMPTS, {"max_new_tokens": 4})


def test_a_prompt_that_is_asked_twice_is_decoded_once(service, model):
    """Both places of the list get its text."""
    rows = []
    model.register_forward_pre_hook(
        lambda _, __, given: rows.append(given["input_ids"].shape[0]), with_kwargs=True
    )
    texts = service.generate(["The ", "x", "The "], {"max_new_tokens": 4})
    assert texts[0] == texts[2] != texts[1]
    assert set(rows) == {2}


def test_a_plugin_that_wraps_the_step_takes_part_in_batches(service, bare_plugins):
    """What a wrapper forbids is in no row, with padding or without."""

    class Forbid:
        @hookimpl(wrapper=True)
        def make_decode_step(self):
            step = yield

            def quiet(token, position):
                logits = step(token, position).clone()
                # All that begins with a letter or a space: what is left is seen at once.
                logits[:, 30:] = -torch.inf
                return logits

            return quiet

    bare_plugins.register_plugin(Forbid(), "forbid")
    options = {"max_new_tokens": 12}
    texts = service.generate(PROMPTS, options)
    assert texts == alone(service, PROMPTS, options)
    assert not any(letter.isalpha() for text in texts for letter in text[12:])


def test_a_plugin_gets_the_position_in_each_sequence(service, bare_plugins, tokenizer):
    """Padding is not counted: a row's first new token is where its prompt ends."""
    positions = []

    class Watch:
        @hookimpl(wrapper=True)
        def make_decode_step(self):
            step = yield

            def watched(token, position):
                positions.append(position[:, 0].tolist())
                return step(token, position)

            return watched

    bare_plugins.register_plugin(Watch(), "watch")
    service.generate(PROMPTS, {"max_new_tokens": 3})
    lengths = sorted(len(tokenizer(prompt).input_ids) for prompt in PROMPTS)
    assert positions == [lengths, [length + 1 for length in lengths]]


def test_a_batch_leaves_nothing_in_the_model(service, model):
    """A model that was used for a batch is as it was: compiled steps refuse one with hooks."""
    service.generate(PROMPTS, {"max_new_tokens": 2})
    assert not model._forward_pre_hooks


def test_a_model_that_is_trained_generates_without_its_dropout(service, model):
    """Generating between two steps of training is not at random, and training goes on."""
    expected = service.generate(PROMPTS, {"max_new_tokens": 8})
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    assert service.generate(PROMPTS, {"max_new_tokens": 8}) == expected
    assert alone(service, PROMPTS, {"max_new_tokens": 8}) == expected
    assert all(module.training for module in model.modules())


def test_of_no_prompts_there_are_no_texts(service):
    """An empty list is answered by one."""
    assert service.generate([]) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a", ""], "Prompt 2 of 2 is empty"),
        (["a", 5], "Prompt 2 of 2 is 5: it must be a text"),
        (
            ["a", "x " * 600, "b"],
            r"Prompt 2 of 3: prompt and answer have \d+ tokens, and the model",
        ),
        (5, "The prompt is 5: it must be a text, a list of messages or a list"),
        ({"a": "b"}, "it must be a text, a list of messages or a list"),
        (b"bytes", "it must be a text, a list of messages or a list"),
    ],
)
def test_a_wrong_prompt_is_named_before_any_is_decoded(service, model, prompts, message):
    """Nobody waits for the first ones to learn that another cannot be done."""
    model.register_forward_hook(lambda *_: pytest.fail("the model was called"))
    with pytest.raises(GenerationError, match=message):
        service.generate(prompts)


def test_texts_with_log_probabilities_of_prompts_do_not_fill_each_other_s_cache(
    bare_plugins, model, tokenizer
):
    """They take passes of their own, which would widen what they share."""
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer)
    prompts, options = ["The a", "The longer b", "x y", "q"], {"max_new_tokens": 100}
    expected = [service.generate(each, options) for each in prompts]
    assert service.generate(prompts, {**options, "prompt_logprobs": 0}) == expected
