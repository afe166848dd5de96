"""What is wrong with a configuration, where, and how to fix it."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass

from truthgpt_core.errors import TruthGPTError, UsageError, did_you_mean

MAX_PROBLEMS = 100
"""Problems reported at once; the next run reports the others."""

# difflib is quadratic in the length of the words, and both come from a file.
_LONGEST_SUGGESTIBLE = 100
_MOST_SUGGESTIONS = 200
_LONGEST_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from.

    Attributes:
        source: the file as it was named, `environment NAME`, `override N` or `default`.
        line: the line in a file, from 1; None for anything else.
        column: the column in that line, in characters from 1; None with `line`.
        text: the override itself, as it was written; None for anything else.
    """

    source: str
    line: int | None = None
    column: int | None = None
    text: str | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


DEFAULT = Origin("default")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        origin: where the key or the value stands.
        path: its dotted path, such as `training.epochs`; empty for the whole file.
        message: what is wrong, without a full stop.
        hint: how to fix it, in whole sentences.
    """

    origin: Origin
    path: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        parts = [str(self.origin)]
        if self.origin.text is not None:
            parts.append(f"`{shorten(self.origin.text)}`")
        if self.path:
            parts.append(shorten(self.path))
        parts.append(self.message)
        line = ": ".join(parts)
        if self.hint:
            line = f"{line}. {self.hint}"
        # File names, keys and variables may hold line breaks and bytes that are not text; a
        # line of an error message must stay one line that every terminal can print.
        return " ".join(line.splitlines()).encode("utf-8", "backslashreplace").decode()


class ConfigError(TruthGPTError):
    """A configuration cannot be used; `str` has one line for each problem.

    Args:
        problems: all that is wrong, in the order to show it.

    Attributes:
        problems: the same, as a tuple of frozen `Problem` records.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        if self.problems and all(each.origin.text is not None for each in self.problems):
            # Only what was typed is wrong: the overrides of the command line.
            self.exit_code = UsageError.exit_code
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Problem, ...]]]:
        return type(self), (self.problems,)


class ProblemLog:
    """Gathers problems to report them all at once, each of them once."""

    def __init__(self) -> None:
        self._problems: dict[Problem, None] = {}

    @property
    def full(self) -> bool:
        """Whether there are as many as are reported at once."""
        return len(self._problems) >= MAX_PROBLEMS

    def add(self, origin: Origin, path: str, message: str, hint: str | None = None) -> None:
        """Add a problem, unless it is known or the log is full."""
        if not self.full:
            self._problems[Problem(origin, path, message, hint)] = None

    def names(self, path: str) -> bool:
        """Whether something is wrong with the value at a dotted path or below it."""
        return any(f"{problem.path}.".startswith(f"{path}.") for problem in self._problems)

    def error(self) -> ConfigError:
        """Return the error that reports all problems."""
        return ConfigError(self._problems)

    def raise_if_any(self) -> None:
        """Report all problems, if there are any.

        Raises:
            ConfigError: there is at least one problem.
        """
        if self._problems:
            raise self.error()


def shorten(text: str) -> str:
    """Return `text`, or its beginning if it is longer than a line of an error should be."""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def suggest(word: str, candidates: Iterable[str]) -> str | None:
    """Return `Did you mean "x"?`, or None where nothing is close or all is too long to compare."""
    if len(word) > _LONGEST_SUGGESTIBLE:
        return None
    short = (name for name in candidates if len(name) <= _LONGEST_SUGGESTIBLE)
    return did_you_mean(word, itertools.islice(short, _MOST_SUGGESTIONS))


def comes_with(distribution: str) -> str:
    """Return the hint for a name that a distribution has which is not active."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(distribution)
    except PackageNotFoundError:
        return f"It comes with {distribution}: pip install {distribution}."
    return f"It comes with {distribution}, which is not active: see truthgpt plugins."


def describe(value: object) -> str:
    """Return how to call a value read from YAML in the words of YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {_repr.repr(value)}"
    if isinstance(value, str):
        return f"the text {_repr.repr(value)}"
    return "a mapping" if isinstance(value, dict) else "a list"


_repr = reprlib.Repr()
_repr.maxstring = 60
