"""Conversations: what they are as texts, and where in their tokens the assistant speaks."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from truthgpt_core.errors import in_one_line
from truthgpt_services.data.template_limits import checked, with_limits
from truthgpt_services.errors import DataError

Message = dict[str, Any]

ASSISTANT = "assistant"
_MARKS_TURNS = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Chat(str):
    """A conversation as a text: the JSON of its messages.

    What counts, splits and hashes texts does so with conversations too. Made by `of`; a part
    of it, or what another method of `str` returns, is an ordinary text.
    """

    __slots__ = ()

    @classmethod
    def of(cls, messages: object, where: str = "The conversation") -> Chat:
        """Return the conversation of these messages.

        Args:
            messages: a list of objects, each with a text as `role` and one as `content`.
            where: what is said of it in errors.

        Raises:
            DataError: they are something else.
        """
        form = 'A message is {"role": "user", "content": "..."}.'
        if not isinstance(messages, Sequence) or isinstance(messages, str):
            raise DataError(f"{where} is not a list of messages", hint=form)
        if not messages:
            raise DataError(f"{where} has no message")
        for number, message in enumerate(messages):
            if not isinstance(message, dict):
                raise DataError(f"{where}: message {number} is not an object", hint=form)
            for key in ("role", "content"):
                if not isinstance(message.get(key), str):
                    raise DataError(f'{where}: message {number} has no text as "{key}"', hint=form)
        try:
            return cls(json.dumps(messages, ensure_ascii=False, sort_keys=True))
        except (TypeError, ValueError) as error:
            raise DataError(f"{where} is no JSON: {error}") from None

    @property
    def messages(self) -> list[Message]:
        """Its messages, in their order."""
        messages: list[Message] = json.loads(self)
        return messages


class ChatEncoder:
    """Turns conversations into tokens with a tokenizer's chat template.

    Where the template marks the assistant's turns with `{% generation %}`, loss is on what
    it marks. Elsewhere a turn is what the template adds for it after the prompt that would
    ask for it, up to and with the end-of-sequence token; it is looked at that this is so.

    Args:
        tokenizer: of transformers, with a chat template.

    Raises:
        DataError: it has no template, or cannot say which characters a token is made of.
    """

    def __init__(self, tokenizer: Any) -> None:
        try:
            template = tokenizer.get_chat_template()
        except (ValueError, AttributeError) as error:
            raise DataError(
                f"The tokenizer has no chat template to use: {in_one_line(error)}",
                hint="Take the tokenizer of a model that was made for chats, or set its "
                "chat_template.",
            ) from None
        if not tokenizer.is_fast:
            raise DataError(
                f"{type(tokenizer).__name__} does not tell which characters a token is made of, "
                "so the assistant's turns cannot be found",
                hint="Take a fast tokenizer.",
            )
        self._tokenizer = tokenizer
        self._template = template
        self._marks_turns = _MARKS_TURNS.search(template) is not None

    def encode(self, chats: Sequence[Chat]) -> list[tuple[list[int], list[bool]]]:
        """Return the tokens of conversations, and for each whether there is loss on it.

        The template has limits; see `with_limits`.

        Raises:
            DataError: the template refuses one, takes more than it may, or does not tell where
                a turn begins.
        """
        return [self._tokens(*each) for each in with_limits(self._render, chats, _refused)]

    def _render(self, chat: Chat) -> tuple[str, list[tuple[int, int]]]:
        """Return a conversation as a text, and where in it the assistant speaks."""
        messages = chat.messages
        if not self._marks_turns:
            whole = self._apply(messages)
            numbers = [at for at, each in enumerate(messages) if each["role"] == ASSISTANT]
            return whole, [self._turn(messages, number, whole) for number in numbers]
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered: Any = render_jinja_template(
            [[{key: of for key, of in each.items() if of is not None} for each in messages]],
            chat_template=self._template,
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        texts, turns = rendered
        return checked(texts[0]), turns[0]

    def _tokens(self, text: str, turns: list[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids: list[int] = encoded["input_ids"]
        starts = [start for start, _ in encoded["offset_mapping"]]
        loss = [False] * len(ids)
        for begin, end in turns:
            if self._marks_turns:
                # As transformers does: from the token that has the first character.
                first, last = encoded.char_to_token(begin), encoded.char_to_token(end - 1)
                if first is None:
                    break
                after = len(ids) if last is None else last + 1
            else:
                # What begins before the turn was not the model's to say.
                first, after = bisect_left(starts, begin), bisect_left(starts, end)
            loss[first:after] = [True] * (after - first)
        return ids, loss

    def _turn(self, messages: list[Message], number: int, whole: str) -> tuple[int, int]:
        """Return where the characters of an assistant's message begin and end."""
        if number == 0:
            raise _unknown(messages, number, "nothing comes before it")
        before = self._apply(messages[:number], add_generation_prompt=True)
        through = self._apply(messages[: number + 1])
        if not (through.startswith(before) and whole.startswith(through)):
            raise _unknown(messages, number, "the template changes what came before a turn")
        turn = through[len(before) :]
        if not turn.lstrip().startswith(messages[number]["content"].strip()):
            raise _unknown(messages, number, "the turn does not begin with what is said in it")
        end = self._tokenizer.eos_token
        if end and turn.rstrip().endswith(end):
            # Nothing is generated after it.
            turn = turn.rstrip()
        return len(before), len(before) + len(turn)

    def _apply(self, messages: list[Message], **options: Any) -> str:
        return checked(self._tokenizer.apply_chat_template(messages, tokenize=False, **options))


def _refused(chat: Chat, why: str) -> DataError:
    return DataError(f"The chat template refuses a conversation: {why}: {_excerpt(chat.messages)}")


def _unknown(messages: list[Message], number: int, why: str) -> DataError:
    return DataError(
        f"With this chat template it cannot be told where the assistant's message {number} "
        f"begins: {why}: {_excerpt(messages)}",
        hint="Put {% generation %} and {% endgeneration %} around the assistant's turns in "
        "the tokenizer's chat_template.",
    )


def _excerpt(messages: list[Message]) -> str:
    text = json.dumps(messages, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
