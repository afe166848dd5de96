"""The engine: text from a server that speaks the OpenAI protocol."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Sequence
from typing import Any, ClassVar

from truthgpt_core.decoding import (
    Capabilities,
    Engine,
    GenerationError,
    RefusedError,
    SamplingParams,
    UnavailableError,
)
from truthgpt_plugin_openai.settings import EXTRA_FIELDS, Settings, read_settings
from truthgpt_plugin_openai.source import Address, read_address

_LONGEST_TOKEN = 1024
"""Characters that one token has at most, to bound what a server sends."""


class OpenAIEngine(Engine):
    """Asks a server; the model, its tokenizer and its chat template are there.

    Args:
        address: of the server.
        settings: how it is asked.

    Attributes:
        model: the name of the model at the server.

    Raises:
        GenerationError: the server cannot be asked, or does not have the model.
    """

    name: ClassVar[str] = "openai"
    capabilities = Capabilities(logits=False, prompt_logprobs=False, crop=False, masks=False)
    options: frozenset[str] = frozenset(
        {
            *("max_new_tokens", "temperature", "top_p", "presence_penalty", "frequency_penalty"),
            *("logit_bias", "seed", "stop", "json_schema"),
        }
    )

    def __init__(self, address: Address, settings: Settings) -> None:
        from truthgpt_plugin_openai.client import make_client, model_name

        self._address = address
        self._settings = settings
        # What a server sends is of any type, whatever the library declares.
        self._client: Any = make_client(address, settings)
        weakref.finalize(self, self._client.close)
        self.options = OpenAIEngine.options | settings.extra
        self.model = model_name(self._client, address, settings)

    def generate(self, prompt: Any, params: SamplingParams) -> Generator[str, None, str | None]:
        """Stream an answer; messages go to `/chat/completions`, a text to `/completions`."""
        from truthgpt_plugin_openai.client import Bounded, errors_of

        if not prompt:
            raise RefusedError("The prompt is empty")
        is_chat = not isinstance(prompt, str)
        fields = self._fields(params, is_chat=is_chat)
        url, reason, received = self._address.url, None, 0
        with errors_of(self._address, self._settings):
            if is_chat:
                messages = [
                    {each: message[each] for each in ("role", "content")} for message in prompt
                ]
                stream = self._client.chat.completions.create(messages=messages, **fields)
            else:
                stream = self._client.completions.create(prompt=prompt, **fields)
            with stream:
                bounds = stream.response.stream
                assert isinstance(bounds, Bounded)
                for event in stream:
                    bounds.event()
                    for choice in event.choices:
                        piece, is_alive = _text_of(choice, is_chat=is_chat)
                        received += len(piece)
                        if piece:
                            yield piece
                        if is_alive:
                            # After the caller has asked for more: its time is its own.
                            bounds.advance()
                        reason = choice.finish_reason or reason
                    if received > params.max_new_tokens * _LONGEST_TOKEN:
                        raise UnavailableError(f"{url} sends more than it was asked for")
                    bounds.check()
        return _reason(reason, params.stop, url)

    def _fields(self, params: SamplingParams, *, is_chat: bool) -> dict[str, Any]:
        """Return the fields of a request; what is at its neutral value is left out.

        The temperature never is: that of servers is 1.
        """
        fields: dict[str, Any] = {
            "model": self.model,
            "stream": True,
            "max_tokens": params.max_new_tokens,
            "temperature": params.temperature,
        }
        if params.temperature:
            fields["seed"] = params.seed
        if params.top_p < 1:
            fields["top_p"] = params.top_p
        for name in ("presence_penalty", "frequency_penalty"):
            if value := getattr(params, name):
                fields[name] = value
        if params.logit_bias:
            fields["logit_bias"] = {str(token): bias for token, bias in params.logit_bias.items()}
        if params.stop:
            fields["stop"] = list(params.stop)
        if params.json_schema is not None:
            if not is_chat:
                raise RefusedError(
                    "json_schema is for conversations: /completions has no such field",
                    hint="Ask without --raw, or give a list of messages.",
                )
            fields["response_format"] = _response_format(params.json_schema)
        neutral = SamplingParams()
        extra = {
            EXTRA_FIELDS[name]: getattr(params, name)
            for name in sorted(self._settings.extra)
            if getattr(params, name) != getattr(neutral, name)
        }
        return fields | ({"extra_body": extra} if extra else {})


def make_engine(spec: str, given: dict[str, Any]) -> OpenAIEngine:
    """Return an engine for what the user typed.

    Args:
        spec: `openai:URL#MODEL`.
        given: options by name; those of this engine are taken out.

    Raises:
        GenerationError: an option is wrong, or as for `OpenAIEngine`.
    """
    address = read_address(spec)
    return OpenAIEngine(address, read_settings(address, given))


def _text_of(choice: Any, *, is_chat: bool) -> tuple[str, bool]:
    """Return the text of an event, and whether the model works on the answer."""
    text = (choice.delta.content if is_chat else choice.text) or ""
    if not isinstance(text, str):
        raise ValueError("what should be a text is not one")
    # Servers give what a model thinks before it answers in fields of their own.
    thoughts = ("reasoning_content", "reasoning") if is_chat else ()
    return text, bool(text or any(getattr(choice.delta, name, None) for name in thoughts))


def _response_format(schema: Any) -> dict[str, Any]:
    if schema is True:
        return {"type": "json_object"}
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": dict(schema), "strict": True},
    }


def _reason(given: Any, stop: Sequence[str], url: str) -> str | None:
    if given is None:
        raise UnavailableError(f"{url} broke the answer off without saying why", hint="Try again.")
    if given == "length":
        return "length"
    if given == "stop":
        # The protocol has one word for the model's end and for a stop string.
        return None if stop else "eos_token"
    raise GenerationError(f"{url} ended the answer early ({given!r:.80})")
