"""`truthgpt chat` on a terminal: keys, prompts, and what is drawn."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow

TORCH = ("--engine", "torch", "--device", "cpu")
ENDLESS = ("--max-new-tokens", "15000", "--min-new-tokens", "15000")
CTRL_C, CTRL_D = "\x03", "\x04"


def test_ctrl_c_stops_an_answer_and_nothing_else(terminal, talkative, tmp_path):
    """What was said is kept and marked; at the prompt it says how to leave; Ctrl-D leaves."""
    screen = terminal("chat", talkative, *TORCH, *ENDLESS)
    screen.wait_for("Ctrl-D leaves.")
    screen.wait_for("> ")
    screen.type("Go on\n")
    screen.wait_for("Go on\r\n")
    screen.wait_for_more(40)
    screen.type(CTRL_C)
    screen.wait_for("Stopped. The text so far is kept")
    screen.wait_for("> ")
    # Python may take note of a key that comes with the prompt only at the end of the line.
    screen.type(f"{CTRL_C}\n")
    screen.wait_for("Ctrl-D or /exit leaves.")
    file = tmp_path / "said.json"
    screen.type(f"/save {file}\n")
    screen.wait_for("Saved as")
    question, answer = json.loads(file.read_text())["messages"]
    assert question == {"role": "user", "content": "Go on"}
    assert answer["role"] == "assistant"
    assert answer["interrupted"] is True
    assert answer["content"]
    screen.wait_for("> ")
    screen.type(CTRL_D)
    assert screen.leave() == 0


def test_mistakes_are_one_line_and_the_chat_goes_on(terminal, chatty):
    """An unknown command, a wrong value, and a message that has no end."""
    screen = terminal("chat", chatty, *TORCH, "--max-new-tokens", "4")
    for typed, said in (
        ("/hlep\n", 'truthgpt: There is no command "/hlep". Did you mean "/help"?'),
        ("/set temperature hot\n", "truthgpt: temperature is 'hot': it must be a number"),
        ('"""never ends\n', "... "),
        (CTRL_D, "no line comes after"),
        ("Hello\n", "4 tokens, "),
        ("/exit\n", "/exit\r\n"),
    ):
        screen.wait_for("> " if typed != CTRL_D else "")
        screen.type(typed)
        screen.wait_for(said)
    assert screen.leave() == 0


def test_what_is_pasted_is_one_message(terminal, chatty, tmp_path):
    """However many lines it has; a command is completed with Tab."""
    screen = terminal("chat", chatty, *TORCH, "--max-new-tokens", "4")
    screen.wait_for("> ")
    screen.type("\x1b[200~one\ntwo\x1b[201~\n")
    screen.wait_for("4 tokens, ")
    screen.wait_for("> ")
    file = tmp_path / "said.json"
    screen.type(f"/sav\t{file}\n")
    screen.wait_for("Saved as")
    assert json.loads(file.read_text())["messages"][0]["content"] == "one\ntwo"


def test_a_terminal_never_gets_control_characters_of_an_answer(terminal, chatty, tokenizer):
    """They are written as escapes."""
    (escape,) = tokenizer("\x1b").input_ids
    options = ("--logit-bias", f"{escape}=100", "--max-new-tokens", "3")
    screen = terminal("chat", chatty, *TORCH, *options)
    screen.wait_for("> ")
    screen.type("Hello\n")
    screen.wait_for("Hello\r\n")
    assert "\\x1b\\x1b\\x1b\r\n" in screen.wait_for("3 tokens, ")


def test_two_models_answer_side_by_side_where_there_is_room(terminal, chatty):
    """On a narrow terminal one after the other; each with its tokens and speed below."""
    screen = terminal("chat", chatty, *TORCH, "--max-new-tokens", "40")
    screen.wait_for("> ")
    screen.type(f"/compare {chatty}\n")
    screen.wait_for("Both answer")
    for width in (80, 120):
        screen.wait_for("> ")
        screen.resize(width)
        screen.type("Hello\n")
        screen.wait_for("Hello\r\n")
        shown = screen.wait_for("40 tokens, ") + screen.wait_for("40 tokens, ")
        assert shown.count(f"{chatty.name}:") == (2 if width == 80 else 0)
        assert ("\N{BOX DRAWINGS LIGHT VERTICAL}" in shown) == (width == 120)
