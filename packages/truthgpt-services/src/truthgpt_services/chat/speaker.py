"""A model that takes part in a chat, with its own conversation, and the answers that it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any

from truthgpt_core.decoding import GenerationError
from truthgpt_services.chat.conversation import INTERRUPTED, USER, Conversation
from truthgpt_services.data.chat_template import ASSISTANT, Message

if TYPE_CHECKING:
    from truthgpt_core.decoding import Engine
    from truthgpt_core.plugin_system import PluginManager
    from truthgpt_services.inference.text import TextStream
    from truthgpt_services.services.inference_service import InferenceService

LONGEST_ANSWER = 1024
"""Tokens of an answer where the user sets no limit; fewer where the context has less room."""


class Speaker:
    """A model that answers.

    Args:
        name: what the user typed for it.
        engine: runs it.
        tokenizer: of the model; None where the engine has none.
        service: generates with the engine, and with no other.
        plugins: whose options can be given.

    Attributes:
        conversation: what was said so far.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        tokenizer: Any,
        service: InferenceService,
        plugins: PluginManager,
    ) -> None:
        self.name = name
        self.engine = engine
        self.conversation = Conversation()
        self._tokenizer = tokenizer
        self._service = service
        self._plugins = plugins

    def check(self, options: Mapping[str, Any]) -> None:
        """See that answers can be generated with these options.

        Raises:
            GenerationError: one is unknown or out of range, or the engine does not have it.
        """
        from truthgpt_services.inference.options import read_options

        read_options(options, self.engine, self._tokenizer, self._plugins)

    def check_conversation(self, conversation: Conversation) -> None:
        """See that the chat template of the model takes a conversation.

        Raises:
            GenerationError: it refuses it.
        """
        messages = list(conversation.messages)
        if not messages or messages[-1]["role"] != USER:
            messages.append({"role": USER, "content": "?"})
        self._prompt(conversation.for_model(messages))

    def answer(self, messages: Sequence[Message], options: Mapping[str, Any]) -> Answer:
        """Begin an answer; it is generated while it is read.

        Args:
            messages: what was said, without the system message. The last is the question.
            options: those that were given. The answer is no longer than the context has room for.

        Raises:
            GenerationError: the context of the model has no room for an answer, or as for
                `InferenceService.stream`.
        """
        prompt, used = self._prompt(self.conversation.for_model(messages))
        wanted, limit = options.get("max_new_tokens", LONGEST_ANSWER), self.engine.context_length
        room = wanted if limit is None else limit - used
        if room < 1:
            raise GenerationError(
                f"The message was not sent: with it the conversation has {used:,} tokens, and "
                f"{self.name} holds {limit:,}",
                hint="/clear begins anew, and /save FILE keeps what was said.",
            )
        most = min(wanted, room)
        allowed = {"max_new_tokens": most, "seed": options.get("seed", 0)}
        options = {**options, **{name: each for name, each in allowed.items() if self._has(name)}}
        stream = self._service.stream(prompt, options)
        return Answer(self, list(messages), stream, most=most, fills_context=wanted > room)

    def _has(self, option: str) -> bool:
        return option in self.engine.options

    def _prompt(self, messages: list[Message]) -> tuple[Any, int]:
        """Return what the service is given, and how many tokens it has; 0 if nobody knows."""
        if not self.engine.capabilities.logits:
            # It applies the template itself, or its server does.
            return messages, 0
        from truthgpt_services.inference.prompts import read_prompt

        prompt = read_prompt(self._tokenizer, messages, "The conversation")
        return prompt, len(prompt.tokens)


class Answer(Iterator[str]):
    """An answer as it comes: an iterator over pieces of its text.

    Args:
        speaker: whose it is.
        messages: the conversation up to the question.
        stream: the text.
        most: how many tokens it has at most.
        fills_context: whether that is fewer than wanted, because the context is full then.

    Attributes:
        seconds: what reading it took so far. What is done between two pieces does not count, so
            that answers that are read in turns are timed as if each was alone.
        first_seconds: the same up to its first piece; None before.
        first_tokens: how many tokens the first piece has.
        interrupted: whether it was stopped before its end.
        previous: the answer in whose place it comes; None if there is none.
    """

    def __init__(
        self,
        speaker: Speaker,
        messages: list[Message],
        stream: TextStream,
        *,
        most: int,
        fills_context: bool = False,
    ) -> None:
        self.speaker = speaker
        self.stream = stream
        self.most = most
        self.seconds = 0.0
        self.first_seconds: float | None = None
        self.first_tokens = 0
        self.interrupted = False
        self.previous: str | None = None
        self._messages = messages
        self._fills_context = fills_context

    @property
    def text(self) -> str:
        """What was said so far."""
        return self.stream.text

    @property
    def is_over(self) -> bool:
        """Whether nothing more of it comes."""
        return self.stream.finish_reason is not None

    @property
    def is_cut_off(self) -> bool:
        """Whether it ended because it has as many tokens as it may have."""
        return self.stream.finish_reason == "length"

    @property
    def filled_context(self) -> bool:
        """Whether it ended because the context of the model is full."""
        return self.is_cut_off and self._fills_context

    def __next__(self) -> str:
        """Return the next piece of text, which is not empty."""
        began = perf_counter()
        try:
            piece = next(self.stream)
        finally:
            self.seconds += perf_counter() - began
        if self.first_seconds is None:
            self.first_seconds, self.first_tokens = self.seconds, len(self.stream.tokens)
        return piece

    def interrupt(self) -> None:
        """Generate no more of it, if it is not over."""
        self.interrupted = self.interrupted or not self.is_over
        # A server may break off while its answer is closed.
        with suppress(GenerationError):
            self.stream.close()

    def keep(self) -> None:
        """Make it a part of the conversation, with its question."""
        message: Message = {"role": ASSISTANT, "content": self.text}
        if self.interrupted:
            message[INTERRUPTED] = True
        self.speaker.conversation.messages = [*self._messages, message]
