"""Configuration values that know where they were written, and the paths that name them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from truthgpt_core.config.problems import DEFAULT, Origin

KeyPath: TypeAlias = tuple[str, ...]
"""The segments of a dotted path; a list index is its digits."""

Scalar: TypeAlias = str | int | float | bool | None
Value: TypeAlias = "Scalar | dict[str, Node] | tuple[Node, ...]"

_SEGMENT = r'(?:"(?:[^"\\]|\\.)*"|[^."=]+)'
_PATH = re.compile(rf"{_SEGMENT}(?:\.{_SEGMENT})*", re.DOTALL)
_SEGMENTS = re.compile(_SEGMENT, re.DOTALL)
_BARE = re.compile(r"[\w-]+")
_INDEX = re.compile(r"0|[1-9][0-9]{0,6}")


@dataclass(frozen=True, slots=True)
class Node:
    """One value, immutable, so that aliases may share it.

    Attributes:
        value: a scalar, a dict of nodes or a tuple of nodes.
        origin: where the value stands.
        key: where its key stands, for a value in a mapping.
        broken: a stand-in for what could not be read; the reason is reported already.
        size: the nodes in the tree below and with this one, shared ones counted every time.
        height: the levels of that tree; 1 for a scalar.
    """

    value: Value
    origin: Origin
    key: Origin | None = None
    broken: bool = False
    size: int = field(default=0, compare=False)
    height: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if self.size:
            # A copy that only stands elsewhere: counting a shared tree again for each place it
            # is shared by would take time in the square of the file's size.
            return
        size, height = 1, 0
        for child in self.children():
            size += child.size
            height = max(height, child.height)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "height", height + 1)

    def placed(self, key: Origin) -> Node:
        """Return the same tree under a key that stands elsewhere."""
        return replace(self, key=key)

    def with_value(self, value: Value) -> Node:
        """Return another value in the same place."""
        return Node(value, self.origin, self.key, self.broken)

    def children(self) -> Sequence[Node]:
        """Return the nodes directly below this one."""
        if isinstance(self.value, dict):
            return tuple(self.value.values())
        return self.value if isinstance(self.value, tuple) else ()

    def child(self, segment: str) -> Node | None:
        """Return the node that one segment of a path names, or None."""
        if isinstance(self.value, dict):
            return self.value.get(segment)
        if isinstance(self.value, tuple):
            index = list_index(segment)
            return self.value[index] if index is not None and index < len(self.value) else None
        return None

    @property
    def named_at(self) -> Origin:
        """Where to point for what is wrong with the whole: at the key, where there is one."""
        return self.key or self.origin

    def plain(self) -> object:
        """Return the value as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, tuple):
            return [child.plain() for child in self.value]
        return self.value


def default_node(value: object) -> Node:
    """Wrap plain dicts, lists and scalars as nodes whose origin is "default"."""
    if isinstance(value, dict):
        return Node({str(key): default_node(child) for key, child in value.items()}, DEFAULT)
    if isinstance(value, list):
        return Node(tuple(map(default_node, value)), DEFAULT)
    assert value is None or isinstance(value, str | int | float | bool)
    return Node(value, DEFAULT)


def list_index(segment: str) -> int | None:
    """Return the index a segment stands for, or None where it is none."""
    return int(segment) if _INDEX.fullmatch(segment) else None


def parse_path(text: str) -> KeyPath | None:
    """Split `a.b.0` or `a."key.with.dots"` into segments; None where the text is no path."""
    if not _PATH.fullmatch(text):
        return None
    segments = []
    for match in _SEGMENTS.finditer(text):
        segment = match.group()
        if segment.startswith('"'):
            try:
                segments.append(json.loads(segment, strict=False))
            except ValueError:
                return None
        elif bare := segment.strip():
            segments.append(bare)
        else:
            return None
    return tuple(segments)


def split_assignment(text: str) -> tuple[str, str] | None:
    """Split `path=value` at the equals sign that ends the path; None where there is none."""
    match = _PATH.match(text)
    if match is None or not text.startswith("=", match.end()):
        return None
    return match.group(), text[match.end() + 1 :]


def format_path(path: Sequence[str]) -> str:
    """Return the dotted form of a path, the inverse of `parse_path`."""
    return ".".join(
        segment if _BARE.fullmatch(segment) else json.dumps(segment) for segment in path
    )
