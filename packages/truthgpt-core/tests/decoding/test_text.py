"""Tokens become whole characters, and nothing of a stop string is shown."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.decoding import AnswerText


def decode(tokens: Sequence[int]) -> str:
    """Bytes, as the tokenizers of models have them."""
    return bytes(tokens).decode("utf-8", errors="replace")


def shown(text: str, *stop: str) -> tuple[list[str], bool]:
    """Return the pieces of a text of one token a byte, and whether a stop string ended it."""
    pieces, found = AnswerText(decode, stop), []
    for token in text.encode():
        found.append(pieces.add(token))
        if pieces.stopped_by is not None:
            break
    return [*filter(None, [*found, pieces.rest()])], pieces.stopped_by is not None


def test_a_character_of_several_tokens_is_one_piece() -> None:
    """Nothing broken is shown in between."""
    assert shown("aé🙂b") == (["a", "é", "🙂", "b"], False)


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    """There are no tokens that complete it."""
    pieces = AnswerText(decode, ())
    assert [pieces.add(token) for token in "é".encode()[:1]] == [""]
    assert pieces.rest() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("one twofold", ("twice",), "one twofold"),
        ("aaab", ("aab",), "a"),
        ("one", ("one",), ""),
        ("en", ("end",), "en"),
    ],
)
def test_a_text_ends_before_the_first_stop_string(
    text: str, stop: tuple[str, ...], expected: str
) -> None:
    """What may be its beginning is held back until that is known."""
    pieces, stopped = shown(text, *stop)
    assert "".join(pieces) == expected
    assert stopped == (expected != text)


@given(
    tokens=st.lists(st.integers(0, 255) | st.sampled_from([*"é🙂".encode()]), max_size=40),
    cut=st.integers(0, 40),
    stop=st.sampled_from([(), ("é",), ("ab", "b")]),
)
def test_a_text_is_the_same_whether_its_tokens_come_one_by_one_or_together(
    tokens: list[int], cut: int, stop: tuple[str, ...]
) -> None:
    """Those of an answer that is kept come together."""
    each, together = AnswerText(decode, stop), AnswerText(decode, stop)
    one_by_one = "".join(map(each.add, tokens)) + each.rest()
    pieces = together.extend(tokens[:cut]) + together.extend(tokens[cut:]) + together.rest()
    assert (pieces, together.tokens) == (one_by_one, each.tokens)
    assert together.stopped_by == each.stopped_by
