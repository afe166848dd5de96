"""What is typed: messages of one line or several, and commands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.errors import UsageError
from truthgpt_services.chat.reading import QUOTES, SlashCommand, read_entry


def entry(*lines):
    """Return what is read from lines."""
    left = iter(lines)

    def read(prompt):
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    found = read_entry(read)
    assert next(left, None) is None, "not all lines were read"
    return found


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("Hello",), "Hello"),
        (("one\\", "two\\", "three"), "one\ntwo\nthree"),
        ((QUOTES, "one", "", "  two", QUOTES), "one\n\n  two"),
        ((f"{QUOTES}one", f"two{QUOTES}"), "one\ntwo"),
        ((f"{QUOTES}one{QUOTES}",), "one"),
        ((QUOTES, "/exit", QUOTES), "/exit"),
        (("//help is a command",), "/help is a command"),
        (("/etc/passwd has what?",), "/etc/passwd has what?"),
        (("/* a comment */",), "/* a comment */"),
        ((" /exit",), " /exit"),
        (("",), ""),
    ],
)
def test_a_message_has_one_line_or_several(lines, message):
    """With a backslash at the end of a line, or between triple quotes."""
    assert entry(*lines) == message


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/exit", SlashCommand("exit", False, "")),
        ("/?", SlashCommand("?", False, "")),
        ("/save! a file ", SlashCommand("save", True, "a file")),
        ("/system Be\\", SlashCommand("system", False, "Be\nkind.")),
    ],
)
def test_a_command_is_one_word_after_a_slash(line, command):
    """What follows is its argument."""
    lines = (line, "kind.") if line.endswith("\\") else (line,)
    assert entry(*lines) == command


@pytest.mark.parametrize("lines", [("one\\",), (QUOTES, "one"), (QUOTES,)])
def test_a_message_that_does_not_end_is_refused(lines):
    """It is not sent as far as it goes."""
    with pytest.raises(UsageError, match="The message was not sent"):
        entry(*lines)


@given(st.lists(st.text(st.characters(exclude_characters='\n\r"')), min_size=1))
def test_a_block_is_what_is_between_its_quotes(lines):
    """To the character."""
    assert entry(QUOTES, *lines, QUOTES) == "\n".join(lines)
