"""InferenceService: text in, text out."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from time import perf_counter
from typing import Any, cast, overload

import torch

from truthgpt_core.errors import did_you_mean, in_one_line
from truthgpt_core.event_system import EventType, emit_event
from truthgpt_core.plugin_system import PluginManager, get_plugin_manager
from truthgpt_services.inference.batching import generate_rows
from truthgpt_services.inference.cache_key import Identity
from truthgpt_services.inference.chat_templates import Message
from truthgpt_services.inference.decoding import (
    GenerationError,
    Sampling,
    cache_length,
    check_new_tokens,
    context_of,
    refuse_unknown_tokens,
    stop_tokens,
    stream,
    vocabulary_of,
)
from truthgpt_services.inference.fingerprint import UnseenError
from truthgpt_services.inference.prompts import Prompt, is_conversation, read_prompt
from truthgpt_services.inference.response_cache import AnswerCache, CacheStatistics
from truthgpt_services.inference.settings import InferenceSettings, read_settings
from truthgpt_services.inference.text import AnswerText, TextStream

logger = logging.getLogger(__name__)

_SAMPLING = tuple(field.name for field in fields(Sampling))
_OPTIONS = ("max_new_tokens", "stop", *_SAMPLING)
DEFAULT_NEW_TOKENS = 128

_Tokens = tuple[int, ...]
Conversation = list[Message] | tuple[Message, ...]


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
        self._warned = False

    def configure(
        self, model: Any, tokenizer: Any, config: Mapping[str, Any] | None = None
    ) -> None:
        """Say what to generate with, and how.

        The response cache gives what the model would say again: without a `seed`, sampling
        begins at 0 each time, so an answer depends on nothing but the request and the model.
        If the model, its weights, its modules or their hooks, a plugin or a library is another
        one or was changed, the model is asked. So it is where such a thing cannot be seen (a
        hook or an activation that a notebook defines); a warning says so once. Weights that are
        changed past PyTorch (through `.data`, NumPy or their address) are seen by the next
        `configure`, or after `clear_cache`, and not before.

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
        self._warned = False
        if settings.use_cache:
            self._answers = AnswerCache(settings.cache_dir, settings.max_cache_bytes)
            self._identity = Identity(model, self._plugins)

    @property
    def cache_statistics(self) -> CacheStatistics:
        """How often the cache was asked since `configure`; never, if there is none."""
        return CacheStatistics() if self._answers is None else self._answers.statistics

    def clear_cache(self) -> None:
        """Forget every answer, those in `cache_dir` included, and read the weights anew.

        For weights that were changed past PyTorch: through `.data`, NumPy or their address.
        """
        if self._answers is not None and self._identity is not None:
            self._answers.clear()
            self._identity.forget()

    @overload
    def generate(
        self, prompt: str | Conversation, options: Mapping[str, Any] | None = None
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: list[str] | tuple[str, ...] | list[Conversation] | tuple[Conversation, ...],
        options: Mapping[str, Any] | None = None,
    ) -> list[str]: ...
    def generate(
        self,
        prompt: str | Conversation | Sequence[Any],
        options: Mapping[str, Any] | None = None,
    ) -> str | list[str]:
        """Continue a prompt, or several, which are decoded together.

        What follows a prompt is the same as if it were alone, but for rounding (see
        `generate_rows`).

        Args:
            prompt: as for `stream`, or a list of such prompts. A list of messages is one
                conversation.
            options: as for `stream`; they hold for each prompt.

        Returns:
            What follows the prompt, without it; for several, a list in their order.

        Raises:
            GenerationError: as for `stream`, and `prompt` is neither.
        """
        if isinstance(prompt, str):
            return "".join(self.stream(prompt, options))
        if is_conversation(prompt):
            return "".join(self.stream(cast(Conversation, prompt), options))
        request = self._request(options)
        prompts = self._prompts(prompt, request)
        with _told() as tally:
            return self._answer_all(prompts, request, tally)

    def stream(
        self, prompt: str | Conversation | Prompt, options: Mapping[str, Any] | None = None
    ) -> TextStream:
        """Continue a prompt, yielding text as soon as it is known.

        What the cache has comes in one piece.

        Args:
            prompt: a text, at least one token, which is continued as it is; or the messages of
                a conversation, each with `role` and `content`, which go through the chat
                template of the tokenizer; or what `read_prompt` made of one of them.
            options: `max_new_tokens` (default 128), `temperature` (default 0, the
                likeliest token), `top_k`, `top_p`, `seed` (default 0), `stop` (a text, or a
                list of texts: what is generated ends before the first of them).

        Returns:
            An iterator over pieces of text, which also says the tokens and why it ended.

        Raises:
            GenerationError: nothing was configured, an option is unknown or out of
                range, the chat template refuses the conversation, or the model cannot hold
                the text.
        """
        request = self._request(options)
        read = self._prompt(prompt, "The prompt")
        stream = TextStream(read, answer := AnswerText(self._tokenizer, request.stop))
        return stream.start(self._answer(stream, answer, request))

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
        stop = _stop_strings(sampling.pop("stop", ()))
        end = stop_tokens(self._model, self._tokenizer)
        return _Request(int(max_new_tokens), Sampling(**sampling), end, stop)

    def _prompts(self, given: Any, request: _Request) -> list[_Tokens]:
        if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
            raise GenerationError(
                f"The prompt is {given!r:.80}: it must be a text, a list of messages or a list "
                "of such prompts"
            )
        prompts = []
        for number, each in enumerate(given, start=1):
            name = f"Prompt {number} of {len(given)}"
            tokens = self._prompt(each, name).tokens
            if not tokens:
                raise GenerationError(f"{name} is empty")
            try:
                # All of them before the first is decoded: that may take long.
                cache_length(len(tokens) + request.max_new_tokens, context_of(self._model))
            except GenerationError as error:
                raise GenerationError(f"{name}: {error.message}", hint=error.hint) from None
            prompts.append(tokens)
        return prompts

    def _prompt(self, given: object, name: str) -> Prompt:
        prompt = read_prompt(self._tokenizer, given, name)
        refuse_unknown_tokens(prompt.tokens, vocabulary_of(self._model), name)
        return prompt

    def _answer(self, stream: TextStream, answer: AnswerText, request: _Request) -> Generator[str]:
        tokens = stream.prompt.tokens
        began = perf_counter()
        with _told() as tally:
            key = self._key(tokens, request) if tokens else None
            known = self._known(key, request)
            if known is not None:
                stream.cached = True
                # By the same tokenizer, so that is what it says of them now.
                text = _whole(answer, known)
                stream.finish_reason = request.reason(answer)
                yield text
                return
            for token in self._decoded(tokens, request):
                tally.add(1)
                if stream.first_token_seconds is None:
                    stream.first_token_seconds = perf_counter() - began
                yield answer.add(token)
                if answer.stopped_by is not None:
                    break
            stream.seconds = perf_counter() - began
            stream.finish_reason = request.reason(answer)
            yield answer.rest()
            # Between two pieces its consumer may have trained the model.
            if key is not None and key == self._key(tokens, request):
                self._keep(key, answer, request)

    def _answer_all(self, prompts: list[_Tokens], request: _Request, tally: _Tally) -> list[str]:
        # What is asked twice is answered once.
        missing: dict[_Tokens, str | None] = {}
        texts: dict[_Tokens, str] = {}
        for prompt in prompts:
            if prompt in texts or prompt in missing:
                continue
            key = self._key(prompt, request)
            known = self._known(key, request)
            if known is None:
                missing[prompt] = key
            else:
                texts[prompt] = _whole(AnswerText(self._tokenizer, request.stop), known)
        # Those of like length together: what is padded is computed for nothing.
        waiting = sorted(missing, key=len)
        size = self._settings.max_batch_size
        for begin in range(0, len(waiting), size):
            batch = waiting[begin : begin + size]
            for prompt, answer in zip(batch, self._decoded_together(batch, request), strict=True):
                tally.add(len(answer.tokens))
                again = AnswerText(self._tokenizer, request.stop)
                texts[prompt] = _whole(again, answer.tokens)
                self._keep(missing[prompt], again, request)
        return [texts[prompt] for prompt in prompts]

    def _decoded(self, prompt: _Tokens, request: _Request) -> Iterator[int]:
        with _evaluating(self._model):
            yield from stream(
                self._model,
                self._plugins.hooks,
                torch.tensor([prompt], dtype=torch.int64),
                max_new_tokens=request.max_new_tokens,
                sampling=request.sampling,
                stop=request.end,
            )

    def _decoded_together(self, prompts: list[_Tokens], request: _Request) -> list[AnswerText]:
        answers = [AnswerText(self._tokenizer, request.stop) for _ in prompts]

        def ended(row: int, token: int) -> bool:
            answers[row].add(token)
            return answers[row].stopped_by is not None

        if len(prompts) == 1:
            # As it would be alone: the fastest steps of plugins take one row.
            for token in self._decoded(prompts[0], request):
                if ended(0, token):
                    break
            return answers
        with _evaluating(self._model):
            generate_rows(
                self._model,
                self._plugins.hooks,
                prompts,
                max_new_tokens=request.max_new_tokens,
                sampling=request.sampling,
                stop=request.end,
                ended=ended,
            )
        return answers

    def _key(self, prompt: _Tokens, request: _Request) -> str | None:
        if self._identity is None:
            return None
        try:
            return self._identity.key(
                prompt, request.max_new_tokens, request.sampling, request.end, request.stop
            )
        except (UnseenError, RecursionError) as error:
            if not self._warned:
                self._warned = True
                # Not warnings.warn: where warnings are errors, it would cost the answer.
                logger.warning("Answers are not cached: %s", error)
            return None

    def _known(self, key: str | None, request: _Request) -> list[int] | None:
        """Return the tokens of an answer that is kept."""
        if self._answers is None or key is None:
            return None
        found: list[int] = []
        vocabulary = vocabulary_of(self._model)

        def usable(kept: str) -> bool:
            tokens = request.tokens_of(kept, vocabulary)
            if tokens is None:
                return False
            answer = AnswerText(self._tokenizer, request.stop)
            # Where the tokenizer is another one, the stop string may not be there.
            _whole(answer, tokens)
            found[:] = tokens
            return kept == request.kept(answer)

        return found if self._answers.get(key, usable) is not None else None

    def _keep(self, key: str | None, answer: AnswerText, request: _Request) -> None:
        if self._answers is not None and key is not None:
            self._answers.put(key, request.kept(answer))


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked of a prompt."""

    max_new_tokens: int
    sampling: Sampling
    end: frozenset[int]
    stop: tuple[str, ...]

    def reason(self, answer: AnswerText) -> str:
        """Say why an answer that is whole ended."""
        if answer.stopped_by is not None:
            return "stop_sequence"
        return "length" if len(answer.tokens) >= self.max_new_tokens else "eos_token"

    def kept(self, answer: AnswerText) -> str:
        """Return what the cache keeps of an answer."""
        return json.dumps({"tokens": answer.tokens, "finish_reason": self.reason(answer)})

    def tokens_of(self, kept: str, vocabulary: int) -> list[int] | None:
        """Return the tokens of what `kept` returned; None for anything else."""
        try:
            found = json.loads(kept)["tokens"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if not isinstance(found, list) or len(found) > self.max_new_tokens:
            return None
        whole = all(type(token) is int and 0 <= token < vocabulary for token in found)
        return found if whole else None


@dataclass(slots=True)
class _Tally:
    """What was done for a call."""

    tokens: int = 0
    computed: bool = False

    def add(self, tokens: int) -> None:
        self.tokens += tokens
        self.computed = True


def _whole(answer: AnswerText, tokens: Sequence[int]) -> str:
    return "".join([*map(answer.add, tokens), answer.rest()])


def _stop_strings(given: object) -> tuple[str, ...]:
    listed = (given,) if isinstance(given, str) else given
    if not isinstance(listed, list | tuple) or not all(isinstance(each, str) for each in listed):
        raise GenerationError(f"stop is {given!r:.80}: it must be a text or a list of texts")
    if "" in listed:
        raise GenerationError("stop has an empty text, which ends everything")
    return tuple(listed)


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
