"""Texts that end an answer: never shown, wherever the pieces of text begin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.decoding import GenerationError, StopStrings
from truthgpt_services import InferenceService

words = st.text("ab", min_size=1, max_size=4)


def passed(pieces, strings):
    stop = StopStrings(strings)
    shown = [stop.add(piece) for piece in pieces]
    return "".join(shown) + stop.rest(), stop.found, shown


def reference(text, strings):
    """Read the text character by character, and end it where a string is complete."""
    for end in range(1, len(text) + 1):
        found = [string for string in strings if text[:end].endswith(string)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.lists(st.text("ab", max_size=5), max_size=8), st.lists(words, max_size=3))
def test_pieces_do_not_matter(pieces, strings):
    """What is shown is what reading character by character would show."""
    text, found, _ = passed(pieces, strings)
    assert (text, found) == reference("".join(pieces), strings)


@given(st.lists(st.text("ab", min_size=1, max_size=3), max_size=8), words)
def test_no_more_is_held_back_than_may_begin_the_string(pieces, string):
    """Text is shown as soon as it cannot be a part of the string."""
    _, found, shown = passed(pieces, [string])
    if found is None:
        held = sum(map(len, pieces)) - sum(map(len, shown))
        assert held < len(string)
        assert held == 0 or string.startswith("".join(pieces)[-held:])


def test_an_answer_ends_before_the_string(bare_plugins, model, tokenizer):
    """Streamed, at once and in a batch; the model makes no tokens after it."""
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer)
    long = {"max_new_tokens": 40, "temperature": 1.0, "seed": 3}
    whole = service.generate("The import statement", long)
    stop = whole[5:8]
    expected = whole[: whole.index(stop)]
    options = long | {"stop": [stop, "never"]}
    stream = service.stream("The import statement", options)
    assert "".join(stream) == expected
    assert (stream.finish_reason, stream.stopped_by) == ("stop_sequence", stop)
    assert len(stream.tokens) < 40
    assert service.generate("The import statement", long | {"stop": stop}) == expected
    assert service.generate(["The import statement", "x"], options)[0] == expected


def test_an_end_that_does_not_come_loses_nothing(bare_plugins, model, tokenizer):
    """What was held back is shown in the end."""
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer)
    whole = service.generate("The", {"max_new_tokens": 9})
    assert service.generate("The", {"max_new_tokens": 9, "stop": whole[-2:] + "\0"}) == whole


@pytest.mark.parametrize("stop", ["", ["a", ""], 5, ["a", 5], {"a": 1}, b"a"])
def test_a_wrong_stop_is_refused(bare_plugins, model, tokenizer, stop):
    """An empty text would end everything."""
    service = InferenceService(bare_plugins)
    service.configure(model, tokenizer)
    with pytest.raises(GenerationError, match="stop"):
        service.generate("x", {"stop": stop})
