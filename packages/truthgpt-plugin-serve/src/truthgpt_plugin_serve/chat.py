"""`/v1/chat/completions`: a conversation, and what the model says next."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from truthgpt_core.decoding import TokenLogprobs
from truthgpt_plugin_serve import tools
from truthgpt_plugin_serve.context import Context, Record, sampling_options, usage
from truthgpt_plugin_serve.errors import ApiError
from truthgpt_plugin_serve.fields import (
    AssistantMessage,
    ChatRequest,
    InputMessage,
    JsonSchema,
    Message,
    PlainText,
    StreamOptions,
    Tool,
    ToolMessage,
)
from truthgpt_plugin_serve.generation import Generation, finish_reason
from truthgpt_plugin_serve.served_model import ServedModel

UNLIKELY = -9999.0
"""What stands for the logarithm of 0, which JSON does not have."""


@dataclass(slots=True)
class Chat:
    """A chat that is being answered.

    Attributes:
        request: what was asked.
        model: that answers.
        generation: the answers as they come.
        has_tools: whether there may be calls in them.
        id: of the answer.
        created: when, in seconds since 1970.
    """

    request: ChatRequest
    model: ServedModel
    generation: Generation
    has_tools: bool
    id: str
    created: int

    @classmethod
    async def begin(cls, request: ChatRequest, context: Context, record: Record) -> Chat:
        """Ask the model.

        Raises:
            ApiError: the request cannot be met.
        """
        model = context.find(request.model)
        offered = tools.offered_tools(request)
        options = sampling_options(request, model) | _form(request)
        if request.logprobs:
            options["logprobs"] = request.top_logprobs or 0
        elif request.top_logprobs is not None:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        if offered:
            if "json_schema" in options:
                raise ApiError(
                    400, "response_format and tools are given together", param="response_format"
                )
            options["grammar"] = await context.compile(
                lambda: tools.grammar(request, offered, model.tokenizer)
            )
        if (request.logprobs or offered) and not model.engine.capabilities.logits:
            name = "tools" if offered else "logprobs"
            raise ApiError(
                400, f"The engine {model.engine.name} does not support {name}", param=name
            )
        prompt = await context.read_prompt(model, conversation(request.messages, offered))
        wanted = request.max_completion_tokens or request.max_tokens
        options["max_new_tokens"] = context.room(model, prompt, wanted)
        generation = await context.generate(model, prompt, options, record)
        name = f"chatcmpl-{uuid4().hex}"
        return cls(request, model, generation, bool(offered), name, int(time.time()))

    async def whole(self) -> dict[str, Any]:
        """Return the response, when all of it is known.

        Raises:
            ApiError: the model failed.
        """
        texts = await self.generation.whole()
        choices = []
        for index, (text, stream) in enumerate(zip(texts, self.generation.streams, strict=True)):
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            reason = finish_reason(stream)
            if self.has_tools:
                reader = tools.CallReader()
                content = reader.add(text)[0] + reader.rest()
                message["content"] = content or None
                if reader.calls:
                    message["tool_calls"] = [_call(each) for each in reader.calls]
                    reason = "tool_calls" if reason == "stop" else reason
            choice = {"index": index, "message": message, "finish_reason": reason}
            logprobs = None
            if self.request.logprobs:
                # Tens of thousands of tokens may have to be written.
                logprobs = await asyncio.to_thread(self._logprobs, stream.logprobs)
            choices.append(choice | {"logprobs": logprobs})
        return self._head("chat.completion") | {
            "choices": choices,
            "usage": usage([self.generation]),
        }

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the response as it comes.

        Raises:
            ApiError: the model failed.
        """
        head = self._head("chat.completion.chunk")
        options = self.request.stream_options or StreamOptions()
        streams = self.generation.streams
        shown = [0] * len(streams)
        readers = [tools.CallReader() if self.has_tools else None for _ in streams]

        def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
            # More may come meanwhile.
            found = streams[index].logprobs[shown[index] :]
            shown[index] += len(found)
            choice = {"index": index, "delta": delta, "finish_reason": reason}
            made = head | {"choices": [choice | {"logprobs": self._logprobs(found)}]}
            if options.in_each_event:
                made["usage"] = usage([self.generation])
            return made

        for index in range(len(streams)):
            yield chunk(index, {"role": "assistant", "content": ""})
        async for index, piece in self.generation.pieces():
            reader = readers[index]
            calls: list[tools.Call] = []
            text = piece or ""
            if reader is not None:
                text, calls = reader.add(piece) if piece is not None else (reader.rest(), [])
            if text:
                yield chunk(index, {"content": text})
            if calls:
                assert reader is not None
                begun = len(reader.calls) - len(calls)
                listed = [
                    {"index": begun + number} | _call(each) for number, each in enumerate(calls)
                ]
                yield chunk(index, {"tool_calls": listed})
            if piece is None:
                reason = finish_reason(streams[index])
                if reader is not None and reader.calls and reason == "stop":
                    reason = "tool_calls"
                yield chunk(index, {}, reason)
        if options.include_usage:
            yield head | {"choices": [], "usage": usage([self.generation])}

    def close(self) -> None:
        """Want no more of what has not ended."""
        self.generation.close()

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model.name}

    def _logprobs(self, found: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        if not self.request.logprobs:
            return None
        tokenizer = self.model.tokenizer
        return {"content": [describe_token(each, tokenizer) for each in found], "refusal": None}


def describe_token(found: TokenLogprobs, tokenizer: Any) -> dict[str, Any]:
    """Return what a chat says of a token of its answer."""

    def described(token: int, logprob: float | None) -> dict[str, Any]:
        text = tokenizer.decode([token])
        # A token may be a part of a character, which no text shows.
        data = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
        return {"token": text, "logprob": finite(logprob), "bytes": data}

    top = [described(*each) for each in found.top]
    return described(found.token, found.logprob) | {"top_logprobs": top}


def finite(logprob: float | None) -> float | None:
    """Return a log-probability as JSON has it."""
    return logprob if logprob is None or math.isfinite(logprob) else UNLIKELY


def conversation(messages: Sequence[Message], offered: Sequence[Tool]) -> list[dict[str, str]]:
    """Return a conversation as chat templates take it: roles and texts.

    Args:
        messages: as the client gives them.
        offered: tools that the model may call.
    """
    found: list[dict[str, str]] = []
    before: Message | None = None
    for message in messages:
        turn = spoken(message)
        if isinstance(message, ToolMessage):
            text = f"<tool_response>\n{turn['content']}\n</tool_response>"
            turn = {"role": "user", "content": text}
        elif isinstance(message, AssistantMessage):
            calls = [
                tools.as_text(each.function.name, each.function.arguments)
                for each in message.tool_calls or ()
            ]
            turn["content"] = "\n".join(filter(None, [turn["content"], *calls]))
        if isinstance(message, ToolMessage) and isinstance(before, ToolMessage):
            # What several calls gave is one turn.
            found[-1]["content"] += f"\n{turn['content']}"
        else:
            found.append(turn)
        before = message
    if offered:
        if found[0]["role"] != "system":
            found.insert(0, {"role": "system", "content": ""})
        found[0]["content"] = "\n\n".join(
            filter(None, [found[0]["content"], tools.instructions(offered)])
        )
    return found


def spoken(message: Message | InputMessage) -> dict[str, str]:
    """Return a message as chat templates take it: a role, and the text of all its parts."""
    content = message.content or ""
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return {"role": "system" if message.role == "developer" else message.role, "content": text}


def _form(request: ChatRequest) -> dict[str, Any]:
    wanted = request.response_format
    if wanted is None or isinstance(wanted, PlainText):
        return {}
    return {"json_schema": wanted.json_schema.schema_ if isinstance(wanted, JsonSchema) else True}


def _call(call: tools.Call) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
