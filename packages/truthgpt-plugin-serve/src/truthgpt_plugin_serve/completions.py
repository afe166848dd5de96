"""`/v1/completions`: texts, and how they go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from truthgpt_core.decoding import TokenLogprobs
from truthgpt_plugin_serve.chat import finite
from truthgpt_plugin_serve.context import Context, Record, sampling_options, usage
from truthgpt_plugin_serve.errors import ApiError
from truthgpt_plugin_serve.fields import CompletionRequest, StreamOptions
from truthgpt_plugin_serve.generation import Generation, finish_reason
from truthgpt_plugin_serve.served_model import ServedModel

if TYPE_CHECKING:
    from truthgpt_services.inference.text import TextStream


@dataclass(slots=True)
class Completion:
    """Texts that are being continued.

    Attributes:
        request: what was asked.
        model: that answers.
        generations: one for each prompt.
        id: of the answer.
        created: when, in seconds since 1970.
    """

    request: CompletionRequest
    model: ServedModel
    generations: list[Generation]
    id: str
    created: int

    @classmethod
    async def begin(
        cls, request: CompletionRequest, context: Context, record: Record
    ) -> Completion:
        """Ask the model.

        Raises:
            ApiError: the request cannot be met.
        """
        model = context.find(request.model)
        options = sampling_options(request, model)
        if request.max_tokens == 0 and not request.echo:
            raise ApiError(400, "max_tokens is 0, which needs echo: true", param="max_tokens")
        if request.logprobs is not None:
            if not model.engine.capabilities.logits:
                raise ApiError(
                    400,
                    f"The engine {model.engine.name} does not support logprobs",
                    param="logprobs",
                )
            options["logprobs"] = request.logprobs
            if request.echo:
                options["prompt_logprobs"] = request.logprobs
                if request.stream:
                    raise ApiError(400, "echo with logprobs cannot be streamed", param="stream")
        given = request.prompt
        several = isinstance(given, list) and not isinstance(given[0], int)
        prompts = [
            await context.read_prompt(model, each) for each in (given if several else [given])
        ]
        most = context.settings.max_batch_size + context.settings.max_waiting
        if len(prompts) * request.n > most:
            raise ApiError(
                400, f"{len(prompts) * request.n} texts are more than the {most} that may wait"
            )
        # The model is asked for one token at least.
        wanted = max(1, request.max_tokens)
        for prompt in prompts:
            context.room(model, prompt, wanted)
        options["max_new_tokens"] = wanted
        if wanted != request.max_tokens:
            options.pop("min_new_tokens", None)
        made: list[Generation] = []
        try:
            for prompt in prompts:
                made.append(await context.generate(model, prompt, options, record))  # noqa: PERF401
        except BaseException:
            for each in made:
                each.close()
            raise
        return cls(request, model, made, f"cmpl-{uuid4().hex}", int(time.time()))

    async def whole(self) -> dict[str, Any]:
        """Return the response, when all of it is known.

        Raises:
            ApiError: the model failed.
        """
        choices: list[dict[str, Any]] = []
        for generation in self.generations:
            texts = await generation.whole()
            for text, stream in zip(texts, generation.streams, strict=True):
                answer = text if self.request.max_tokens else ""
                logprobs = None
                if self.request.logprobs is not None:
                    # Tens of thousands of tokens may have to be written.
                    logprobs = await asyncio.to_thread(self._logprobs, stream)
                choices.append(
                    {
                        "index": len(choices),
                        "text": (stream.prompt.text if self.request.echo else "") + answer,
                        "finish_reason": finish_reason(stream),
                        "logprobs": logprobs,
                    }
                )
        return self._head() | {"choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the response as it comes, one prompt after the other.

        Raises:
            ApiError: the model failed.
        """
        head, texts = self._head(), self.request.n
        options = self.request.stream_options or StreamOptions()
        for number, generation in enumerate(self.generations):
            shown, offsets = [0] * len(generation.streams), [0] * len(generation.streams)
            if self.request.echo:
                for index, stream in enumerate(generation.streams):
                    echoed = _choice(number * texts + index, stream.prompt.text)
                    yield head | {"choices": [echoed]}
            async for index, piece in generation.pieces():
                stream = generation.streams[index]
                choice = _choice(number * texts + index, piece or "")
                if self.request.logprobs is not None:
                    # More may come meanwhile.
                    found = stream.logprobs[shown[index] :]
                    shown[index] += len(found)
                    choice["logprobs"] = listed = self._listed(found, offsets[index])
                    offsets[index] += sum(map(len, listed["tokens"]))
                if piece is None:
                    choice["finish_reason"] = finish_reason(stream)
                elif not self.request.max_tokens:
                    continue
                made = head | {"choices": [choice]}
                if options.in_each_event:
                    made["usage"] = self._usage()
                yield made
        if options.include_usage:
            yield head | {"choices": [], "usage": self._usage()}

    def close(self) -> None:
        """Want no more of what has not ended."""
        for each in self.generations:
            each.close()

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model.name,
        }

    def _usage(self) -> dict[str, Any] | None:
        return usage(self.generations, answered=self.request.max_tokens > 0)

    def _logprobs(self, stream: TextStream) -> dict[str, Any]:
        found = stream.logprobs if self.request.max_tokens else []
        return self._listed([*stream.prompt_logprobs, *found], 0)

    def _listed(self, found: list[TokenLogprobs], begin: int) -> dict[str, Any]:
        decode, offset = self.model.tokenizer.decode, begin
        tokens, offsets = [], []
        for each in found:
            text = decode([each.token])
            tokens.append(text)
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": tokens,
            "token_logprobs": [finite(each.logprob) for each in found],
            "top_logprobs": [
                None
                if each.logprob is None
                else {decode([token]): finite(logprob) for token, logprob in each.top}
                for each in found
            ],
            "text_offset": offsets,
        }


def _choice(index: int, text: str) -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": None, "logprobs": None}
