"""Answers of models to one question, written in threads while the page looks on."""

from __future__ import annotations

import enum
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from truthgpt_core.errors import TruthGPTError, in_one_line
from truthgpt_plugin_gradio.models import DemoModel

if TYPE_CHECKING:
    from truthgpt_services.inference.text import TextStream


class State(enum.Enum):
    """How far an answer is."""

    WAITING = "waiting"
    READING = "reading the question"
    WRITING = "writing"
    OVER = "over"


class Answer:
    """One model's answer; any thread may look at it while another writes it.

    Args:
        model: who answers.
        answering: all answers that are written at the moment, this one included.

    Attributes:
        model: who answers.
        state: how far it is.
        text: what there is of it.
        tokens: how many tokens it has; 0 if the engine does not say.
        first_token_seconds: from the question to the first token; None before.
        tokens_per_second: how fast tokens followed the first one; None if that is not known.
        finish_reason: why it ended, in the words of `TextStream`; None before.
        is_chat: whether it went through the chat template of the model.
        error: why there is none; empty if nothing failed.
        most_at_once: the most answers that this process wrote at a time while it wrote this one.
    """

    def __init__(self, model: DemoModel, answering: Answering) -> None:
        self.model = model
        self.state = State.WAITING
        self.text = ""
        self.tokens = 0
        self.first_token_seconds: float | None = None
        self.tokens_per_second: float | None = None
        self.finish_reason: str | None = None
        self.is_chat = True
        self.error = ""
        self.most_at_once = 0
        self._answering = answering
        self._stream: TextStream | None = None
        self._lock = threading.Lock()
        self._closed = False

    def write(self, question: str, options: Mapping[str, Any]) -> None:
        """Generate it; it returns when the answer is over.

        Args:
            question: what the user asks.
            options: of `SamplingParams`.
        """
        try:
            with self._answering.counted(self):
                self._write(question, options)
        except TruthGPTError as error:
            self.error = str(error)
        except Exception as error:  # noqa: BLE001 - it is shown to the user, whatever it is
            self.error = in_one_line(error)
        finally:
            self.state = State.OVER

    def close(self) -> None:
        """Write no more: what it takes in the batch is free before the next pass."""
        with self._lock:
            self._closed, stream = True, self._stream
        if stream is not None:
            stream.close()

    def _write(self, question: str, options: Mapping[str, Any]) -> None:
        with self._lock:
            if self._closed:
                self.finish_reason = "cancelled"
                return
            self.state = State.READING
            stream = self.model.service.stream(self.model.prompt(question), options)
            self._stream = stream
        self.is_chat = stream.prompt.is_chat
        began = 0.0
        for _ in stream:
            now = perf_counter()
            if self.state is State.READING:
                self.state, began = State.WRITING, now
            self.text, self.tokens = stream.text, len(stream.tokens)
            self.first_token_seconds = stream.first_token_seconds
            if self.tokens > 1 and now > began:
                self.tokens_per_second = (self.tokens - 1) / (now - began)
            self.most_at_once = max(self.most_at_once, self._answering.count)
        self._finish(stream)

    def _finish(self, stream: TextStream) -> None:
        self.text, self.tokens = stream.text, len(stream.tokens)
        self.finish_reason = stream.finish_reason
        first, seconds = stream.first_token_seconds, stream.seconds
        self.first_token_seconds = first
        # The token that ends a text is decoded as well.
        after_first = self.tokens - 1 + (stream.finish_reason == "eos_token")
        if self.tokens and after_first > 0 and first is not None and seconds > first:
            self.tokens_per_second = after_first / (seconds - first)


class Answering:
    """All answers that a process writes, by the browser tab that they are for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._of_tabs: defaultdict[str, list[Answer]] = defaultdict(list)

    @property
    def count(self) -> int:
        """How many answers are written at the moment."""
        return self._count

    @contextmanager
    def counted(self, answer: Answer) -> Iterator[None]:
        """Count an answer as long as it is written."""
        with self._lock:
            self._count += 1
            answer.most_at_once = self._count
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1

    def ask(
        self,
        tab: str,
        models: Sequence[DemoModel],
        question: str,
        options: Mapping[str, Any],
        *,
        at_once: bool = False,
        seconds_between: float = 0.1,
    ) -> Iterator[list[Answer]]:
        """Let models answer a question.

        Args:
            tab: the browser tab that asks.
            models: who answers.
            question: what they are asked.
            options: of `SamplingParams`.
            at_once: whether all write at the same time; otherwise one after the other.
            seconds_between: how often it yields.

        Yields:
            The answers, again and again until all are over. Answers that nobody looks at any
            more, because the iterator was closed, are ended.
        """
        answers = [Answer(model, self) for model in models]
        turns = [[each] for each in answers] if at_once else [answers]

        def write(turn: list[Answer]) -> None:
            for answer in turn:
                answer.write(question, options)

        threads = [threading.Thread(target=write, args=(turn,), daemon=True) for turn in turns]
        with self._lock:
            self._of_tabs[tab] += answers
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    yield answers
                    thread.join(seconds_between)
            yield answers
        finally:
            for answer in answers:
                answer.close()
            with self._lock:
                left = [each for each in self._of_tabs.pop(tab, []) if each not in answers]
                if left:
                    self._of_tabs[tab] = left

    def stop(self, tab: str) -> None:
        """End the answers that a browser tab waits for."""
        with self._lock:
            answers = list(self._of_tabs.get(tab, ()))
        for answer in answers:
            answer.close()

    def stop_all(self) -> None:
        """End all answers."""
        for tab in list(self._of_tabs):
            self.stop(tab)
