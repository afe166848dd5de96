"""Conversations as prompts: through the chat template, whatever the template is."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from truthgpt_core.decoding import GenerationError
from truthgpt_services import InferenceService
from truthgpt_services.data import template_limits
from truthgpt_services.inference.prompts import render
from truthgpt_services.models.loading import load_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('Unknown role ' + m.role) }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASKED = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}]
WRITTEN = "<|endoftext|><system>Be short.\n<user>Why?\n<assistant>"
SHORT = {"max_new_tokens": 6}


@pytest.fixture
def chatty(tiny):
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def service(bare_plugins, model, chatty):
    service = InferenceService(bare_plugins)
    service.configure(model, chatty)
    return service


def test_messages_are_one_conversation_and_a_text_is_continued(service):
    """A list of messages is one prompt, and the template writes what the model reads."""
    stream = service.stream(ASKED, SHORT)
    assert (stream.prompt.text, stream.prompt.is_chat) == (WRITTEN, True)
    said = "".join(stream)
    assert said == service.generate(ASKED, SHORT) == service.generate(tuple(ASKED), SHORT)
    assert said == service.generate(WRITTEN, SHORT)
    assert not service.stream("Why?").prompt.is_chat


def test_lists_of_texts_and_of_conversations_are_batches(service):
    """Each is answered in its place, and both kinds may be in one batch."""
    other = [{"role": "user", "content": "What?"}]
    together = service.generate([ASKED, other, "The import"], SHORT)
    assert together == [service.generate(each, SHORT) for each in (ASKED, other, "The import")]
    assert service.generate(["The import"], SHORT) == together[2:]
    assert service.generate([], SHORT) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([{"role": "user"}], 'The prompt: message 0 has no text as "content"'),
        ([{"role": "user", "content": None}], 'message 0 has no text as "content"'),
        ([{"content": "a"}], 'message 0 has no text as "role"'),
        ([{"role": "user", "content": "a"}, "b"], "message 1 is not an object"),
        ([{"role": "tool", "content": "a"}], "Unknown role tool"),
        (["a", [{"role": "user"}]], 'Prompt 2 of 2: message 0 has no text as "content"'),
        (["a", []], r"Prompt 2 of 2 is \[\]"),
        ("\udcff", "is not Unicode text"),
        ([{"role": "user", "content": "\udcff"}], "not"),
    ],
)
def test_a_wrong_conversation_is_one_line(service, prompt, message):
    """It is named, and what a message looks like is said."""
    with pytest.raises(GenerationError, match=message) as refused:
        service.generate(prompt, SHORT)
    assert "\n" not in str(refused.value)


def test_without_a_template_a_conversation_is_refused(bare_plugins, model, tokenizer):
    """Nothing is made up for models that were not made for it."""
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer)
    with pytest.raises(GenerationError, match="the tokenizer has no chat template"):
        service.generate(ASKED)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ messages[7].x.y }}", "UndefinedError"),
        ("{{ raise_exception('not\nlike this') }}", "not like this"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError"),
        ("{{ 'x' * 10 ** 10 }}", "MemoryError"),
        ("{{ '%9999999999d' % 1 }}", "MemoryError|Error"),
        ("{{ 'x' * (17 * 1024 * 1024) }}", "more than 16 MiB"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "RecursionError|Error|killed by"),
    ],
)
def test_a_template_that_fails_is_one_line(bare_plugins, model, tiny, template, message):
    """Whatever it does, the process goes on."""
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = template
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer)
    with pytest.raises(GenerationError, match=message) as refused:
        service.generate(ASKED)
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 9) }}",
    ],
    ids=["loops", "power"],
)
def test_a_template_that_never_ends_is_ended(chatty, monkeypatch, template):
    """A loop of Python and a computation that cannot be interrupted, both within the limit."""
    monkeypatch.setattr(template_limits, "SECONDS", 1)
    chatty.chat_template = template
    with pytest.raises(GenerationError, match="it takes more than 1 s"):
        render(chatty, ASKED)


def test_rendering_leaves_nothing_behind(chatty, capfd):
    """But for one process that answers again: no environment, and nothing on the terminal."""

    def around():
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
        return sorted(os.environ), len(list(Path("/proc/self/fd").iterdir())), children

    chatty(["a", "b"] * 100)
    assert render(chatty, ASKED) == WRITTEN
    before = around()
    assert render(chatty, ASKED) == WRITTEN
    assert around() == before
    assert capfd.readouterr() == ("", "")
