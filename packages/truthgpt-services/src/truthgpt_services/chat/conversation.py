"""Conversations: their messages, and the JSON files that they are saved in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.paths import display_path, expanded, read_regular_bytes, write_file
from truthgpt_services.data.chat_template import ASSISTANT, Chat, Message
from truthgpt_services.errors import DataError, OutputError

USER = "user"
SYSTEM = "system"
INTERRUPTED = "interrupted"
"""The key that marks an answer which the user stopped."""

LARGEST_FILE = 1 << 24
"""In bytes: no model holds a longer conversation."""

_MESSAGES = "messages"
_COMPARED = "compared"
_FORM = 'It must have a list of {"role": "user", "content": "..."}, alone or as "messages".'


@dataclass(slots=True)
class Conversation:
    """What was said, in order.

    Attributes:
        system: the system message, which comes first; None for none.
        messages: the others, each with `role` and `content`. An answer that the user stopped has
            `interrupted`, too.
    """

    system: str | None = None
    messages: list[Message] = field(default_factory=list)

    @property
    def last_answer(self) -> str | None:
        """The answer to the last question; None if it has none."""
        if self.messages and self.messages[-1]["role"] == ASSISTANT:
            return str(self.messages[-1]["content"])
        return None

    def up_to_question(self) -> list[Message]:
        """Return the messages up to the last question, without its answer; empty if there is none.

        What a file ends with may be of any role.
        """
        questions = [at for at, each in enumerate(self.messages, 1) if each["role"] == USER]
        return self.messages[: questions[-1]] if questions else []

    def for_model(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages as a chat template takes them, after the system message."""
        begin = [] if self.system is None else [{"role": SYSTEM, "content": self.system}]
        return [*begin, *({key: each[key] for key in ("role", "content")} for each in messages)]

    def copy(self) -> Conversation:
        """Return another with the same messages."""
        return Conversation(self.system, list(self.messages))

    def as_saved(self) -> list[Message]:
        """Return all messages, those marked that the user stopped."""
        begin = [] if self.system is None else [{"role": SYSTEM, "content": self.system}]
        return [*begin, *self.messages]


def save(path: str, conversations: Mapping[str, Conversation], *, replace: bool = False) -> None:
    """Write conversations to a JSON file, which holds all of them at any moment, or none.

    Args:
        path: of the file.
        conversations: by the name of their model: one, or two that are compared.
        replace: put it in the place of a file that is there.

    Raises:
        OutputError: a file is there that may not be replaced, or it cannot be written.
    """
    sides = [
        {"model": name, _MESSAGES: conversation.as_saved()}
        for name, conversation in conversations.items()
    ]
    content = sides[0] | ({_COMPARED: sides[1]} if len(sides) > 1 else {})
    displayed = display_path(path)
    try:
        target = expanded(path)
        if target.is_symlink() or (target.exists() and not target.is_file()):
            raise OutputError(f"{displayed} is not a regular file", hint="Name another.")
        if target.exists() and not replace:
            raise OutputError(f"{displayed} exists", hint=f"/save! {displayed} replaces it.")
        write_file(target, json.dumps(content, ensure_ascii=False, indent=2) + "\n")
    except OSError as error:
        raise OutputError(f"{displayed} cannot be written: {error.strerror or error}") from None


def load(path: str) -> list[Conversation]:
    """Read what `save` wrote, or a list of messages.

    Args:
        path: of the file.

    Returns:
        One conversation, or two that were compared.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    displayed = display_path(path)
    try:
        found = json.loads(read_regular_bytes(expanded(path), limit=LARGEST_FILE))
    except OSError as error:
        raise DataError(f"{displayed} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{displayed} is not JSON: {error}") from None
    sides = [found]
    if isinstance(found, dict) and _COMPARED in found:
        sides.append(found[_COMPARED])
    return [_conversation(each, displayed) for each in sides]


def _conversation(given: Any, displayed: str) -> Conversation:
    try:
        chat = Chat.of(given.get(_MESSAGES) if isinstance(given, dict) else given, displayed)
        chat.encode()
    except UnicodeEncodeError:
        raise DataError(f"{displayed} has half a character, which is not Unicode text") from None
    except TruthGPTError as error:
        raise DataError(error.message, hint=_FORM) from None
    read = [
        {"role": each["role"], "content": each["content"]}
        | ({INTERRUPTED: True} if each.get(INTERRUPTED) is True else {})
        for each in chat.messages
    ]
    if read[0]["role"] == SYSTEM:
        return Conversation(read[0]["content"], read[1:])
    return Conversation(None, read)
