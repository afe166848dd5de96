"""The base of every error TruthGPT raises on purpose, and "did you mean".

An error says what is wrong, where, and how to put it right, in one line that a
command can print as it is. Commands show a `TruthGPTError` without a traceback;
anything else that reaches them is a bug of ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

DEBUG = "TRUTHGPT_DEBUG"
"""The environment variable that asks for tracebacks."""


def is_debugging() -> bool:
    """Whether the user asked for tracebacks, with `TRUTHGPT_DEBUG=1`."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


class TruthGPTError(Exception):
    """Base class of the errors TruthGPT raises on purpose.

    Args:
        message: what is wrong and where, as a sentence without its full stop.
        hint: how to put it right, as one or more whole sentences.
    """

    exit_code: int = 1
    """What a command that it ends exits with."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message


class UsageError(TruthGPTError):
    """What was typed cannot be used: an option is missing, or has a wrong value."""

    exit_code = 2


def did_you_mean(word: str, candidates: Iterable[str]) -> str | None:
    """Return `Did you mean "x"?` for the candidate closest to `word`, or None if none is close."""
    import difflib  # only a mistake waits for it

    by_folded = {candidate.casefold(): candidate for candidate in candidates}
    close = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return f'Did you mean "{by_folded[close[0]]}"?' if close else None


def meant_or_known(word: str, candidates: Iterable[str], known: str) -> str:
    """Return a hint for an unknown name: what was meant, if one is close, then what there is.

    Args:
        word: the name.
        candidates: what may have been meant.
        known: a sentence that says what there is.
    """
    return " ".join(filter(None, (did_you_mean(word, candidates), known)))


def in_one_line(error: BaseException) -> str:
    """Return the type of an exception and what it says, with line breaks taken out."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - any class can be an exception, and saying so must not fail
        message = ""
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
