"""InferenceService: text in, text out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any, overload

from truthgpt_core.decoding import Engine, GenerationError
from truthgpt_core.errors import in_one_line
from truthgpt_core.event_system import (
    EventEmitter,
    InferenceFailed,
    InferenceFinished,
    InferenceStarted,
    RequestEnded,
    RequestStarted,
)
from truthgpt_core.plugin_system import PluginManager, get_plugin_manager
from truthgpt_services.data.chat_template import Message
from truthgpt_services.inference.answers import Answers
from truthgpt_services.inference.engine import TorchEngine
from truthgpt_services.inference.options import RequestOptions, read_options
from truthgpt_services.inference.prompts import Prompt, is_conversation
from truthgpt_services.inference.request import Request
from truthgpt_services.inference.response_cache import CacheStatistics
from truthgpt_services.inference.scheduler import QueueFullError, Scheduler
from truthgpt_services.inference.settings import read_settings
from truthgpt_services.inference.setup import Setup
from truthgpt_services.inference.statistics import SchedulerStatistics
from truthgpt_services.inference.text import Pieces, TextStream

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
        # One thing, which is replaced at once: other threads may be asking for text meanwhile.
        self._setup: Setup | None = None

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
                recently used go first), `max_batch_size` (default 8; how many texts are generated
                at once), `max_waiting` (default 1024; how many more may wait) and
                `prefix_cache_tokens` (default 4096; how much of texts that ended an engine keeps
                for prompts that begin the same way, if it can).

        Raises:
            GenerationError: a setting is unknown or wrong; or it is called by a listener, logits
                processor or decoder while it takes part in generating.
        """
        settings = read_settings(config)
        self._plugins.activate_all()
        engine = model if isinstance(model, Engine) else TorchEngine(model, self._plugins.hooks)
        scheduler = answers = None
        if engine.capabilities.logits:
            scheduler = Scheduler(
                engine,
                max_batch_size=settings.max_batch_size,
                max_waiting=settings.max_waiting,
                prefix_cache_tokens=settings.prefix_cache_tokens,
                notify=self._tell,
            )
        if settings.use_cache:
            answers = Answers(settings, engine, self._plugins)
        if self._setup is not None and self._setup.scheduler is not None:
            self._setup.scheduler.close()
        tokenizer = tokenizer if tokenizer is not None else engine.tokenizer
        self._setup = Setup(engine, tokenizer, settings, scheduler, answers)

    @property
    def statistics(self) -> SchedulerStatistics:
        """What was generated since `configure`, and what waits."""
        scheduler = None if self._setup is None else self._setup.scheduler
        return SchedulerStatistics() if scheduler is None else scheduler.statistics

    @property
    def cache_statistics(self) -> CacheStatistics:
        """How often the cache was asked since `configure`; never, if there is none."""
        answers = None if self._setup is None else self._setup.answers
        return CacheStatistics() if answers is None else answers.statistics

    def clear_cache(self) -> None:
        """Forget every answer, those in `cache_dir` included, and read the weights anew.

        For weights that were changed past PyTorch: through `.data`, NumPy or their address.
        """
        if self._setup is not None and self._setup.answers is not None:
            self._setup.answers.clear()

    @overload
    def generate(
        self,
        prompt: str | Conversation,
        options: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: list[str] | tuple[str, ...] | list[Conversation] | tuple[Conversation, ...],
        options: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
    ) -> list[str]: ...
    def generate(
        self,
        prompt: str | Conversation | Sequence[Any],
        options: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
    ) -> Any:
        """Continue a prompt, or several, which are decoded together.

        What follows a prompt is the same as if it were alone: to the bit with an engine that says
        so, such as `native`; else but for rounding, since a sum over more rows may be added up in
        another order, which can decide between two tokens that are nearly as likely.

        Args:
            prompt: as for `stream`, or a list of such prompts. A list of messages is one
                conversation.
            options: as for `stream`; they hold for each prompt.
            priority: as for `stream`.
            timeout: as for `stream`.

        Returns:
            What follows the prompt, without it; for several, a list in their order. Where the
            option `n` is more than 1, a list of that many texts in place of each text.

        Raises:
            GenerationError: as for `stream`, and `prompt` is neither; or another thread called
                `configure` meanwhile.
        """
        setup, requested = self._options(options)
        one = isinstance(prompt, str) or is_conversation(prompt)
        if not requested.engine.capabilities.logits:
            prompts = [prompt] if one else list(prompt)
            texts = [
                ["".join(text) for text in self._of_engine(each, requested)] for each in prompts
            ]
            return _unpacked(texts, one, requested.params.n)
        read = (
            [setup.prompt(prompt, "The prompt", requested)]
            if one
            else setup.prompts(prompt, requested)
        )
        with _call_events(self._events) as tally:
            texts = self._texts(setup, read, requested, priority, timeout, tally)
        return _unpacked(texts, one, requested.params.n)

    def stream(
        self,
        prompt: str | Conversation | Prompt,
        options: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
    ) -> TextStream:
        """Continue a prompt, yielding text as soon as it is known.

        It waits for its turn from now on, and is generated while it, or another text of this
        service, is read. What the cache has comes in one piece.

        Args:
            prompt: a text, at least one token, which is continued as it is; or the messages of
                a conversation, each with `role` and `content`, which go through the chat
                template of the tokenizer; or what `read_prompt` made of one of them.
            options: those of `SamplingParams`, and those of the decoders and logits processors of
                plugins. What is left out is as the model's authors suggest in its generation
                config, or else as `SamplingParams` has it: the likeliest tokens, 128 at most.
            priority: those with lower numbers begin first.
            timeout: seconds from now after which the text ends as it is then.

        Returns:
            An iterator over pieces of text, which also says the tokens and why it ended.

        Raises:
            GenerationError: nothing was configured, an option is unknown or out of
                range, the chat template refuses the conversation, or the model cannot hold
                the text.
            QueueFullError: as many texts wait as may.
        """
        setup, requested = self._options(options)
        if requested.params.n != 1:
            raise GenerationError(
                f"n is {requested.params.n}, and a stream is one text",
                hint="Call streams, which returns one for each text, or generate.",
            )
        (stream,) = self._streams(setup, prompt, requested, priority, timeout)
        return stream

    def streams(
        self,
        prompt: str | Conversation | Prompt,
        options: Mapping[str, Any] | None = None,
        *,
        priority: int = 0,
        timeout: float | None = None,
        progressed: Callable[[], None] = lambda: None,
    ) -> list[TextStream]:
        """Continue a prompt in as many ways as the option `n` says.

        Args:
            prompt: as for `stream`.
            options: as for `stream`.
            priority: as for `stream`.
            timeout: as for `stream`.
            progressed: called when more of one of them can be read without waiting
                (`TextStream.is_ready`), by the thread that generates, which waits for it to
                return; it must not raise. Not called for an engine that chooses tokens itself.

        Returns:
            One stream for each text. They are generated together, whichever is read.

        Raises:
            GenerationError: as for `stream`.
        """
        setup, requested = self._options(options)
        return self._streams(setup, prompt, requested, priority, timeout, progressed)

    def run(self, stop: Callable[[], bool]) -> None:
        """Generate what is asked for, until told to stop.

        For a thread of a program that reads streams without waiting for the model, such as a
        server. It returns at once where the engine chooses tokens itself, or nothing was
        configured: such streams generate while they are read.

        Args:
            stop: whether to return; asked after each token, and once a second in between.
        """
        scheduler = None if self._setup is None else self._setup.scheduler
        if scheduler is not None:
            scheduler.run(stop)

    def _options(self, options: Mapping[str, Any] | None) -> tuple[Setup, RequestOptions]:
        setup = self._setup
        if setup is None:
            raise GenerationError(
                "There is no model to generate with", hint="Call configure first."
            )
        return setup, read_options(options, setup.engine, setup.tokenizer, self._plugins)

    def _tell(self, request: Request) -> None:
        """Emit the event that a text begins, or ended."""
        began, ended = request.started, request.ended
        if ended is None:
            assert began is not None
            self._events.emit(
                RequestStarted(
                    prompt_tokens=len(request.prompt),
                    reused_tokens=request.reused,
                    waited=began - request.submitted,
                )
            )
            return
        self._events.emit(
            RequestEnded(
                reason=str(request.finish_reason),
                tokens=request.made,
                first_token_seconds=request.first_token_seconds,
                seconds=ended - request.submitted,
            )
        )

    def _streams(
        self,
        setup: Setup,
        prompt: object,
        requested: RequestOptions,
        priority: int,
        timeout: float | None,
        progressed: Callable[[], None] = lambda: None,
    ) -> list[TextStream]:
        if not requested.engine.capabilities.logits:
            return self._of_engine(prompt, requested)
        read = setup.prompt(prompt, "The prompt", requested)
        made: list[TextStream] = []
        try:
            for index in range(requested.params.n):
                stream = setup.start(read, requested.numbered(index), priority, timeout, progressed)
                pieces = self._announced(stream.tokens, stream.pieces, cached=stream.cached)
                made.append(stream.start(pieces))
        except BaseException:
            for stream in made:
                stream.close()
            raise
        return made

    def _announced(self, tokens: list[int], pieces: Pieces, *, cached: bool) -> Pieces:
        """Emit events of a text that is a call by itself."""
        with _call_events(self._events) as tally:
            reason = yield from pieces
            if not cached:
                tally.add(len(tokens))
        return reason

    def _of_engine(self, prompt: object, requested: RequestOptions) -> list[TextStream]:
        """Return the texts that an engine generates which chooses tokens itself."""
        numbered = map(requested.numbered, range(requested.params.n))
        return [self._stream_of_engine(prompt, each) for each in numbered]

    def _stream_of_engine(self, prompt: object, requested: RequestOptions) -> TextStream:
        """Let an engine that chooses tokens itself generate the text."""
        is_chat = is_conversation(prompt)
        if isinstance(prompt, Prompt):
            prompt, is_chat = prompt.text, False
        if not is_chat and not isinstance(prompt, str):
            raise GenerationError(
                f"The prompt is {prompt!r:.80}: it must be a text or a list of messages"
            )
        stream = TextStream(Prompt("" if is_chat else str(prompt), (), is_chat))
        times = stream.times

        def pieces() -> Pieces:
            began = perf_counter()
            with _call_events(self._events) as tally, requested.engine.session():
                made = iter(requested.engine.generate(prompt, requested.params))
                while True:
                    try:
                        piece = next(made)
                    except StopIteration as end:
                        reason = end.value or "eos_token"
                        break
                    tally.add(1)
                    times.seconds = perf_counter() - began
                    if times.first_token is None:
                        times.first_token = times.seconds
                    yield piece
                times.seconds = perf_counter() - began
            return str(reason)

        return stream.start(pieces())

    def _texts(
        self,
        setup: Setup,
        prompts: Sequence[Prompt],
        requested: RequestOptions,
        priority: int,
        timeout: float | None,
        tally: _Tally,
    ) -> list[list[str]]:
        """Return the texts of several prompts, generated together."""
        scheduler = setup.scheduler
        assert scheduler is not None
        # Before any is submitted: that they end is an event, whose listener may be who asks.
        scheduler.refuse_nested()
        each = [requested.numbered(index) for index in range(requested.params.n)]
        # What is asked twice is answered once. Those of like length go together: where sequences
        # are padded, padding is computed for nothing.
        numbers = range(len(each))
        wanted = {(prompt.tokens, index): prompt for prompt in prompts for index in numbers}
        left = deque(sorted(wanted, key=lambda what: len(what[0])))
        going: dict[tuple[tuple[int, ...], int], TextStream] = {}
        texts: dict[tuple[tuple[int, ...], int], str] = {}
        began = monotonic()
        try:
            while left or going:
                # No more than are generated at once, so that there is room for others to wait.
                while left and len(going) < setup.settings.max_batch_size:
                    what = left[0]
                    rest = None if timeout is None else timeout - (monotonic() - began)
                    try:
                        going[what] = setup.start(wanted[what], each[what[1]], priority, rest)
                    except QueueFullError:
                        if not going:
                            raise
                        break
                    left.popleft()
                scheduler.wait(lambda: any(text.is_over for text in going.values()))
                for what in [what for what, text in going.items() if text.is_over]:
                    stream = going.pop(what)
                    texts[what] = "".join(stream)
                    if stream.finish_reason == "cancelled":
                        raise GenerationError(
                            "Generating was ended: another thread called configure meanwhile"
                        )
                    if not stream.cached:
                        tally.add(len(stream.tokens))
        finally:
            for stream in going.values():
                stream.close()
        return [[texts[prompt.tokens, index] for index in numbers] for prompt in prompts]


@dataclass(slots=True)
class _Tally:
    """What was computed for a call."""

    tokens: int = 0
    computed: bool = False

    def add(self, tokens: int) -> None:
        """Count tokens that were computed."""
        self.tokens += tokens
        self.computed = True


def _unpacked(texts: list[list[str]], one: bool, n: int) -> Any:
    """Return the texts of each prompt: of one prompt alone, and a text where there is one."""
    plain = [of_prompt[0] if n == 1 else of_prompt for of_prompt in texts]
    return plain[0] if one else plain


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
