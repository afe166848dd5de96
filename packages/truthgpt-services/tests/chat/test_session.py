"""A chat without its terminal: what becomes of answers that are stopped."""

from __future__ import annotations

import pytest

from truthgpt_services import InferenceService
from truthgpt_services.chat.session import Session
from truthgpt_services.chat.speaker import Speaker
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.models.loading import load_tokenizer


@pytest.fixture
def session(bare_plugins, model, tiny):
    """A chat with the tiny model."""
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = "{% for m in messages %}<{{ m | tojson }}>{% endfor %}"
    engine = TorchEngine(model, bare_plugins.hooks)
    service = InferenceService(bare_plugins)
    service.configure(engine, tokenizer)
    return Session(
        Speaker("tiny", engine, tokenizer, service, bare_plugins), {"max_new_tokens": 30}
    )


def messages(session):
    """What was said."""
    return session.speakers[0].conversation.messages


def test_a_question_that_got_no_answer_is_not_kept(session):
    """Many templates refuse a second question after it."""
    (answer,) = session.ask("One")
    answer.interrupt()
    assert not session.keep([answer])
    assert messages(session) == []


def test_what_was_said_until_it_was_stopped_is_kept_with_a_mark(session):
    """The chat template never sees the mark."""
    (answer,) = session.ask("One")
    next(answer)
    answer.interrupt()
    assert session.keep([answer])
    question, said = messages(session)
    assert question == {"role": "user", "content": "One"}
    assert said == {"role": "assistant", "content": answer.text, "interrupted": True}
    (following,) = session.ask("Two")
    assert following.stream.prompt.text.count('"content"') == 3
    assert "interrupted" not in following.stream.prompt.text


def test_the_answer_before_stays_if_another_was_stopped_at_once(session):
    """Nothing is lost."""
    (answer,) = session.ask("One")
    list(answer)
    session.keep([answer])
    before = messages(session)
    (again,) = session.regenerate()
    again.interrupt()
    assert not session.keep([again])
    assert messages(session) == before


def test_an_answer_is_timed_while_it_is_read(session):
    """So that two that are read in turns are timed as if each was alone."""
    (answer,) = session.ask("One")
    assert (answer.seconds, answer.first_seconds) == (0.0, None)
    next(answer)
    first = answer.seconds
    assert answer.first_seconds == first > 0
    assert answer.first_tokens == len(answer.stream.tokens) > 0
    list(answer)
    assert answer.seconds > first
    assert answer.first_seconds == first
