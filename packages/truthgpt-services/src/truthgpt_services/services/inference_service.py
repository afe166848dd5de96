"""InferenceService: text in, text out."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast, overload

from truthgpt_core.decoding import (
    SAMPLING_OPTIONS,
    Decoder,
    Engine,
    GenerationError,
    LogitsProcessor,
    SamplingParams,
    refuse_unknown_tokens,
    require,
)
from truthgpt_core.errors import did_you_mean, in_one_line
from truthgpt_core.event_system import (
    EventEmitter,
    InferenceFailed,
    InferenceFinished,
    InferenceStarted,
)
from truthgpt_core.plugin_system import PluginManager, get_plugin_manager
from truthgpt_services.data.chat_template import Message
from truthgpt_services.inference.cache_key import Identity
from truthgpt_services.inference.decoder import TokenByToken, decode_rows, stream
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.inference.fingerprint import UnseenError
from truthgpt_services.inference.prompts import Prompt, is_conversation, read_prompt
from truthgpt_services.inference.response_cache import AnswerCache, CacheStatistics
from truthgpt_services.inference.sampling import Sampler
from truthgpt_services.inference.settings import InferenceSettings, read_settings
from truthgpt_services.inference.text import AnswerText, TextStream

logger = logging.getLogger(__name__)

_Tokens = tuple[int, ...]
Conversation = list[Message] | tuple[Message, ...]


class InferenceService:
    """Generates text with a model, through the hooks of the active plugins.

    Args:
        plugins: whose hooks are called; that of the default application if None.
        events: where it emits events; the emitter of `plugins` if None.
    """

    def __init__(
        self, plugins: PluginManager | None = None, events: EventEmitter | None = None
    ) -> None:
        self._plugins = plugins or get_plugin_manager()
        self._events = events or self._plugins.events
        self._engine: Engine | None = None
        self._tokenizer: Any = None
        self._settings = InferenceSettings()
        self._answers: AnswerCache | None = None
        self._identity: Identity | None = None
        self._warned = False

    def configure(
        self, model: Any, tokenizer: Any = None, config: Mapping[str, Any] | None = None
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
            model: a causal language model of transformers, or an `Engine` that runs one.
            tokenizer: the one it was trained with; None for that of the engine.
            config: `use_cache` (default False), `cache_dir` (where answers are kept on disk;
                default None, in memory alone), `max_cache_bytes` (default 64 MiB; the least
                recently used go first) and `max_batch_size` (default 8; how many prompts are
                decoded together).

        Raises:
            GenerationError: a setting is unknown or wrong.
        """
        settings = read_settings(config)
        self._plugins.activate_all()
        engine = model if isinstance(model, Engine) else TorchEngine(model, self._plugins.hooks)
        self._engine = engine
        self._tokenizer = tokenizer if tokenizer is not None else engine.tokenizer
        self._settings = settings
        self._answers = self._identity = None
        self._warned = False
        if settings.use_cache:
            self._answers = AnswerCache(settings.cache_dir, settings.max_cache_bytes)
            self._identity = Identity(engine, self._plugins)

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
        `decode_rows`).

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
        with _call_events(self._events) as tally:
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
                list of texts: what is generated ends before the first of them), and those of
                the decoders and logits processors of plugins.

        Returns:
            An iterator over pieces of text, which also says the tokens and why it ended.

        Raises:
            GenerationError: nothing was configured, an option is unknown or out of
                range, the chat template refuses the conversation, or the model cannot hold
                the text.
        """
        request = self._request(options)
        if not request.engine.capabilities.logits:
            return self._stream_of_engine(prompt, request)
        read = self._prompt(prompt, "The prompt", request)
        answers = TextStream(read, answer := AnswerText(self._tokenizer, request.params.stop))
        return answers.start(self._answer(answers, answer, request))

    def _request(self, options: Mapping[str, Any] | None) -> _Request:
        engine = self._engine
        if engine is None:
            raise GenerationError(
                "There is no model to generate with", hint="Call configure first."
            )
        if options is not None and not isinstance(options, Mapping):
            raise GenerationError(f"The options are {options!r}: they must be a mapping")
        given = {str(name): value for name, value in (options or {}).items()}
        params = SamplingParams(
            **{name: given.pop(name) for name in SAMPLING_OPTIONS if name in given}
        )
        others = dict(given)
        decoder = self._plugins.hooks.make_decoder(engine=engine, options=given)
        decoder = decoder or TokenByToken()
        processors = self._processors(given)
        if engine.capabilities.logits:
            for capability in decoder.requires:
                require(engine, capability, f'The decoder "{decoder.name}"')
        elif others:
            require(engine, "logits", f'The option "{next(iter(others))}"')
        if processors:
            require(engine, "masks", f'The option "{next(iter(others))}"')
        end = engine.end_tokens
        eos = getattr(self._tokenizer, "eos_token_id", None)
        if isinstance(eos, int):
            end |= {eos}
        return _Request(engine, params, end, decoder, tuple(processors), others)

    def _processors(self, given: dict[str, Any]) -> list[LogitsProcessor]:
        """Make the logits processors that some options are for, and take these out."""
        factory = self._plugins.factories["logits_processor_factory"]
        kinds: dict[str, type[LogitsProcessor]] = {
            name: factory.get_class(name) for name in factory.names()
        }
        made = []
        for name, kind in kinds.items():
            own = {option: given.pop(option) for option in kind.options if option in given}
            if own:
                made.append(factory.create(name, **own))
        if given:
            option = next(iter(given))
            known = [*SAMPLING_OPTIONS, *(each for kind in kinds.values() for each in kind.options)]
            raise GenerationError(
                f'There is no option "{option}" for generating',
                hint=did_you_mean(option, known) or f"Known: {', '.join(known)}.",
            )
        return made

    def _stream_of_engine(self, prompt: object, request: _Request) -> TextStream:
        """Let an engine that chooses tokens itself generate the text."""
        is_chat = is_conversation(prompt)
        if isinstance(prompt, Prompt):
            prompt, is_chat = prompt.text, False
        if not is_chat and not isinstance(prompt, str):
            raise GenerationError(
                f"The prompt is {prompt!r:.80}: it must be a text or a list of messages"
            )
        stream = TextStream(Prompt("" if is_chat else str(prompt), (), is_chat))

        def pieces() -> Generator[str]:
            began = perf_counter()
            with _call_events(self._events) as tally, request.engine.session():
                made = iter(request.engine.generate(prompt, request.params))
                while True:
                    try:
                        piece = next(made)
                    except StopIteration as end:
                        stream.finish_reason = end.value or "eos_token"
                        break
                    tally.add(1)
                    if stream.first_token_seconds is None:
                        stream.first_token_seconds = perf_counter() - began
                    yield piece
                stream.seconds = perf_counter() - began

        return stream.start(pieces())

    def _prompts(self, given: Any, request: _Request) -> list[_Tokens]:
        if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
            raise GenerationError(
                f"The prompt is {given!r:.80}: it must be a text, a list of messages or a list "
                "of such prompts"
            )
        prompts = []
        for number, each in enumerate(given, start=1):
            name = f"Prompt {number} of {len(given)}"
            # All of them before the first is decoded: that may take long.
            tokens = self._prompt(each, name, request).tokens
            if not tokens:
                raise GenerationError(f"{name} is empty")
            used, limit = len(tokens) + request.params.max_new_tokens, request.engine.context_length
            if limit is not None and used > limit:
                raise GenerationError(
                    f"{name}: prompt and answer have {used} tokens, and the model holds {limit}",
                    hint="Shorten the prompt, or ask for fewer tokens.",
                )
            prompts.append(tokens)
        return prompts

    def _prompt(self, given: object, name: str, request: _Request) -> Prompt:
        prompt = read_prompt(self._tokenizer, given, name)
        refuse_unknown_tokens(prompt.tokens, request.engine.vocabulary_size, name)
        return prompt

    def _answer(self, stream: TextStream, answer: AnswerText, request: _Request) -> Generator[str]:
        tokens = stream.prompt.tokens
        began = perf_counter()
        with _call_events(self._events) as tally:
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
                texts[prompt] = _whole(AnswerText(self._tokenizer, request.params.stop), known)
        # Those of like length together: what is padded is computed for nothing.
        waiting = sorted(missing, key=len)
        size = self._settings.max_batch_size
        for begin in range(0, len(waiting), size):
            batch = waiting[begin : begin + size]
            for prompt, answer in zip(batch, self._decoded_together(batch, request), strict=True):
                tally.add(len(answer.tokens))
                again = AnswerText(self._tokenizer, request.params.stop)
                texts[prompt] = _whole(again, answer.tokens)
                self._keep(missing[prompt], again, request)
        return [texts[prompt] for prompt in prompts]

    def _decoded(self, prompt: _Tokens, request: _Request) -> Iterator[int]:
        return stream(
            request.engine,
            prompt,
            request.params,
            end=request.end,
            decoder=request.decoder,
            processors=request.processors,
        )

    def _decoded_together(self, prompts: list[_Tokens], request: _Request) -> list[AnswerText]:
        answers = [AnswerText(self._tokenizer, request.params.stop) for _ in prompts]

        def ended(row: int, token: int) -> bool:
            if token in request.end:
                return True
            answers[row].add(token)
            return answers[row].stopped_by is not None

        rows = request.engine.capabilities.rows
        together = rows is None or rows >= len(prompts)
        if len(prompts) == 1 or not together or not isinstance(request.decoder, TokenByToken):
            # One as it would be alone: the fastest steps of plugins take one row.
            for row, prompt in enumerate(prompts):
                for token in self._decoded(prompt, request):
                    if ended(row, token):
                        break
            return answers
        with request.engine.session():
            decode_rows(
                request.engine,
                prompts,
                [request.sampler() for _ in prompts],
                max_new_tokens=request.params.max_new_tokens,
                ended=ended,
            )
        return answers

    def _key(self, prompt: _Tokens, request: _Request) -> str | None:
        if self._identity is None:
            return None
        try:
            return self._identity.key(
                prompt, request.params, request.end, request.decoder, request.others
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
        vocabulary = request.engine.vocabulary_size

        def usable(entry: str) -> bool:
            tokens = request.tokens_of(entry, vocabulary)
            if tokens is None:
                return False
            answer = AnswerText(self._tokenizer, request.params.stop)
            # Where the tokenizer is another one, the stop string may not be there.
            _whole(answer, tokens)
            found[:] = tokens
            return entry == request.cache_entry(answer)

        return found if self._answers.get(key, usable) is not None else None

    def _keep(self, key: str | None, answer: AnswerText, request: _Request) -> None:
        if self._answers is not None and key is not None:
            self._answers.put(key, request.cache_entry(answer))


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked of a prompt."""

    engine: Engine
    params: SamplingParams
    end: frozenset[int]
    decoder: Decoder
    processors: tuple[LogitsProcessor, ...]
    others: Mapping[str, Any]

    def sampler(self) -> Sampler:
        """Return what chooses the tokens of one sequence."""
        device = getattr(self.engine, "device", "cpu")
        return Sampler(self.params, device, self.processors)

    def reason(self, answer: AnswerText) -> str:
        """Say why an answer that is whole ended."""
        if answer.stopped_by is not None:
            return "stop_sequence"
        return "length" if len(answer.tokens) >= self.params.max_new_tokens else "eos_token"

    def cache_entry(self, answer: AnswerText) -> str:
        """Return what the cache keeps of an answer."""
        return json.dumps({"tokens": answer.tokens, "finish_reason": self.reason(answer)})

    def tokens_of(self, entry: str, vocabulary: int | None) -> list[int] | None:
        """Return the tokens of what `cache_entry` returned; None for anything else."""
        try:
            found = json.loads(entry)["tokens"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if not isinstance(found, list) or len(found) > self.params.max_new_tokens:
            return None
        whole = all(
            type(token) is int and token >= 0 and (vocabulary is None or token < vocabulary)
            for token in found
        )
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


@contextmanager
def _call_events(events: EventEmitter) -> Iterator[_Tally]:
    """Tell as events that a call begins, and how it ends."""
    events.emit(InferenceStarted())
    began, tally = perf_counter(), _Tally()
    try:
        yield tally
    except Exception as error:
        events.emit(InferenceFailed(reason=in_one_line(error)))
        raise
    seconds, cached = perf_counter() - began, not tally.computed
    events.emit(InferenceFinished(tokens=tally.tokens, seconds=seconds, cached=cached))
