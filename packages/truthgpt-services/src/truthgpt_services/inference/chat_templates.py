"""Chat templates: conversations as the prompts that a model was trained on.

A template comes with a model and is a program. transformers runs it in a sandbox that keeps
it from files and attributes, but neither from going on for ever nor from taking all memory:
loops within loops, `10 ** 10 ** 10` or a text that is padded to a billion characters. So it
runs in a child process with limits.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

from truthgpt_core.decoding import GenerationError
from truthgpt_core.errors import in_one_line

Message = dict[str, Any]

SECONDS = 10
"""How long a template may take."""

_MEMORY = 1 << 30
_LARGEST = 1 << 24
_PARALLELISM = "TOKENIZERS_PARALLELISM"


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
        GenerationError: the template refuses the conversation, or takes more than `SECONDS`,
            1 GiB of memory or 16 MiB of text. Where processes cannot be forked (Windows),
            there are no limits.
    """
    if not hasattr(os, "fork"):
        answer = _attempt(tokenizer, messages)
    else:
        answer = _in_child(tokenizer, messages)
    if "error" in answer:
        raise GenerationError(
            f"The chat template refuses the conversation: {answer['error']}",
            hint="A prompt that is a text is continued without it; for the command: --raw.",
        )
    return str(answer["text"])


def _attempt(tokenizer: Any, messages: Sequence[Message]) -> dict[str, str]:
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # noqa: BLE001 - of jinja, and what a template raises
        return {"error": in_one_line(error)[:500]}
    if not isinstance(text, str):
        return {"error": f"it makes a {type(text).__name__} of it"}
    return {"text": text}


def _in_child(tokenizer: Any, messages: Sequence[Message]) -> dict[str, str]:
    reading, writing = os.pipe()
    with _silent_tokenizers():
        child = os.fork()
    if child == 0:
        _be_the_child(tokenizer, messages, writing)
    try:
        os.close(writing)
        content = _read(reading, monotonic() + SECONDS)
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    try:
        answer: dict[str, str] = json.loads(content)
    except ValueError:
        # Killed by its limits, or by something in the interpreter.
        return {"error": f"it ended its process; it may take {SECONDS} s and 1 GiB"}
    return answer


def _read(reading: int, deadline: float) -> bytes:
    content = bytearray()
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    while True:
        if not poll.poll(max(0.0, deadline - monotonic()) * 1000):
            return json.dumps({"error": f"it takes more than {SECONDS} s"}).encode()
        piece = os.read(reading, 1 << 16)
        if not piece:
            return bytes(content)
        content += piece


def _be_the_child(tokenizer: Any, messages: Sequence[Message], writing: int) -> NoReturn:
    try:
        # What the parent's garbage would do when it is collected is not for this process.
        gc.disable()
        _limit()
        answer = _attempt(tokenizer, messages)
        if len(answer.get("text", "")) > _LARGEST:
            answer = {"error": "it makes more than 16 MiB of it"}
        content = json.dumps(answer).encode()
        while content:
            content = content[os.write(writing, content) :]
    finally:
        os._exit(0)


def _limit() -> None:
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Where memory cannot be told (not on Linux), time is the only limit.
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


@contextmanager
def _silent_tokenizers() -> Iterator[None]:
    """Keep two libraries from warning of a fork: the child uses no thread and no tokenizer."""
    unset = _PARALLELISM not in os.environ
    if unset:
        os.environ[_PARALLELISM] = "true"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if unset:
            del os.environ[_PARALLELISM]
