"""What a model is to continue: a text as it is, or a conversation through the chat template."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from truthgpt_core.child_process import ChildError
from truthgpt_core.decoding import GenerationError, refuse_unknown_tokens
from truthgpt_core.errors import TruthGPTError, in_one_line
from truthgpt_services.data.chat_template import Chat, Message
from truthgpt_services.data.template_limits import checked, limited_template

_FORM = 'A conversation is a list of messages like {"role": "user", "content": "..."}.'


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is to continue.

    Attributes:
        text: what the model reads, with the special tokens that a template writes.
        tokens: of the text.
        is_chat: whether a chat template made it.
    """

    text: str
    tokens: tuple[int, ...]
    is_chat: bool


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer has a chat template that is used by default."""
    try:
        return bool(tokenizer.get_chat_template())
    except (ValueError, AttributeError, TypeError):
        return False


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """Write a conversation as its model expects it, up to where the assistant speaks.

    Args:
        tokenizer: of transformers, with a chat template.
        messages: each with `role` and `content`.

    Returns:
        The prompt, special tokens included.

    Raises:
        GenerationError: the template refuses the conversation, or takes more than it may; see
            `limited_template`.
    """
    try:
        text: str = _template(tokenizer)(list(messages))
    except ChildError as error:
        raise GenerationError(
            f"The chat template refuses the conversation: {error.how:.500}",
            hint="A prompt that is a text is continued without it; for the command: --raw.",
        ) from None
    return text


_templates: weakref.WeakKeyDictionary[Any, tuple[Any, Any, Callable[[Any], Any]]] = (
    weakref.WeakKeyDictionary()
)
"""What applies the template of a tokenizer, with what it depends on."""


def _template(tokenizer: Any) -> Callable[[Any], Any]:
    """Return what applies the template of a tokenizer, in a process that stays."""
    template, special = tokenizer.chat_template, dict(tokenizer.special_tokens_map)
    known = _templates.get(tokenizer)
    if known is None or known[:2] != (template, special):
        # Not the tokenizer: with it in its value, the entry would never go.
        held = weakref.ref(tokenizer)

        def apply(messages: list[Message]) -> str:
            found = held()
            assert found is not None
            return checked(
                found.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            )

        known = _templates[tokenizer] = (template, special, limited_template(apply))
    return known[2]


def is_conversation(given: object) -> bool:
    """Whether a prompt is meant as messages, be they right or not."""
    return isinstance(given, list | tuple) and bool(given) and isinstance(given[0], dict)


def as_conversation(tokenizer: Any, text: str, system: str | None = None) -> str | list[Message]:
    """Return a text as what a user says, if the tokenizer has a chat template.

    Args:
        tokenizer: of transformers.
        text: what is asked.
        system: a system message before it.

    Returns:
        The messages; the text as it is if there is no template.

    Raises:
        GenerationError: there is a system message and no template.
    """
    if has_template(tokenizer):
        begin = [] if system is None else [{"role": "system", "content": system}]
        return [*begin, {"role": "user", "content": text}]
    if system is not None:
        raise GenerationError(
            "The model has no chat template, so it cannot be given a system message",
            hint="Write it into the prompt.",
        )
    return text


def check_length(prompt: Prompt, config: Any, max_new_tokens: int) -> None:
    """See that a model holds a prompt and its answer, before its weights are loaded.

    Args:
        prompt: the prompt.
        config: of the model.
        max_new_tokens: how many tokens the answer has at most.

    Raises:
        GenerationError: the prompt is empty, or too long, or has tokens that the model does
            not know.
    """
    if not prompt.tokens:
        raise GenerationError("The prompt is empty")
    part = config.get_text_config()
    limit, used = getattr(part, "max_position_embeddings", None), len(prompt.tokens)
    if isinstance(limit, int) and used + max_new_tokens > limit:
        room = limit - used
        raise GenerationError(
            f"The prompt has {used} tokens and the answer up to {max_new_tokens}, and the model "
            f"holds {limit}",
            hint=f"There is room for --max-new-tokens {room}." if room > 0 else "Shorten it.",
        )
    if isinstance(vocabulary := getattr(part, "vocab_size", None), int):
        refuse_unknown_tokens(prompt.tokens, vocabulary)


def read_prompt(tokenizer: Any, given: object, name: str = "The prompt") -> Prompt:
    """Turn a text, or the messages of a conversation, into tokens.

    Args:
        tokenizer: of transformers.
        given: a text; a list of messages, each with `role` and `content`; or what this
            function returned.
        name: what it is called in errors.

    Raises:
        GenerationError: it is neither, there is no chat template, or the template or the
            tokenizer refuses it.
    """
    if isinstance(given, Prompt):
        return given
    if isinstance(given, str):
        return Prompt(given, _tokens(tokenizer, given, name), is_chat=False)
    if not is_conversation(given):
        raise GenerationError(
            f"{name} is {given!r:.80}: it must be a text or a list of messages", hint=_FORM
        )
    if not has_template(tokenizer):
        raise GenerationError(
            f"{name} is a conversation, and the tokenizer has no chat template",
            hint="Give a text, or set the tokenizer's chat_template.",
        )
    try:
        messages = Chat.of(given, name).messages
    except TruthGPTError as error:
        raise GenerationError(error.message, hint=error.hint) from None
    text = render(tokenizer, messages)
    # The template has written those that there are to be.
    return Prompt(text, _tokens(tokenizer, text, name, add_special_tokens=False), is_chat=True)


def _tokens(tokenizer: Any, text: str, name: str, **options: bool) -> tuple[int, ...]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise GenerationError(
            f"{name} is not Unicode text: it has half a character at {error.start}",
            hint="It was probably read in another encoding; UTF-8 is needed.",
        ) from None
    try:
        return tuple(tokenizer(text, verbose=False, **options).input_ids)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the tokenizers library panics past Exception
        raise GenerationError(
            f"{name} is refused by the tokenizer: {in_one_line(error)}"
        ) from error
