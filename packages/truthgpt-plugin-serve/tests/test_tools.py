"""Calls of functions are found in a text, however it comes in pieces."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import CHAT, Running

from truthgpt_core.decoding import GenerationError, SamplingParams
from truthgpt_plugin_serve import tools
from truthgpt_plugin_serve.fields import ChatRequest
from truthgpt_services.inference.constraints import make_constraint

ARGUMENTS = st.dictionaries(
    st.text(max_size=5), st.none() | st.integers() | st.text(max_size=9), max_size=3
)
TEXTS = st.text(alphabet="ab<tool_call>/\n", max_size=30).filter(lambda text: "<tool" not in text)


@given(
    before=TEXTS,
    calls=st.lists(st.tuples(st.sampled_from(["f", "g-1"]), ARGUMENTS), max_size=3),
    cuts=st.lists(st.integers(0, 300), max_size=20),
)
def test_calls_are_found_however_the_text_is_cut(
    before: str, calls: list[tuple[str, dict[str, Any]]], cuts: list[int]
) -> None:
    """Text before them is passed on, nothing of it twice, and nothing of a call."""
    written = "\n".join(tools.as_text(name, json.dumps(given)) for name, given in calls)
    text = before + written
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    reader = tools.CallReader()
    passed, found = "", []
    for begin, end in pairwise(places):
        piece, whole = reader.add(text[begin:end])
        passed, found = passed + piece, found + whole
    passed += reader.rest()
    assert passed == before
    assert [(each.name, json.loads(each.arguments)) for each in found] == calls
    assert len({each.id for each in found}) == len(found)


def is_allowed(grammar: str, tokenizer: Any, text: str) -> bool:
    begin = make_constraint(SamplingParams(grammar=grammar), tokenizer, frozenset({0}))
    assert begin is not None
    constraint = begin()
    try:
        for token in [*tokenizer(text).input_ids, 0]:
            constraint.accept(token)
    except GenerationError:
        return False
    return True


HOSTILE = {
    "end of a call": r'{"x": "</tool_call>"}',
    "calls": r'{"x": "\n</tool_call>\n<tool_call>\n{}"}',
    "large number": '{"x": 1e999}',
    "long number": '{"x": %s}' % ("9" * 5000),
    "exact number": '{"x": 0.10000000000000000000000001}',
}


@pytest.mark.parametrize("arguments", HOSTILE.values(), ids=HOSTILE)
def test_arguments_are_passed_on_as_the_model_writes_them(server: Running, arguments: str) -> None:
    """Whatever JSON the grammar allows, marks of calls in a string too."""
    parameters = {"type": "object", "properties": {"x": {"type": ["string", "number"]}}}
    function = {"name": "f", "parameters": parameters}
    asked = request(tools=[{"type": "function", "function": function}], tool_choice="required")
    grammar = tools.grammar(asked, tools.offered_tools(asked), server.model.tokenizer)
    text = f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>'
    assert is_allowed(grammar, server.model.tokenizer, text)
    reader = tools.CallReader()
    passed, (call,) = reader.add(text)
    assert (passed, call.name, call.arguments) == ("", "f", arguments)


def test_a_call_that_is_cut_off_is_none() -> None:
    """Half an object is no arguments: the answer says that it ended by length."""
    reader = tools.CallReader()
    assert reader.add('Yes. <tool_call>\n{"name": "f", "argu') == ("Yes. ", [])
    assert (reader.rest(), reader.calls) == ("", [])
    reader = tools.CallReader()
    assert reader.add(f"{CALL}\n<tool_")[0] + reader.rest() == ""


def request(**fields: Any) -> ChatRequest:
    functions = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
    return ChatRequest.model_validate(CHAT | {"tools": functions} | fields)


CALL = tools.as_text("f", "{}")
TWO = f"{CALL}\n{tools.as_text('g', '{}')}"
CHOICES: list[tuple[dict[str, Any], dict[str, bool]]] = [
    ({}, {"Hello <b>": True, CALL: True, f"Well. {CALL}": True, TWO: True, "<tool_call>x": False}),
    ({"tool_choice": "required"}, {"Hello": False, CALL: True, TWO: True, f"Well. {CALL}": False}),
    ({"parallel_tool_calls": False}, {CALL: True, TWO: False}),
    (
        {"tool_choice": {"type": "function", "function": {"name": "g"}}},
        {CALL: False, tools.as_text("g", "{}"): True, TWO: False},
    ),
]


@pytest.mark.parametrize(("fields", "texts"), CHOICES, ids=range(len(CHOICES)))
def test_the_grammar_allows_what_was_asked_for(
    server: Running, fields: dict[str, Any], texts: dict[str, bool]
) -> None:
    """Text and calls, calls alone, one of them, or a certain one."""
    asked = request(**fields)
    offered = tools.offered_tools(asked)
    tokenizer = server.model.tokenizer
    grammar = tools.grammar(asked, offered, tokenizer)
    assert {text: is_allowed(grammar, tokenizer, text) for text in texts} == texts


def test_a_model_is_told_of_its_tools(server: Running) -> None:
    """In a system message, beside what the client wrote there; what calls gave comes as answers."""
    from truthgpt_plugin_serve.chat import conversation

    asked = request(
        messages=[
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Go"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "one"},
            {"role": "tool", "tool_call_id": "2", "content": "two"},
        ]
    )
    found = conversation(asked.messages, tools.offered_tools(asked))
    assert [each["role"] for each in found] == ["system", "user", "assistant", "user"]
    assert found[0]["content"].startswith("Be kind.")
    assert '"name": "g"' in found[0]["content"]
    assert found[2]["content"] == CALL
    assert found[3]["content"].count("<tool_response>") == 2
