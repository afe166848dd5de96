"""Functions that a model may call: how it is told of them, and how its calls are read.

Whatever the model was trained with, it is told in the form of Hermes models, which Qwen's and many
others use as well: a call is JSON between `<tool_call>` and `</tool_call>`. A grammar lets it write
nothing else there, so arguments always are JSON that the schema of the function allows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from truthgpt_core.decoding import GenerationError, SamplingParams, overlap
from truthgpt_plugin_serve.errors import ApiError
from truthgpt_plugin_serve.fields import ChatRequest, NamedTool, Tool

BEGIN, END = "<tool_call>", "</tool_call>"
_CALL = re.compile(r'\n\{"name": "(?P<name>[^"]+)", "arguments": (?P<arguments>.*)\}', re.DOTALL)
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Call:
    """A function that a model called.

    Attributes:
        name: of the function.
        arguments: a JSON object, as text.
        id: of this call.
    """

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid4().hex[:24]}")


def offered_tools(request: ChatRequest) -> list[Tool]:
    """Return the tools that a request offers to the model.

    Raises:
        ApiError: its `tool_choice` cannot be met, or two functions have one name.
    """
    tools, choice = request.tools or [], request.tool_choice
    names = [each.function.name for each in tools]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ApiError(400, f'tools has "{min(twice)}" more than once', param="tools")
    if isinstance(choice, NamedTool):
        named = [each for each in tools if each.function.name == choice.function.name]
        if not named:
            raise ApiError(
                400,
                f'tool_choice names "{choice.function.name:.80}", which is not among the tools',
                param="tool_choice",
            )
        return named
    if choice == "required" and not tools:
        raise ApiError(400, "tool_choice is required, and there are no tools", param="tool_choice")
    return [] if choice == "none" else tools


def instructions(tools: Sequence[Tool]) -> str:
    """Return what a model is told of tools, as a part of its system message."""
    listed = "\n".join(
        json.dumps(each.model_dump(exclude_none=True), ensure_ascii=False) for each in tools
    )
    example = '{"name": <name of the function>, "arguments": <JSON object with its arguments>}'
    return (
        "# Tools\n\n"
        "You can call functions to help the user. These are their signatures:\n"
        f"<tools>\n{listed}\n</tools>\n\n"
        f"Write each call as JSON within {BEGIN} and {END}:\n"
        f"{BEGIN}\n{example}\n{END}"
    )


def grammar(request: ChatRequest, tools: Sequence[Tool], tokenizer: Any) -> str:
    """Return the grammar of an answer: text, or calls.

    Args:
        request: says whether there has to be a call, and whether there may be several.
        tools: the functions that may be called.
        tokenizer: of the model.

    Raises:
        ApiError: the schema of a function cannot be followed.
    """
    from truthgpt_services.inference.constraints import (
        MOST_SUBSCHEMAS,
        count_subschemas,
        make_constraint,
        schema_in_grammar,
    )

    rules, size = [], 0
    for number, each in enumerate(tools):
        schema = {"type": "object", **(each.function.parameters or _NO_ARGUMENTS)}
        try:
            if schema["type"] != "object":
                raise GenerationError('their "type" has to be "object"')
            # By itself first, so that the error is about it.
            make_constraint(SamplingParams(json_schema=schema), tokenizer)
            arguments = schema_in_grammar(schema)
            size += count_subschemas(schema)
        except GenerationError as error:
            raise ApiError(
                400,
                f'The parameters of the function "{each.function.name}" cannot be used: {error}',
                param=f"tools[{number}].function.parameters",
            ) from None
        if size > MOST_SUBSCHEMAS:
            raise ApiError(
                400,
                f"The parameters of the first {number + 1} functions have {size} subschemas, and "
                f"{MOST_SUBSCHEMAS} are the most",
                param="tools",
            )
        head = json.dumps(f'\n{{"name": "{each.function.name}", "arguments": ')
        tail = json.dumps(f"}}\n{END}")
        rules.append(f"call_{number}: {head} {arguments} {tail}")
    calls = " | ".join(f"call_{number}" for number in range(len(tools)))
    several = f'("\\n{BEGIN}" call)*' if request.parallel_tool_calls else ""
    is_forced = request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)
    if isinstance(request.tool_choice, NamedTool):
        several = ""
    start = f'"{BEGIN}" call {several}' if is_forced else f"TEXT | text_before call {several}"
    lines = ["%llguidance {}", f"start: {start}", f"call: {calls}", *rules]
    if not is_forced:
        lines += ["TEXT: /(.|\\n)*/", f'text_before[lazy]: TEXT "{BEGIN}"']
    return "\n".join(lines)


def as_text(name: str, arguments: str) -> str:
    """Return a call as the model writes it."""
    try:
        read = json.loads(arguments)
    except (ValueError, RecursionError):
        read = arguments  # whatever a client says that the model called
    return f"{BEGIN}\n{json.dumps({'name': name, 'arguments': read}, ensure_ascii=False)}\n{END}"


class CallReader:
    """Finds calls in a text that comes in pieces.

    Attributes:
        calls: those that are whole.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._left = ""
        self._is_call = False

    def add(self, piece: str) -> tuple[str, list[Call]]:
        """Take the next piece; return the text to pass on, and calls that are whole now."""
        self._left += piece
        passed, before = "", len(self.calls)
        while True:
            # JSON has no line break in a string, so arguments may have END in theirs.
            part, mark, after = self._left.partition(f"\n{END}" if self._is_call else BEGIN)
            if not mark:
                break
            if self._is_call:
                self.calls.append(_read(part))
            else:
                passed += self._said(part)
            self._left, self._is_call = after, not self._is_call
        if not self._is_call:
            # What may become the mark is held back until it cannot.
            whole = len(self._left) - overlap(self._left, BEGIN)
            passed += self._said(self._left[:whole])
            self._left = self._left[whole:]
        return passed, self.calls[before:]

    def _said(self, text: str) -> str:
        """Return text but for the line breaks between calls."""
        return text if not self.calls or text.strip() else ""

    def rest(self) -> str:
        """Return text that was held back, once there is no more; a call that is cut off is none."""
        # Nothing but calls can follow a call.
        return "" if self._is_call or self.calls else self._left


def _read(body: str) -> Call:
    # The grammar leaves no other form. What JSON is read as could not always be written again.
    found = _CALL.fullmatch(body)
    assert found is not None
    return Call(found["name"], found["arguments"])
