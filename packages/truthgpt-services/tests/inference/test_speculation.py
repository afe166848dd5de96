"""Speculative decoding gives the same text in fewer passes, and stops where it does not pay."""

from __future__ import annotations

import pytest
from exact_engine import CONTEXT, ExactEngine, logits_of
from hypothesis import given, settings
from hypothesis import strategies as st

from truthgpt_core.decoding import Capabilities, GenerationError
from truthgpt_core.hookspecs import hookimpl
from truthgpt_services import InferenceService
from truthgpt_services.inference.speculation import DraftModel

LOOKUP = "prompt_lookup_num_tokens"


class Repeating(ExactEngine):
    """Its logits depend on the last tokens alone, so that texts come to repeat themselves."""

    memory = 2

    def forward(self, states, tokens, *, all_logits=False):
        """Return the logits after the last tokens, instead of after all."""
        found = super().forward(states, tokens, all_logits=all_logits)
        for logits, state in zip(found, states, strict=True):
            count = len(logits)
            for row in range(count):
                end = len(state.tokens) - count + row + 1
                logits[row] = logits_of([each % 5 for each in state.tokens[:end][-self.memory :]])
        return found


class Drafts:
    """A plugin whose decoder has a draft model."""

    def __init__(self, engine):
        self.engine = engine

    @hookimpl
    def make_decoder(self, options):
        """Take the option `draft`."""
        return DraftModel(self.engine, 6) if options.pop("draft", False) else None


@pytest.fixture
def service(bare_plugins):
    return lambda engine: configured(bare_plugins, engine)


def configured(plugins, engine):
    service = InferenceService(plugins)
    service.configure(engine)
    return service


SAMPLED = st.fixed_dictionaries(
    {
        "max_new_tokens": st.integers(1, 120),
        "temperature": st.sampled_from([0.0, 0.3, 1.0]),
        "seed": st.integers(0, 1000),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
    }
)
PROMPTS = st.text(alphabet="abc", min_size=1, max_size=60)


@settings(max_examples=40)
@given(prompt=PROMPTS, options=SAMPLED, most=st.integers(1, 64))
def test_looking_up_changes_no_text(prompt, options, most):
    """Greedy or sampled, the tokens are those that the model gives one by one."""
    from truthgpt_core.plugin_system import PluginManager

    plugins = PluginManager()
    expected = configured(plugins, Repeating()).generate(prompt, options)
    assert configured(plugins, Repeating()).generate(prompt, {**options, LOOKUP: most}) == expected


@settings(max_examples=40)
@given(prompt=PROMPTS, options=SAMPLED, memory=st.integers(1, 3))
def test_a_draft_model_changes_no_text(prompt, options, memory):
    """Whether it guesses right or wrong."""
    from truthgpt_core.plugin_system import PluginManager

    plugins = PluginManager()
    draft = Repeating()
    draft.memory = memory
    plugins.register_plugin(Drafts(draft), "drafts")
    expected = configured(plugins, Repeating()).generate(prompt, options)
    assert configured(plugins, Repeating()).generate(prompt, {**options, "draft": True}) == expected
    assert draft.held == []


def test_a_text_that_repeats_itself_takes_fewer_passes(service):
    """That is what guessing is for."""
    engine = Repeating()
    service(engine).generate(
        "abcabcabc", {"max_new_tokens": 200, LOOKUP: 16, "logit_bias": {0: -100}}
    )
    assert len(engine.passes) < 60


def test_where_guesses_are_wrong_they_are_given_up(service):
    """A text that only seems to repeat itself costs few wider passes."""
    engine = ExactEngine()
    prompt = "the same again, " * 6
    options = {"max_new_tokens": 120, "logit_bias": {0: -100, **dict.fromkeys(range(8, 64), -100)}}
    service(engine).generate(prompt, {**options, LOOKUP: 16})
    wide = [sizes for sizes in engine.passes[1:] if sizes[0] > 1]
    assert 0 < len(wide) < 12


def test_guesses_end_where_the_context_does(service):
    """The last token of a text that fills the context is there, and no pass is too long."""
    engine = Repeating()
    prompt = "abc" * 20
    options = {"max_new_tokens": CONTEXT - 60, LOOKUP: 64, "logit_bias": {0: -100}}
    stream = service(engine).stream(prompt, options)
    list(stream)
    assert len(stream.tokens) == CONTEXT - 60
    assert stream.finish_reason == "length"


def test_an_engine_that_cannot_crop_is_named(service):
    """Wrong guesses have to be removed."""
    engine = ExactEngine(Capabilities(crop=False))
    with pytest.raises(GenerationError, match='decoder "prompt-lookup" needs crop'):
        service(engine).generate("x", {LOOKUP: 4})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({LOOKUP: -1}, "prompt_lookup_num_tokens is -1: it must be an integer, 1 to 64"),
        ({LOOKUP: "many"}, "prompt_lookup_num_tokens is 'many'"),
        ({LOOKUP: 4, "assistant_model": "x"}, "are both given"),
        ({"num_assistant_tokens": 4}, "num_assistant_tokens is given, and no assistant_model"),
        ({"assistant_model": 5}, "assistant_model is 5: it must name a model"),
    ],
)
def test_wrong_options_are_refused_by_name(service, options, message):
    """Before the first token."""
    with pytest.raises(GenerationError, match=message):
        service(ExactEngine()).generate("x", options)


def test_a_model_of_transformers_drafts_and_checks(service, model, tokenizer, bare_plugins):
    """The engine of PyTorch gives the same text with a draft model, and with looking up."""
    from truthgpt_services.inference.engine import TorchEngine

    bare_plugins.register_plugin(Drafts(TorchEngine(model, bare_plugins.hooks)), "drafts")
    made = InferenceService(bare_plugins)
    made.configure(model, tokenizer)
    options = {"max_new_tokens": 60, "temperature": 0.7, "seed": 5}
    expected = made.generate("The import statement", options)
    assert made.generate("The import statement", {**options, "draft": True}) == expected
    assert made.generate("The import statement", {**options, LOOKUP: 8}) == expected


def test_no_guess_is_checked_where_a_constraint_has_ended(bare_plugins, tokenizer):
    """The text is over there, and not an error, for a model without an end token too."""
    from transformers import LlamaConfig, LlamaForCausalLM

    class Endless:
        """The tokenizer, without its end token."""

        eos_token_id = None
        backend_tokenizer = tokenizer.backend_tokenizer

        def __call__(self, text, **options):
            return tokenizer(text, **options)

        def __len__(self):
            return len(tokenizer)

        def decode(self, tokens):
            return tokenizer.decode(tokens)

        def get_chat_template(self):
            raise ValueError

    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        eos_token_id=None,
        bos_token_id=None,
    )
    made = InferenceService(bare_plugins)
    made.configure(LlamaForCausalLM(config).eval(), Endless())
    options = {"regex": "abcdefabcdef", "max_new_tokens": 60, LOOKUP: 16}
    assert made.generate("abcdef" * 4 + "abc", options) == "abcdefabcdef"


@settings(max_examples=40)
@given(first=PROMPTS, more=PROMPTS, options=SAMPLED, most=st.integers(1, 64))
def test_what_prompts_have_in_common_is_read_once(first, more, options, most):
    """A conversation goes on from what was read and said, and has the text that it has anew."""
    from truthgpt_core.plugin_system import PluginManager

    plugins, engine = PluginManager(), Repeating()
    first = "abcde" * 4 + first
    service, options = configured(plugins, engine), {**options, LOOKUP: most}
    earlier = service.stream(first, options)
    list(earlier)
    # As letters of the tokenizer: the answer is in characters of its own.
    said = "".join(chr(63 + token - 1) for token in earlier.tokens)
    later = service.stream((first + said + more)[: CONTEXT - 130], options)
    text = "".join(later)
    assert later.reused_tokens >= min(len(first), len(later.prompt.tokens) - 1)
    assert text == configured(plugins, Repeating()).generate(later.prompt.text, options)
    del earlier, later
    service.configure(engine)
    assert engine.held == []
