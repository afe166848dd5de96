"""InferenceService: text in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from time import perf_counter
from typing import Any, overload

import torch

from truthgpt_core.errors import did_you_mean, in_one_line
from truthgpt_core.event_system import EventType, emit_event
from truthgpt_core.plugin_system import PluginManager, get_plugin_manager
from truthgpt_services.inference.answers import AnswerCache, CacheStatistics
from truthgpt_services.inference.batches import generate_rows
from truthgpt_services.inference.decoding import (
    GenerationError,
    Sampling,
    cache_length,
    check_new_tokens,
    context_of,
    stop_tokens,
    stream,
)
from truthgpt_services.inference.identity import Identity
from truthgpt_services.inference.settings import InferenceSettings, read_settings
from truthgpt_services.models.loading import explained

_SAMPLING = tuple(field.name for field in fields(Sampling))
_OPTIONS = ("max_new_tokens", *_SAMPLING)
DEFAULT_NEW_TOKENS = 128

_Tokens = tuple[int, ...]


class InferenceService:
    """Generates text with a model, through the hooks of the active plugins.

    Args:
        plugins: the process's plugin manager if None.
    """

    def __init__(self, plugins: PluginManager | None = None) -> None:
        self._plugins = plugins or get_plugin_manager()
        self._model: Any = None
        self._tokenizer: Any = None
        self._settings = InferenceSettings()
        self._answers: AnswerCache | None = None
        self._identity: Identity | None = None

    def configure(
        self, model: Any, tokenizer: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        """Say what to generate with, and how.

        The cache gives what the model would say again: without a `seed`, sampling begins at
        0 each time, so an answer depends on nothing but the request and the model. If the
        model, its weights, the tokenizer, a plugin or a library is another one, or was
        changed, no answer of before is given.

        Args:
            model: a causal language model of transformers.
            tokenizer: the one it was trained with.
            config: `use_cache` (default False), `cache_dir` (where answers are kept on disk;
                default None, in memory alone), `max_cache_bytes` (default 64 MiB; the least
                recently used go first) and `max_batch_size` (default 8; how many prompts are
                decoded together).

        Raises:
            GenerationError: a setting is unknown or wrong.
        """
        settings = read_settings(config)
        self._plugins.activate_all()
        self._model = model
        self._tokenizer = tokenizer
        self._settings = settings
        self._answers = self._identity = None
        if settings.use_cache:
            self._answers = AnswerCache(settings.cache_dir, settings.max_cache_bytes)
            self._identity = Identity(model, tokenizer, self._plugins)

    @property
    def cache_statistics(self) -> CacheStatistics:
        """How often the cache was asked since `configure`; never, if there is none."""
        return CacheStatistics() if self._answers is None else self._answers.statistics

    @overload
    def generate(self, prompt: str, options: Mapping[str, Any] | None = None) -> str: ...
    @overload
    def generate(
        self, prompt: list[str] | tuple[str, ...], options: Mapping[str, Any] | None = None
    ) -> list[str]: ...
    def generate(
        self,
        prompt: str | list[str] | tuple[str, ...],
        options: Mapping[str, Any] | None = None,
    ) -> str | list[str]:
        """Continue a prompt, or several, which are decoded together.

        What follows a prompt is the same as if it were alone, but for rounding (see
        `generate_rows`).

        Args:
            prompt: a text, or a list of texts.
            options: as for `stream`; they hold for each prompt.

        Returns:
            What follows the prompt, without it; for several, a list in their order.

        Raises:
            GenerationError: as for `stream`, and `prompt` is neither.
        """
        if isinstance(prompt, str):
            return "".join(self.stream(prompt, options))
        request = self._request(options)
        prompts = self._prompts(prompt, request)
        with _told() as tally:
            return self._answer_all(prompts, request, tally)

    def stream(self, prompt: str, options: Mapping[str, Any] | None = None) -> Iterator[str]:
        """Continue a prompt, yielding text as soon as it is known.

        What the cache has comes in one piece.

        Args:
            prompt: at least one token.
            options: `max_new_tokens` (default 128), `temperature` (default 0, the
                likeliest token), `top_k`, `top_p`, `seed` (default 0).

        Raises:
            GenerationError: nothing was configured, an option is unknown or out of
                range, or the model cannot hold the text.
        """
        request = self._request(options)
        return self._answer(self._tokens(prompt, "The prompt"), request)

    def _request(self, options: Mapping[str, Any] | None) -> _Request:
        if self._model is None:
            raise GenerationError(
                "There is no model to generate with", hint="Call configure first."
            )
        if options is not None and not isinstance(options, Mapping):
            raise GenerationError(f"The options are {options!r}: they must be a mapping")
        sampling = dict(options or {})
        for option in sampling:
            if option not in _OPTIONS:
                raise GenerationError(
                    f'There is no option "{option}" for generating',
                    hint=did_you_mean(str(option), _OPTIONS) or f"Known: {', '.join(_OPTIONS)}.",
                )
        max_new_tokens = sampling.pop("max_new_tokens", DEFAULT_NEW_TOKENS)
        check_new_tokens(max_new_tokens)
        stop = stop_tokens(self._model, self._tokenizer)
        return _Request(max_new_tokens, Sampling(**sampling), stop)

    def _prompts(self, texts: Any, request: _Request) -> list[_Tokens]:
        if not isinstance(texts, Sequence) or isinstance(texts, bytes | bytearray):
            raise GenerationError(
                f"The prompt is {texts!r:.80}: it must be a text or a list of texts"
            )
        prompts = []
        for number, text in enumerate(texts, start=1):
            name = f"Prompt {number} of {len(texts)}"
            tokens = self._tokens(text, name)
            if not tokens:
                raise GenerationError(f"{name} is empty")
            try:
                # All of them before the first is decoded: that may take long.
                cache_length(len(tokens) + request.max_new_tokens, context_of(self._model))
            except GenerationError as error:
                raise GenerationError(f"{name}: {error.message}", hint=error.hint) from None
            prompts.append(tokens)
        return prompts

    def _tokens(self, text: Any, name: str) -> _Tokens:
        if not isinstance(text, str):
            raise GenerationError(f"{name} is {text!r:.80}: it must be a text")
        with explained(f"{name} cannot be encoded"):
            return tuple(self._tokenizer(text).input_ids)

    def _answer(self, prompt: _Tokens, request: _Request) -> Iterator[str]:
        with _told() as tally:
            key = self._key(prompt, request) if prompt else None
            known = self._known(key)
            if known is not None:
                yield known
                return
            pieces = []
            for piece in self._as_text(self._decoded(prompt, request), tally):
                pieces.append(piece)
                yield piece
            # Between two pieces its consumer may have trained the model.
            if key is not None and key == self._key(prompt, request):
                self._keep(key, "".join(pieces))

    def _answer_all(self, prompts: list[_Tokens], request: _Request, tally: _Tally) -> list[str]:
        keys = [self._key(prompt, request) for prompt in prompts]
        # What is asked twice is answered once.
        missing: dict[_Tokens, str | None] = {}
        known: dict[_Tokens, str] = {}
        for prompt, key in zip(prompts, keys, strict=True):
            if prompt in known or prompt in missing:
                continue
            text = self._known(key)
            if text is None:
                missing[prompt] = key
            else:
                known[prompt] = text
        # Those of like length together: what is padded is computed for nothing.
        waiting = sorted(missing, key=len)
        size = self._settings.max_batch_size
        for begin in range(0, len(waiting), size):
            batch = waiting[begin : begin + size]
            for prompt, tokens in zip(batch, self._decoded_together(batch, request), strict=True):
                known[prompt] = "".join(self._as_text(iter(tokens), tally))
                self._keep(missing[prompt], known[prompt])
        return [known[prompt] for prompt in prompts]

    def _decoded(self, prompt: _Tokens, request: _Request) -> Iterator[int]:
        with _evaluating(self._model):
            yield from stream(
                self._model,
                self._plugins.hooks,
                torch.tensor([prompt], dtype=torch.int64),
                max_new_tokens=request.max_new_tokens,
                sampling=request.sampling,
                stop=request.stop,
            )

    def _decoded_together(
        self, prompts: list[_Tokens], request: _Request
    ) -> Sequence[Iterable[int]]:
        if len(prompts) == 1:
            # As it would be alone: the fastest steps of plugins take one row.
            return [self._decoded(prompts[0], request)]
        with _evaluating(self._model):
            return generate_rows(
                self._model,
                self._plugins.hooks,
                prompts,
                max_new_tokens=request.max_new_tokens,
                sampling=request.sampling,
                stop=request.stop,
            )

    def _key(self, prompt: _Tokens, request: _Request) -> str | None:
        if self._identity is None:
            return None
        return self._identity.key(prompt, request.max_new_tokens, request.sampling, request.stop)

    def _known(self, key: str | None) -> str | None:
        return None if self._answers is None or key is None else self._answers.get(key)

    def _keep(self, key: str | None, text: str) -> None:
        if self._answers is not None and key is not None:
            self._answers.put(key, text)

    def _as_text(self, tokens: Iterator[int], tally: _Tally) -> Iterator[str]:
        tally.computed = True
        made: list[int] = []
        # Only a short tail is decoded each time. It begins a token before what is new,
        # because a tokenizer writes a first token without the space before it.
        start = done = 0
        for token in tokens:
            made.append(token)
            tally.tokens += 1
            known = self._tokenizer.decode(made[start:done])
            text = self._tokenizer.decode(made[start:])
            # A token can be a part of a character; the rest of it comes with the next.
            if not text.endswith("\N{REPLACEMENT CHARACTER}"):
                yield text[len(known) :]
                start, done = done, len(made)
        yield self._tokenizer.decode(made[start:])[len(self._tokenizer.decode(made[start:done])) :]


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked of a prompt."""

    max_new_tokens: int
    sampling: Sampling
    stop: frozenset[int]


@dataclass(slots=True)
class _Tally:
    """What was done for a call."""

    tokens: int = 0
    computed: bool = False


@contextmanager
def _told() -> Iterator[_Tally]:
    """Tell as events that a call begins, and how it ends."""
    emit_event(EventType.INFERENCE_STARTED, {})
    began, tally = perf_counter(), _Tally()
    try:
        yield tally
    except Exception as error:
        emit_event(EventType.INFERENCE_FAILED, {"reason": in_one_line(error)})
        raise
    emit_event(
        EventType.INFERENCE_FINISHED,
        {
            "tokens": tally.tokens,
            "seconds": perf_counter() - began,
            "cached": not tally.computed,
        },
    )


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Keep a model in evaluation mode for a while: one that is trained is at random else."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
