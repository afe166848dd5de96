"""Two texts side by side: what is on the screen in the end is the texts, and nothing else moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from truthgpt_services.chat.columns import Column, print_columns, side_by_side

WIDTH = 101
COLUMN = 48
"""Of each of two columns in that width."""

BAR = "\N{BOX DRAWINGS LIGHT VERTICAL}"
characters = st.sampled_from([*"ab ", "\n", "\t", "\x1b", "\r", "\u3042", "\u0301", "\U0001f600"])
pieces = st.lists(st.text(characters, min_size=1, max_size=70), max_size=8)


def printed(one, other):
    """What is written for two texts in pieces, as writes."""
    writes = []
    print_columns(["one", "other"], [iter(one), iter(other)], WIDTH, writes.append)
    return writes


def screen(writes):
    """The lines that a terminal shows in the end."""
    return [line.rpartition("\r")[2] for line in "".join(writes).split("\n")]


@given(pieces, pieces)
def test_only_the_last_line_is_written_again_and_no_row_is_wider(one, other):
    """So nothing that was printed moves, and the terminal breaks no line."""
    for write in printed(one, other):
        for line in write.split("\n"):
            assert cell_len(line.lstrip("\r")) < WIDTH
            assert "\x1b" not in line
            assert "\r" not in line.lstrip("\r")


@given(pieces, pieces)
def test_each_column_has_its_text_and_no_other(one, other):
    """Whatever the pieces are; blanks may be broken at."""
    rows = [line.split(f" {BAR} ") for line in screen(printed(one, other))[2:] if BAR in line]
    for side, text in enumerate((one, other)):
        shown = "".join(row[side] for row in rows)
        expected = Column(10_000)
        for piece in text:
            expected.add(piece)
        expected.end()
        assert "".join(shown.split()) == "".join("".join(expected.rows).split())


@given(pieces, st.integers(2, 60))
def test_rows_do_not_depend_on_the_pieces(texts, width):
    """A text that comes at once has the rows of one that comes bit by bit."""
    whole, parts = Column(width), Column(width)
    # A carriage return at the end of a piece may belong to a line break that comes next.
    texts = [each.replace("\r", "") for each in texts]
    whole.add("".join(texts))
    for each in texts:
        parts.add(each)
    whole.end()
    parts.end()
    assert parts.rows == whole.rows


def test_words_are_not_broken_where_that_can_be():
    """A word that is wider than the column is."""
    column = Column(8)
    column.add("some words and unbreakable-ones")
    column.end()
    assert list(column.rows) == ["some", "words", "and", "unbreaka", "ble-ones"]


def test_the_text_that_fills_its_column_more_slowly_is_read_first():
    """So both go on together, and rows come as soon as they are known."""
    read = []

    def long_rows():
        for number in range(20):
            read.append("long")
            yield f"{number:040} "

    def short_pieces():
        for number in range(200):
            read.append("short")
            yield f"{number % 10}"

    writes = []
    print_columns(["a", "b"], [long_rows(), short_pieces()], WIDTH, writes.append)
    assert read[:60].count("short") > 50
    assert f"{'0' * 40}" in "".join(writes[:10])


def test_lines_side_by_side_are_as_many_as_those_of_the_longer_text():
    """The shorter one has blanks below."""
    lines = list(side_by_side(["one\ntwo", "three"], WIDTH))
    assert [line.split(f" {BAR} ")[0].strip() for line in lines] == ["one", "two"]
    assert [line.split(f" {BAR} ")[1].strip() for line in lines] == ["three", ""]
    assert {cell_len(line) for line in lines} == {2 * COLUMN + 3}


def test_a_long_title_loses_its_beginning():
    """The end of a path says more."""
    writes = []
    print_columns(["/a" * 40 + "/end", "b"], [iter(()), iter(())], WIDTH, writes.append)
    assert writes[0].split(f" {BAR} ")[0].startswith("\N{HORIZONTAL ELLIPSIS}")
    assert writes[0].split(f" {BAR} ")[0].rstrip().endswith("/end")


def test_what_is_known_when_the_user_stops_both_is_printed():
    """And the next line is a new one."""

    def stopped():
        yield "some words"
        raise KeyboardInterrupt

    writes = []
    with pytest.raises(KeyboardInterrupt):
        print_columns(["a", "b"], [stopped(), iter(["other words"])], WIDTH, writes.append)
    *_, last, end = screen(writes)
    assert [cell.strip() for cell in last.split(f" {BAR} ")] == ["some words", "other words"]
    assert end == ""
