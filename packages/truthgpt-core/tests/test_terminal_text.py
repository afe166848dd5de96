"""Aligned columns of text: what stands where, and what cannot do harm."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.terminal_text import WIDEST, columns, harmless


def test_cells_of_a_column_begin_together() -> None:
    """Each column is as wide as its widest cell, and nothing follows the last cell."""
    assert list(columns([("a", "bb", "c"), ("aaaa", "b", ""), ("", "", "c")])) == [
        "a     bb  c",
        "aaaa  b",
        "          c",
    ]


def test_rows_may_differ_in_length() -> None:
    """A short row ends early; no rows are no lines."""
    assert list(columns([("a",), ("aa", "b")])) == ["a", "aa  b"]
    assert list(columns([])) == []


def test_wide_characters_take_two_cells() -> None:
    """Letters of two cells and marks of none are counted as a terminal shows them."""
    assert list(columns([("日本", "x"), ("abcd", "x"), ("e\u0301", "x")])) == [
        "日本  x",
        "abcd  x",
        "e\u0301     x",
    ]


def test_one_long_cell_does_not_push_all_rows() -> None:
    """A cell that is wider than columns get pushes its own row aside and no other."""
    long = "x" * (WIDEST + 1)
    assert list(columns([(long, "1"), ("ab", "2"), ("a", "3")])) == [
        f"{long}  1",
        "ab  2",
        "a   3",
    ]


def test_what_moves_a_terminal_is_escaped() -> None:
    """Line breaks, escape sequences and marks that turn the direction are shown, not obeyed."""
    assert harmless("a\n\x1b[31m\u2028\u202e\ud800\x9b") == (r"a\n\x1b[31m\u2028\u202e\ud800\x9b")


def test_what_only_shows_is_left_as_it_is() -> None:
    """Text of any script, marks, joined emoji and blanks of any kind stay."""
    for text in ("[red]größe\\n", "日本語", "עברית", "👩\u200d👩", "a\u00a0b", "e\u0301"):
        assert harmless(text) == text


@given(st.lists(st.lists(st.text(max_size=12), max_size=4), max_size=6))
def test_each_row_is_one_line_that_can_be_printed(rows) -> None:
    """Whatever the cells hold, there are as many lines as rows, and all can be encoded."""
    lines = list(columns(rows))
    assert len(lines) == len(rows)
    for line in lines:
        assert len(f"{line}|".splitlines()) == 1
        assert line.encode().decode() == line
        assert not any(unicodedata.category(char) == "Cc" for char in line)
