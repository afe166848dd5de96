"""Applying chat templates with limits.

A template comes with a model and is a program. transformers runs it in a sandbox that keeps it
from files and attributes, but neither from going on forever nor from taking all memory: loops
within loops, `10 ** 10 ** 10` or a text that is padded to a billion characters. So it runs in a
fork with limits, which starts in milliseconds; a new process would import transformers first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from truthgpt_core.child_process import ChildError, Fork, forked
from truthgpt_core.errors import TruthGPTError
from truthgpt_services.errors import DataError

SECONDS = 10
"""How long a template may take for a conversation."""

_MEMORY = 1 << 30
_LARGEST = 1 << 24
_PARALLELISM = "TOKENIZERS_PARALLELISM"

Item = TypeVar("Item")


def with_limits(
    work: Callable[[Item], Any],
    items: Sequence[Item],
    refused: Callable[[Item, str], TruthGPTError],
) -> list[Any]:
    """Return what a function that applies a chat template makes of each item.

    One fork makes them all. It may take `SECONDS` for each and 1 GiB of memory in all. Where
    processes cannot be forked (Windows), there are no limits.

    Args:
        work: returns something in JSON types; uses no thread and no tokenizer's own code.
        items: conversations.
        refused: returns the error for one, and in a few words what went wrong.

    Raises:
        DataError: the function raised it.
    """
    made: list[Any] = []
    limits: Any = {"seconds": SECONDS, "memory": _MEMORY, "errors": [DataError]}
    try:
        with _silent_tokenizers():
            for each in forked(work, items, "The chat template", **limits):
                made.append(each)  # noqa: PERF402 - those before an error count
    except ChildError as error:
        raise refused(items[len(made)], error.how[:500]) from None
    return made


def limited_template(apply: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that applies a chat template, in a fork that stays.

    The limits are those of `with_limits`, for each call.

    Args:
        apply: applies it; takes and returns something in JSON types, and uses no thread.
    """
    fork = Fork(apply, "The chat template", seconds=SECONDS, memory=_MEMORY, errors=[DataError])

    def limited(item: Any) -> Any:
        with _silent_tokenizers():
            return fork(item)

    return limited


def checked(text: object) -> str:
    """Return what a template made of a conversation.

    Raises:
        ValueError: it is not a text, or has more than 16 MiB.
    """
    if not isinstance(text, str):
        raise ValueError(f"it makes a {type(text).__name__} of it")
    if len(text) > _LARGEST:
        raise ValueError("it makes more than 16 MiB of it")
    return text


@contextmanager
def _silent_tokenizers() -> Iterator[None]:
    """Keep a library from warning of a fork, which uses no tokenizer."""
    unset = _PARALLELISM not in os.environ
    if unset:
        os.environ[_PARALLELISM] = "true"
    try:
        yield
    finally:
        if unset:
            # Another thread may have done so.
            os.environ.pop(_PARALLELISM, None)
