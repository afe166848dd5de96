"""What `InferenceService.configure` made: one model, and how text is generated with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from truthgpt_core.decoding import AnswerText, Engine, GenerationError, refuse_unknown_tokens
from truthgpt_services.inference.answers import Answers
from truthgpt_services.inference.options import RequestOptions
from truthgpt_services.inference.prompts import Prompt, read_prompt
from truthgpt_services.inference.request import Request
from truthgpt_services.inference.scheduler import Scheduler
from truthgpt_services.inference.settings import InferenceSettings
from truthgpt_services.inference.text import Pieces, TextStream


@dataclass(frozen=True, slots=True)
class Setup:
    """One model, and how text is generated with it.

    Attributes:
        engine: runs the model.
        tokenizer: of the model.
        settings: what was asked for.
        scheduler: generates with the engine; None if that chooses tokens itself.
        answers: the response cache; None if none is wanted.
    """

    engine: Engine
    tokenizer: Any
    settings: InferenceSettings
    scheduler: Scheduler | None
    answers: Answers | None

    def prompts(self, given: Any, requested: RequestOptions) -> list[Prompt]:
        """Read a list of prompts: all of them before the first is decoded, which may take long.

        Raises:
            GenerationError: it is no list, or as for `prompt`.
        """
        if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
            raise GenerationError(
                f"The prompt is {given!r:.80}: it must be a text, a list of messages or a list "
                "of such prompts"
            )
        return [
            self.prompt(each, f"Prompt {number} of {len(given)}", requested)
            for number, each in enumerate(given, start=1)
        ]

    def prompt(self, given: object, name: str, requested: RequestOptions) -> Prompt:
        """Read a prompt that the model can continue.

        Args:
            given: as for `read_prompt`.
            name: what errors call it.
            requested: says how long the answer may be.

        Raises:
            GenerationError: it is empty, too long or of tokens that the model does not know, or as
                for `read_prompt`.
        """
        prompt = read_prompt(self.tokenizer, given, name)
        if not prompt.tokens:
            raise GenerationError(f"{name} is empty")
        used, limit = (
            len(prompt.tokens) + requested.params.max_new_tokens,
            self.engine.context_length,
        )
        if limit is not None and used > limit:
            raise GenerationError(
                f"{name}: prompt and answer have {used} tokens, and the model holds {limit}",
                hint="Shorten the prompt, or ask for fewer tokens.",
            )
        refuse_unknown_tokens(prompt.tokens, self.engine.vocabulary_size, name)
        return prompt

    def start(
        self,
        read: Prompt,
        requested: RequestOptions,
        priority: int,
        timeout: float | None,
        progressed: Callable[[], None] = lambda: None,
    ) -> TextStream:
        """Return a text: from the cache, or as the scheduler will generate it.

        Args:
            read: what is continued.
            requested: how.
            priority: lower numbers begin first.
            timeout: seconds after which it ends as it is.
            progressed: called when more of it can be read.

        Raises:
            GenerationError: `priority` is not an integer, or `timeout` not a number.
            QueueFullError: as many wait as may.
        """
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise GenerationError(f"priority is {priority!r:.80}: it must be an integer")
        # NaN is not equal to itself.
        if timeout is not None and (not isinstance(timeout, int | float) or timeout != timeout):
            raise GenerationError(f"timeout is {timeout!r:.80}: it must be a number of seconds")
        key = known = None
        if self.answers is not None:
            key = self.answers.key(read.tokens, requested)
            known = self.answers.get(key, requested, self.tokenizer)
        if known is not None:
            answer, text, reason = known
            stream = TextStream(read, answer)
            stream.cached = True
            return stream.start(_recalled(text, reason))
        answer, pieces = AnswerText(self.tokenizer.decode, requested.params.stop), deque[str]()

        def accept(token: int) -> bool:
            if piece := answer.add(token):
                pieces.append(piece)
            return answer.stopped_by is not None

        request = Request(
            prompt=read.tokens,
            params=requested.params,
            choose=requested.sampler(read.tokens, self.tokenizer),
            accept=accept,
            end=requested.end,
            progressed=progressed,
            decoder=requested.own_decoder(),
            priority=priority,
            deadline=None if timeout is None else monotonic() + timeout,
        )
        scheduler = self.scheduler
        assert scheduler is not None
        scheduler.submit(request)
        stream = TextStream(read, answer, request, pieces, lambda: scheduler.cancel(request))
        return stream.start(_made(scheduler, self.answers, request, answer, pieces, key, requested))


def _made(
    scheduler: Scheduler,
    answers: Answers | None,
    request: Request,
    answer: AnswerText,
    pieces: deque[str],
    key: str | None,
    requested: RequestOptions,
) -> Pieces:
    """Yield a text as the scheduler makes it; return why it ended."""
    while True:
        scheduler.wait(lambda: bool(pieces) or request.finish_reason is not None)
        while pieces:
            yield pieces.popleft()
        if request.finish_reason is not None and not pieces:
            break
    if request.error is not None:
        raise request.error
    yield answer.rest()
    # Between two pieces its consumer may have trained the model.
    if answers is not None and key == answers.key(request.prompt, requested):
        answers.put(key, answer.tokens, request.finish_reason)
    return request.finish_reason


def _recalled(text: str, reason: str) -> Pieces:
    yield text
    return reason
