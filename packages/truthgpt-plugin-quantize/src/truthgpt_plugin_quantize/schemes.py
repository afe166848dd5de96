"""The names of what weights can be made of, and what the user may say about single layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from truthgpt_core.errors import did_you_mean

NAMES = ("int8", "int8-dynamic", "int4", "fp8")
GROUPED = ("int8", "int4")
"""Those whose groups can be of several sizes; the others have a scale for each row."""

NONE = "none"
INT4_GROUPS = (32, 64, 128)


@dataclass(frozen=True, slots=True)
class Scheme:
    """What the weights of a layer are made of.

    Attributes:
        name: one of `NAMES`.
        group_size: how many neighbors of a row share a scale; 0 for the whole row; None
            for what is best on this machine.
    """

    name: str
    group_size: int | None = None

    def __str__(self) -> str:
        has = self.name in GROUPED and self.group_size is not None
        return f"{self.name}/{self.group_size}" if has else self.name

    def with_group(self, group_size: int | None) -> Scheme:
        """Return this scheme with a group size, unless it has one, or has no such groups."""
        has = self.name == "int8" or (self.name == "int4" and group_size in INT4_GROUPS)
        return Scheme(self.name, group_size) if has and self.group_size is None else self


@dataclass(frozen=True, slots=True)
class Rule:
    """What some layers are to be made of: `PATTERN=SCHEME`, or `PATTERN=none` to leave them.

    Attributes:
        pattern: of their names, see `matches`.
        scheme: None to leave them alone.
    """

    pattern: str
    scheme: Scheme | None

    def __str__(self) -> str:
        return f"{self.pattern}={self.scheme or NONE}"


def parse_scheme(text: str) -> Scheme:
    """Read `NAME` or `NAME/GROUP`.

    Raises:
        ValueError: there is no such scheme, or it has no such groups.
    """
    name, slash, group = text.partition("/")
    if name not in NAMES:
        hint = did_you_mean(name, NAMES) or f"Known: {', '.join(NAMES)}."
        raise ValueError(f'there is no scheme "{name}". {hint}')
    if not slash:
        return Scheme(name)
    if name not in GROUPED:
        raise ValueError(f"{name} has no groups: it has one scale for each row")
    if not group.isdecimal():
        raise ValueError(f'"{group}" in "{text}" is not a number of neighbors')
    check_group(name, int(group))
    return Scheme(name, int(group))


def check_group(name: str, group_size: int) -> None:
    """Refuse groups that a scheme does not have.

    Raises:
        ValueError: it does not.
    """
    if name == "int4" and group_size not in INT4_GROUPS:
        known = ", ".join(map(str, INT4_GROUPS))
        raise ValueError(f"int4 has groups of {known}, not of {group_size}")


def parse_rule(text: str) -> Rule:
    """Read `PATTERN=SCHEME`.

    Raises:
        ValueError: it cannot be read.
    """
    pattern, equals, scheme = text.rpartition("=")
    if not equals or not pattern.strip("="):
        raise ValueError(f'"{text}" is not written PATTERN=SCHEME')
    return Rule(pattern, None if scheme == NONE else parse_scheme(scheme))


def rules_as_list(value: Any) -> Any:
    """Accept one rule, a list of them, or a mapping from patterns to schemes."""
    if isinstance(value, Mapping):
        return [f"{pattern}={scheme}" for pattern, scheme in value.items()]
    return [value] if isinstance(value, str) else value


def matches(name: str, pattern: str) -> bool:
    """Whether `pattern` matches a layer's name, a part of it between dots, or is `=` and it."""
    if pattern.startswith("="):
        return name == pattern[1:]
    parts = name.split(".")
    spans = (
        ".".join(parts[start:end])
        for start in range(len(parts))
        for end in range(start + 1, len(parts) + 1)
    )
    return any(fnmatchcase(span, pattern) for span in spans)
