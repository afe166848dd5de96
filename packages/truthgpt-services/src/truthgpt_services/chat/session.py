"""A chat: the models that answer, the options that they answer with, and what they are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from truthgpt_core.decoding import SAMPLING_OPTIONS
from truthgpt_core.errors import UsageError
from truthgpt_services.chat import conversation as files
from truthgpt_services.chat.conversation import USER, Conversation
from truthgpt_services.chat.speaker import Answer, Speaker
from truthgpt_services.data.chat_template import Message

_LARGEST_SEED = 2**64 - 1


class Session:
    """A chat with one model, or with two that are compared.

    Args:
        speaker: the model.
        options: those that were given, as the inference service takes them.

    Attributes:
        speakers: the models; each has a conversation of its own.
        options: what the next answers are generated with.
    """

    def __init__(self, speaker: Speaker, options: dict[str, Any]) -> None:
        self.speakers = [speaker]
        self.options = options

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said yet."""
        return not self.speakers[0].conversation.messages

    def ask(self, question: str) -> list[Answer]:
        """Begin an answer of each model.

        Raises:
            GenerationError: one cannot answer; then none does, and nothing has changed.
        """
        message = {"role": USER, "content": question}
        return self._answers(lambda each: [*each.conversation.messages, message])

    def regenerate(self) -> list[Answer]:
        """Begin another answer to the last question, with the next seed.

        Raises:
            UsageError: nothing was asked yet.
            GenerationError: as for `ask`.
        """
        if not self.speakers[0].conversation.up_to_question():
            raise UsageError("There is no question yet that could be answered again")
        previous = [each.conversation.last_answer for each in self.speakers]
        if any(each is not None for each in previous):
            seed = self.options.get("seed", 0)
            self.options["seed"] = seed + 1 if seed < _LARGEST_SEED else 0
        answers = self._answers(lambda each: each.conversation.up_to_question())
        for answer, before in zip(answers, previous, strict=True):
            answer.previous = before
        return answers

    def keep(self, answers: Sequence[Answer]) -> bool:
        """Make answers a part of their conversations, unless all were stopped before they began.

        A question without any answer is not kept: many chat templates refuse the next one.

        Returns:
            Whether they are.
        """
        has_answer = any(each.text or not each.interrupted for each in answers)
        if has_answer:
            for each in answers:
                each.keep()
        return has_answer

    def begin_anew(self, system: str | None) -> None:
        """Forget what was said.

        Args:
            system: the system message from here on; None for none.

        Raises:
            GenerationError: the chat template of a model refuses it; then nothing has changed.
        """
        self._replace([Conversation(system)])

    def compare(self, other: Speaker) -> None:
        """Let another model answer beside the first, with the same conversation so far.

        Raises:
            GenerationError: it cannot answer with the options, or go on with the conversation.
        """
        conversation = self.speakers[0].conversation.copy()
        other.check(self.options)
        other.check_conversation(conversation)
        other.conversation = conversation
        self.speakers = [self.speakers[0], other]

    def compare_no_more(self) -> None:
        """Let the first model alone answer."""
        del self.speakers[1:]

    def set_option(self, name: str, value: Any) -> None:
        """Change an option.

        Args:
            name: its name.
            value: None for what the model's authors, or the service, suggest.

        Raises:
            GenerationError: it is unknown or wrong; then nothing has changed.
        """
        options = self.options | {name: value}
        if value is None and (name in self.options or name in SAMPLING_OPTIONS):
            del options[name]
        for each in self.speakers:
            each.check(options)
        self.options = options

    def save(self, path: str, *, replace: bool) -> None:
        """Write what was said to a file; see `conversation.save`."""
        if self.is_empty:
            raise UsageError("There is no message yet that could be saved")
        names = [each.name for each in self.speakers]
        # The same model may be compared with itself.
        named = {
            name if names.index(name) == at else f"{name} (2)": each.conversation
            for at, (name, each) in enumerate(zip(names, self.speakers, strict=True))
        }
        files.save(path, named, replace=replace)

    def load(self, path: str) -> None:
        """Go on with what `save` wrote, or with a list of messages.

        Raises:
            DataError: the file cannot be read, or holds something else.
            GenerationError: the chat template of a model refuses it; then nothing has changed.
        """
        self._replace(files.load(path))

    def _replace(self, conversations: Sequence[Conversation]) -> None:
        """Give each model its conversation; where there is one for all, a copy of it."""
        own = [
            conversations[min(at, len(conversations) - 1)].copy()
            for at in range(len(self.speakers))
        ]
        for speaker, conversation in zip(self.speakers, own, strict=True):
            speaker.check_conversation(conversation)
        for speaker, conversation in zip(self.speakers, own, strict=True):
            speaker.conversation = conversation

    def _answers(self, messages: Callable[[Speaker], list[Message]]) -> list[Answer]:
        answers: list[Answer] = []
        try:
            for each in self.speakers:
                answers.append(each.answer(messages(each), self.options))  # noqa: PERF401
        except BaseException:
            for answer in answers:
                answer.interrupt()
            raise
        return answers
