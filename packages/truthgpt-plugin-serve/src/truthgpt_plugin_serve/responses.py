"""`/v1/responses`, for text: an input, and one message of the model. Nothing is stored."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from truthgpt_plugin_serve.chat import spoken
from truthgpt_plugin_serve.context import Context, Record, sampling_options, usage
from truthgpt_plugin_serve.errors import ApiError
from truthgpt_plugin_serve.fields import ResponsesRequest, TextSchema
from truthgpt_plugin_serve.generation import Generation, finish_reason
from truthgpt_plugin_serve.served_model import ServedModel


@dataclass(slots=True)
class Response:
    """A response that is being made.

    Attributes:
        request: what was asked.
        model: that answers.
        generation: the answer as it comes.
        most: how many tokens it has at most.
        id: of the response.
        item: the id of its message.
        created: when, in seconds since 1970.
    """

    request: ResponsesRequest
    model: ServedModel
    generation: Generation
    most: int
    id: str
    item: str
    created: int

    @classmethod
    async def begin(cls, request: ResponsesRequest, context: Context, record: Record) -> Response:
        """Ask the model.

        Raises:
            ApiError: the request cannot be met.
        """
        model = context.find(request.model)
        options = sampling_options(request, model)
        form = request.text.format if request.text is not None else None
        if form is not None and form.type != "text":
            options["json_schema"] = form.schema_ if isinstance(form, TextSchema) else True
        prompt = await context.read_prompt(model, _conversation(request))
        most = options["max_new_tokens"] = context.room(model, prompt, request.max_output_tokens)
        generation = await context.generate(model, prompt, options, record)
        name = uuid4().hex
        return cls(
            request, model, generation, most, f"resp_{name}", f"msg_{name}", int(time.time())
        )

    async def whole(self) -> dict[str, Any]:
        """Return the response, when all of it is known.

        Raises:
            ApiError: the model failed.
        """
        await self.generation.whole()
        return self._ended()

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of the response as it comes; each has its `type`."""
        number = 0

        def event(kind: str, **fields: Any) -> dict[str, Any]:
            nonlocal number
            number += 1
            return {"type": kind, "sequence_number": number - 1, **fields}

        place: dict[str, Any] = {"item_id": self.item, "output_index": 0, "content_index": 0}
        begun = self._head("in_progress")
        yield event("response.created", response=begun)
        yield event("response.in_progress", response=begun)
        message = self._message("", "in_progress") | {"content": []}
        yield event("response.output_item.added", output_index=0, item=message)
        yield event("response.content_part.added", **place, part=_part(""))
        try:
            async for _, piece in self.generation.pieces():
                if piece is not None:
                    yield event("response.output_text.delta", **place, delta=piece, logprobs=[])
        except ApiError as error:
            # The protocol has few codes here, and this one for what the client can change.
            code = "invalid_prompt" if error.status == 400 else error.code or "server_error"
            failure = {"code": code, "message": error.message}
            ended = self._head("failed") | {"error": failure}
            yield event("response.failed", response=ended)
            return
        ended = self._ended()
        (item,) = ended["output"]
        text = self.generation.streams[0].text
        yield event("response.output_text.done", **place, text=text, logprobs=[])
        yield event("response.content_part.done", **place, part=_part(text))
        yield event("response.output_item.done", output_index=0, item=item)
        yield event(f"response.{ended['status']}", response=ended)

    def close(self) -> None:
        """Want no more of what has not ended."""
        self.generation.close()

    def _ended(self) -> dict[str, Any]:
        (stream,) = self.generation.streams
        is_cut = finish_reason(stream) == "length"
        status = "incomplete" if is_cut else "completed"
        used = usage([self.generation])
        return self._head(status) | {
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": [self._message(stream.text, status)],
            "usage": used
            and {
                "input_tokens": used["prompt_tokens"],
                "input_tokens_details": used["prompt_tokens_details"],
                "output_tokens": used["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": used["total_tokens"],
            },
        }

    def _head(self, status: str) -> dict[str, Any]:
        request = self.request
        form = request.text.format if request.text is not None else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": self.most,
            "model": self.model.name,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature,
            "text": {
                "format": {"type": "text"}
                if form is None
                else form.model_dump(by_alias=True, exclude_none=True)
            },
            "tool_choice": "none",
            "tools": [],
            "top_p": request.top_p,
            "usage": None,
        }

    def _message(self, text: str, status: str) -> dict[str, Any]:
        return {
            "id": self.item,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [_part(text)],
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _conversation(request: ResponsesRequest) -> list[dict[str, str]]:
    given = request.input
    found = []
    if request.instructions is not None:
        found.append({"role": "system", "content": request.instructions})
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    return [*found, *map(spoken, given)]
