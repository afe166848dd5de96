"""Forms that conversations have in files, recognized by their fields and read as messages.

- messages: `messages: [{role, content}, ...]`;
- ShareGPT: `conversations: [{from, value}, ...]`, perhaps `system`;
- Alpaca: `instruction`, `output`, perhaps `input`, `system`, `history: [[asked, answered], ...]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from truthgpt_core.errors import meant_or_known
from truthgpt_services.errors import DataError

_SHAREGPT_ROLES: Final[Mapping[str, str]] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "system": "system",
}


@dataclass(frozen=True, slots=True)
class ChatForm:
    """One form of conversations.

    Attributes:
        name: what it is called.
        fields: that an object of this form has.
        reading: how it is read, in words.
    """

    name: str
    fields: tuple[str, ...]
    reading: str


MESSAGES: Final = ChatForm("conversations", ("messages",), "role and content as they are")
SHAREGPT: Final = ChatForm(
    "ShareGPT conversations",
    ("conversations",),
    "human is read as user, gpt as assistant; an answer before any question is left out",
)
ALPACA: Final = ChatForm(
    "Alpaca instructions",
    ("instruction", "output"),
    "instruction and input are read as what the user says, output as what the assistant says",
)
_FORMS: Final = (MESSAGES, SHAREGPT, ALPACA)


def recognize(row: Mapping[str, Any]) -> ChatForm | None:
    """Return the form that an object has by its fields; None if it is not a conversation."""
    return next((form for form in _FORMS if row.keys() >= set(form.fields)), None)


def messages_of(row: Mapping[str, Any], form: ChatForm, where: str) -> object:
    """Return the messages of an object, each with `role` and `content`.

    What has another shape comes back as it is: `Chat.of` refuses it, with what a message is.

    Args:
        row: the object.
        form: its form.
        where: what is said of it in errors.

    Raises:
        DataError: a role or a text of it is none.
    """
    if form is ALPACA:
        return _alpaca(row, where)
    messages = row[form.fields[0]]
    if not _is_sharegpt(messages):
        return messages
    return [*_system(row, where), *_sharegpt(messages, where)]


def as_messages(value: object, where: str) -> object:
    """Return the value of a field that the user named as messages, in whichever form it is."""
    return list(_sharegpt(value, where)) if _is_sharegpt(value) else value


def _is_sharegpt(messages: object) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(each, dict) and "from" in each for each in messages)
    )


def _sharegpt(messages: Any, where: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        sender = message["from"]
        role = _SHAREGPT_ROLES.get(sender) if isinstance(sender, str) else None
        if role is None:
            known = f"Known: {', '.join(sorted(_SHAREGPT_ROLES))}."
            raise DataError(
                f'{where}: message {number} is from "{sender!s:.60}", which is not a known role',
                hint=meant_or_known(str(sender)[:60], _SHAREGPT_ROLES, known),
            )
        if not isinstance(message.get("value"), str):
            raise DataError(f'{where}: message {number} has no text as "value"')
        has_user_turn = any(each["role"] == "user" for each in found)
        if role != "assistant" or has_user_turn:
            found.append({"role": role, "content": message["value"]})
    return found


def _alpaca(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    messages = _system(row, where)
    for pair in row.get("history") or ():
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(s, str) for s in pair)
        ):
            raise DataError(f'{where}: "history" is not a list of pairs of texts')
        messages += _exchange(*pair)
    instruction = _text(row, "instruction", where)
    # Empty in many data sets: the instruction is all that is asked.
    given = _text(row, "input", where) if row.get("input") else ""
    answer = _text(row, "output", where)
    return [*messages, *_exchange(f"{instruction}\n\n{given}" if given else instruction, answer)]


def _exchange(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _system(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    if not row.get("system"):
        return []
    return [{"role": "system", "content": _text(row, "system", where)}]


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    value = row[field]
    if not isinstance(value, str):
        raise DataError(f'{where}: "{field}" is not a text')
    return value
