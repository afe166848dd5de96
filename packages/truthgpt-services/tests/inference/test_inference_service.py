"""InferenceService: text in, text out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from truthgpt_core.decoding import GenerationError, SamplingParams
from truthgpt_core.event_system import EventType, on_event
from truthgpt_core.hookspecs import hookimpl
from truthgpt_services import InferenceService
from truthgpt_services.inference.decoder import stream
from truthgpt_services.inference.engine import TorchEngine


@pytest.fixture
def service(bare_plugins, model, tokenizer):
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer)
    return service


class Script:
    """A plugin whose decode step makes the model say one token after the other."""

    def __init__(self):
        self.tokens = []

    @hookimpl
    def make_decode_step(self, model, cache):
        rest = iter(self.tokens)
        return lambda token, position: torch.nn.functional.one_hot(
            torch.tensor([next(rest)]), 320
        ).float()


@pytest.fixture
def script(bare_plugins):
    plugin = Script()
    bare_plugins.register_plugin(plugin, "script")
    return plugin


def say(service, script, tokens):
    script.tokens = tokens
    pieces = list(service.stream("The ", {"max_new_tokens": len(tokens) + 1}))
    return pieces, "".join(pieces)


def test_generated_text_is_the_tokens_decoded_at_once(service, bare_plugins, model, tokenizer):
    """Decoding piece by piece loses and adds nothing."""
    options = {"temperature": 1.0, "seed": 5, "max_new_tokens": 200}
    engine, ids = TorchEngine(model, bare_plugins.hooks), tokenizer("The ").input_ids
    tokens = list(stream(engine, ids, SamplingParams(**options), end=frozenset({0})))
    assert len(tokens) > 20
    assert service.generate("The ", options) == tokenizer.decode(tokens)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1, max_size=20))
def test_characters_of_several_tokens_arrive_whole(service, script, tokenizer, text):
    """No piece ends in the middle of a character, in whatever script it is written."""
    tokens = tokenizer(text).input_ids
    pieces, whole = say(service, script, tokens)
    assert whole.endswith(tokenizer.decode(tokens))
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces[1:])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 319), min_size=1, max_size=25))
def test_tokens_that_are_no_text_stream_as_they_decode(service, script, tokenizer, tokens):
    """A model may stop within a character, or never have meant one."""
    _, whole = say(service, script, tokens)
    assert whole == tokenizer.decode([first_token(service), *tokens])


def first_token(service):
    """The token that the tiny model says after "The ", which no script changes."""
    tokens = service._setup.tokenizer("The ", return_tensors="pt").input_ids
    with torch.inference_mode():
        return int(service._setup.engine.model(input_ids=tokens).logits[0, -1].argmax())


def test_a_mistyped_option_is_suggested(service):
    """An option that would be ignored is an error instead."""
    with pytest.raises(GenerationError, match=r'no option "temprature".*"temperature"\?'):
        service.generate("x", {"temprature": 1})


def test_an_option_like_none_lists_all(service):
    """The error says what there is."""
    with pytest.raises(
        GenerationError, match=r"Known: max_new_tokens, min_new_tokens, .*json_schema, regex"
    ):
        service.generate("x", {"beams": 1})


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 2},
        {"top_k": 1.5},
        {"max_new_tokens": 0},
        {"max_new_tokens": "many"},
        {"max_new_tokens": 10_000},
        {"seed": 2**70},
    ],
)
def test_an_option_out_of_range_is_refused(service, options):
    """Wrong values and wrong kinds of values end as an error of ours."""
    with pytest.raises(GenerationError):
        service.generate("x", options)


def test_an_empty_prompt_is_refused(service):
    """A tokenizer that adds nothing leaves nothing to continue."""
    with pytest.raises(GenerationError, match="The prompt is empty"):
        service.generate("")


def test_nothing_configured_says_what_to_call(bare_plugins):
    """The first call on a new service says what is missing."""
    with pytest.raises(GenerationError, match="Call configure first"):
        InferenceService(bare_plugins).generate("x")


def test_generating_is_told_of_as_events(service):
    """A listener learns when text begins, and how many tokens were made."""
    heard = []
    on_event(EventType.INFERENCE_FINISHED, lambda event: heard.append(event.data["tokens"]))
    service.generate("The ", {"max_new_tokens": 3})
    assert heard[-1] == 3
