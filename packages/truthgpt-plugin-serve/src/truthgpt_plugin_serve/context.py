"""What the routes share: the models, and how they are asked."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from truthgpt_core.decoding import SamplingParams
from truthgpt_plugin_serve.errors import NO_MORE, ApiError, overloaded, unavailable
from truthgpt_plugin_serve.fields import ResponsesRequest, Sampling
from truthgpt_plugin_serve.generation import Generation, in_thread
from truthgpt_plugin_serve.keys import Allowance
from truthgpt_plugin_serve.metrics import Metrics
from truthgpt_plugin_serve.places import Places
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

_FORMS = ("json_schema", "grammar")
"""Generation options that say what an answer has to be."""

_READERS = 4
_COMPILERS = 2

_Made = TypeVar("_Made")


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
        on_death: called with a model that generates no more, though it was not told to stop.
    """

    def __init__(self, models: Mapping[str, ServedModel], settings: Settings) -> None:
        self.models = models
        self.settings = settings
        self._places = {
            name: Places(settings.max_batch_size, settings.max_waiting)
            for name, each in models.items()
            if not each.engine.capabilities.logits
        }
        self.metrics = Metrics(models, self._places)
        self.draining = False
        self.live: set[Generation] = set()
        self.on_death: Callable[[ServedModel], None] = lambda model: None
        # For tokenizers and templates, which would hold up the streams.
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read request")
        self._compilers = ThreadPoolExecutor(_COMPILERS, thread_name_prefix="compile form")

    def close(self) -> None:
        """End the threads."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._compilers.shutdown(wait=False, cancel_futures=True)
        for places in self._places.values():
            places.close()

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

    async def compile(self, work: Callable[[], _Made]) -> _Made:
        """Compile the form of an answer, which what a client gives may make long.

        Raises:
            ApiError: it cannot be followed, takes too long, or others are compiled now.
        """
        begun, seconds = threading.Event(), self.settings.compile_timeout

        def begin() -> _Made:
            begun.set()
            return work()

        try:
            async with asyncio.timeout(seconds):
                return await in_thread(self._compilers, begin)
        except TimeoutError:
            if not begun.is_set():
                raise overloaded("The forms of other answers are being compiled") from None
            raise ApiError(
                400,
                f"The form of the answer takes more than {seconds:g} s to compile: make the schema "
                "simpler",
                code="constraint_too_complex",
            ) from None

    async def _compile_form(self, model: ServedModel, options: Mapping[str, Any]) -> None:
        """Compile what an answer has to be, so that no reader does: it is found when it begins."""
        from truthgpt_services.inference.constraints import make_constraint

        form = {name: options[name] for name in _FORMS if name in options}
        if form and model.engine.capabilities.logits:
            await self.compile(lambda: make_constraint(SamplingParams(**form), model.tokenizer))

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
        prompt_tokens, texts = len(getattr(prompt, "tokens", ())), options.get("n", 1)
        most = prompt_tokens + options["max_new_tokens"] * texts
        record.log |= {"model": model.name, "prompt_tokens": prompt_tokens}
        if self.settings.log_prompts:
            record.log["prompt"] = getattr(prompt, "text", prompt)
        places = self._places.get(model.name)
        with ExitStack() as undo:
            if places is not None:
                places.enter(texts)
                undo.callback(places.leave, texts)
            if record.allowance is not None:
                record.allowance.take_tokens(most)
                undo.callback(record.allowance.give_tokens, most)
            await self._compile_form(model, options)
            made = await Generation.start(
                model,
                prompt,
                beside_others(model.engine, options),
                timeout=self.settings.request_timeout,
                readers=self._readers,
                places=places,
                metrics=self.metrics,
                ended=lambda made: self._ended(record, most, prompt_tokens, made),
            )
            undo.pop_all()
        self.live.add(made)
        if not model.is_alive:
            # It died after the request was let in.
            made.cut(NO_MORE)
        return made

    def model_died(self, model: ServedModel) -> None:
        """End what waits for a model that generates no more."""
        for each in list(self.live):
            if each.model is model:
                each.cut(NO_MORE)
        self.on_death(model)

    def _ended(self, record: Record, charged: int, prompt: int, made: Generation) -> None:
        self.live.discard(made)
        if (places := self._places.get(made.model.name)) is not None:
            places.leave(len(made.streams))
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


def usage(generations: list[Generation], *, answered: bool = True) -> dict[str, Any] | None:
    """Return what a request used; None where the engine does not tell tokens.

    Args:
        generations: one for each prompt.
        answered: whether what was generated is returned: one that asks for no tokens gets none,
            though the model is asked for one.
    """
    streams = [each.streams[0] for each in generations]
    if not all(each.prompt.tokens for each in streams):
        return None
    prompt = sum(len(each.prompt.tokens) for each in streams)
    texts = [text for each in generations for text in each.streams] if answered else []
    generated = sum(len(text.tokens) for text in texts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(each.reused_tokens for each in streams)},
    }
