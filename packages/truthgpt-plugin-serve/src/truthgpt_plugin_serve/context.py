"""What the routes share: the models, and how they are asked."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from truthgpt_plugin_serve.errors import ApiError, unavailable
from truthgpt_plugin_serve.fields import ResponsesRequest, Sampling
from truthgpt_plugin_serve.generation import Generation, in_thread
from truthgpt_plugin_serve.keys import Allowance
from truthgpt_plugin_serve.metrics import Metrics
from truthgpt_plugin_serve.served_model import ServedModel
from truthgpt_plugin_serve.settings import Settings
from truthgpt_services.services.speculation import beside_others

_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "logit_bias": "logit_bias",
    "min_tokens": "min_new_tokens",
    "stop": "stop",
    "n": "n",
    "seed": "seed",
}
"""Fields of the protocol, and the generation options that they are."""

_READERS = 4


@dataclass(slots=True)
class Record:
    """What is known of one request: for the log, and to charge its API key.

    Attributes:
        id: of the request.
        allowance: what its API key may use; None without keys.
        log: what is written into the log, by name.
    """

    id: str
    allowance: Allowance | None = None
    log: dict[str, Any] = field(default_factory=dict)


class Context:
    """What the routes share.

    Args:
        models: those that are served, by name.
        settings: of the server.

    Attributes:
        models: those that are served, by name.
        settings: of the server.
        metrics: what is counted.
        draining: whether new requests are refused, since the server is about to stop.
        live: what is generated now.
    """

    def __init__(self, models: Mapping[str, ServedModel], settings: Settings) -> None:
        self.models = models
        self.settings = settings
        self.metrics = Metrics(models)
        self.draining = False
        self.live: set[Generation] = set()
        # For tokenizers, templates and grammars, which would hold up the streams.
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read request")
        # An engine that chooses tokens itself takes a thread for each text.
        asked = any(not each.engine.capabilities.logits for each in models.values())
        self._askers = ThreadPoolExecutor(settings.max_batch_size) if asked else self._readers

    def close(self) -> None:
        """End the threads."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._askers.shutdown(wait=False, cancel_futures=True)

    def named(self, name: str) -> ServedModel:
        """Return the model of a name.

        Raises:
            ApiError: there is none.
        """
        model = self.models.get(name)
        if model is None:
            known = ", ".join(f'"{each}"' for each in self.models)
            raise ApiError(
                404,
                f'There is no model "{name:.200}"; this server has {known}',
                code="model_not_found",
                param="model",
            )
        return model

    def find(self, name: str) -> ServedModel:
        """Return a model that answers requests.

        Raises:
            ApiError: there is none of that name, or it is not ready.
        """
        model = self.named(name)
        if (why := model.why_refused) is not None:
            raise unavailable(f"The model is not ready: {why}")
        return model

    async def read_prompt(self, model: ServedModel, given: Any) -> Any:
        """Turn a text, tokens or the messages of a conversation into a prompt.

        Raises:
            ApiError: the chat template or the tokenizer refuses it.
        """
        from truthgpt_core.decoding import refuse_unknown_tokens
        from truthgpt_services.inference.prompts import Prompt, read_prompt

        def read() -> Any:
            is_tokens = isinstance(given, list) and given and isinstance(given[0], int)
            if model.tokenizer is None:
                if is_tokens:
                    raise ApiError(
                        400, f"The engine {model.engine.name} takes no tokens", param="prompt"
                    )
                return given
            if is_tokens:
                refuse_unknown_tokens(given, model.engine.vocabulary_size)
                return Prompt(model.tokenizer.decode(given), tuple(given), is_chat=False)
            return read_prompt(model.tokenizer, given)

        return await in_thread(self._readers, read)

    async def in_thread(self, work: Any) -> Any:
        """Do work that would hold the event loop up.

        Raises:
            ApiError: the request cannot be met.
        """
        return await in_thread(self._readers, work)

    def room(self, model: ServedModel, prompt: Any, wanted: int | None) -> int:
        """Return how many tokens an answer may have.

        Args:
            model: that gives it.
            prompt: what `read_prompt` returned.
            wanted: as many as the client asks for; None for as many as there is room for, and
                `Settings.default_max_tokens` at most.

        Raises:
            ApiError: the model does not hold that many beside the prompt.
        """
        limit, used = model.engine.context_length, len(getattr(prompt, "tokens", ()))
        if limit is None:
            return wanted or self.settings.default_max_tokens
        if used + (wanted or 1) > limit:
            raise ApiError(
                400,
                f"The model holds {limit} tokens. The prompt has {used}, and the answer may have "
                f"{wanted or 1}: shorten one of them",
                code="context_length_exceeded",
            )
        return wanted or min(limit - used, self.settings.default_max_tokens)

    async def generate(
        self, model: ServedModel, prompt: Any, options: Mapping[str, Any], record: Record
    ) -> Generation:
        """Ask a model for texts.

        Args:
            model: the model.
            prompt: what `read_prompt` returned.
            options: generation options, by name, `max_new_tokens` among them.
            record: of the request.

        Raises:
            ApiError: the model cannot do it, too many wait already, or the API key has used what
                it may.
        """
        prompt_tokens = len(getattr(prompt, "tokens", ()))
        most = prompt_tokens + options["max_new_tokens"] * options.get("n", 1)
        if record.allowance is not None:
            record.allowance.take_tokens(most)
        record.log |= {"model": model.name, "prompt_tokens": prompt_tokens}
        if self.settings.log_prompts:
            record.log["prompt"] = getattr(prompt, "text", prompt)
        try:
            made = await Generation.start(
                model,
                prompt,
                beside_others(model.engine, options),
                timeout=self.settings.request_timeout,
                readers=self._readers,
                askers=self._askers,
                metrics=self.metrics,
                ended=lambda made: self._ended(record, most, prompt_tokens, made),
            )
        except BaseException:
            if record.allowance is not None:
                record.allowance.give_tokens(most)
            raise
        self.live.add(made)
        return made

    def _ended(self, record: Record, charged: int, prompt: int, made: Generation) -> None:
        self.live.discard(made)
        generated = sum(len(stream.tokens) for stream in made.streams)
        record.log["generated_tokens"] = record.log.get("generated_tokens", 0) + generated
        first = made.streams[0].first_token_seconds if made.streams else None
        if first is not None:
            record.log.setdefault("first_token_seconds", round(first, 4))
        if self.settings.log_prompts:
            record.log["answers"] = [stream.text for stream in made.streams]
        # No prompt is empty: the engine does not say what it has used.
        if record.allowance is not None and prompt > 0:
            record.allowance.give_tokens(charged - prompt - generated)


def sampling_options(request: Sampling | ResponsesRequest, model: ServedModel) -> dict[str, Any]:
    """Return the generation options that a request asks for.

    What it does not say is as the model's authors suggest; without a suggestion, the temperature
    is 1, as in the protocol. Without a seed, each request gets one of its own.

    Raises:
        ApiError: the engine has no such option.
    """
    given = {
        option: value
        for name, option in _SAMPLING.items()
        if (value := getattr(request, name, None)) is not None
    }
    if given.get("top_k", 0) < 0:
        given["top_k"] = 0  # for vLLM's clients, -1 is all
    if given.get("n") == 1:
        del given["n"]
    known = model.engine.options | {"n"}
    for name, option in _SAMPLING.items():
        if option in given and option not in known:
            raise ApiError(
                400, f"The engine {model.engine.name} does not support {name}", param=name
            )
    if "temperature" not in given and "temperature" not in model.engine.defaults:
        given["temperature"] = 1.0
    if "seed" not in given and "seed" in known:
        given["seed"] = secrets.randbits(63)
    return given


def usage(generations: list[Generation]) -> dict[str, Any] | None:
    """Return what a request used; None where the engine does not tell tokens.

    Args:
        generations: one for each prompt.
    """
    streams = [each.streams[0] for each in generations]
    if not all(each.prompt.tokens for each in streams):
        return None
    prompt = sum(len(each.prompt.tokens) for each in streams)
    generated = sum(len(text.tokens) for each in generations for text in each.streams)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(each.reused_tokens for each in streams)},
    }
