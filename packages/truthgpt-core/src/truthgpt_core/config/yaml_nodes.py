"""Reading untrusted YAML into a tree of values that know where they were written.

The tree is built from the parser's events, not from composed nodes: libyaml's composer
recurses in C and can overflow the stack, while events come one by one and let the limits below
be checked before anything is built.

What is read is the core schema of YAML 1.2, not the YAML 1.1 of PyYAML's own loaders:

- only `true` and `false` (also `True`, `TRUE`, ...) are booleans: `yes`, `no`, `on` and `off`
  are text, and so is `1_000`;
- `1e-3`, `1E5` and `.5e-2` are floats, `010` is ten, `0o10` is eight;
- dates and times are text;
- keys are text and are given once; `<<` does not merge;
- the tags of the core schema (`!!str 1`) are understood, all others are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import yaml

from truthgpt_core.config.errors import DEFAULT, Origin, ProblemLog, describe, shorten

MAX_BYTES: Final = 2**20
"""The size of a file, in bytes, and of a value given outside one, in characters."""

MAX_NODES: Final = 50_000
"""The values in a configuration, those that aliases repeat counted every time."""

MAX_DEPTH: Final = 64
"""How deep values may nest, after the same."""

MAX_INTEGER_CHARACTERS: Final = 500
"""The length of one integer as it is written; Python refuses to print much longer ones."""

KeyPath: TypeAlias = tuple[str, ...]
"""The segments of a dotted path; a list index is its digits."""

Scalar: TypeAlias = str | int | float | bool | None
Value: TypeAlias = "Scalar | dict[str, Node] | tuple[Node, ...]"

_SEGMENT = r'(?:"(?:[^"\\]|\\.)*"|[^."=]+)'
_PATH = re.compile(rf"{_SEGMENT}(?:\.{_SEGMENT})*", re.DOTALL)
_SEGMENTS = re.compile(_SEGMENT, re.DOTALL)
_BARE = re.compile(r"[\w-]+")
_INDEX = re.compile(r"0|[1-9][0-9]{0,6}")

_TOO_DEEP = f"values nest more than {MAX_DEPTH} deep"
_TOO_DEEP_FOR_LIBYAML = "exceeded maximum nesting depth"
"""What libyaml says beyond a depth of its own, which is larger by far."""

_TAG_PREFIX = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_CONSTANTS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}
_SCALAR_TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
}

# YAML's own definition of what a text may hold; the same for both of PyYAML's parsers only
# if it is checked before them.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")

_Place = Callable[[int, int], Origin]


class UnreadableError(Exception):
    """The text is not YAML, or more than we read; nothing of it can be used."""

    def __init__(self, origin: Origin, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.origin = origin
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Node:
    """One value, immutable, so that aliases may share it.

    Attributes:
        value: a scalar, a dict of nodes or a tuple of nodes.
        origin: where the value stands.
        key: where its key stands, for a value in a mapping.
        broken: a stand-in for what could not be read; the reason is reported already.
        size: the nodes in this tree, shared ones counted every time.
        height: the levels of this tree; 1 for a scalar.
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
        children: Collection[Node] = ()
        if isinstance(self.value, dict):
            children = self.value.values()
        elif isinstance(self.value, tuple):
            children = self.value
        object.__setattr__(self, "size", 1 + sum(child.size for child in children))
        height = max((child.height for child in children), default=0)
        object.__setattr__(self, "height", 1 + height)

    def placed(self, key: Origin) -> Node:
        """Return the same tree under a key that stands elsewhere."""
        return replace(self, key=key)

    def with_value(self, value: Value) -> Node:
        """Return another value in the same place."""
        return Node(value, self.origin, self.key, self.broken)

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
    """Return the index that a segment stands for, or None if it is not one."""
    return int(segment) if _INDEX.fullmatch(segment) else None


def parse_path(text: str) -> KeyPath | None:
    """Split `a.b.0` or `a."key.with.dots"` into segments; None if the text is not a path."""
    if not _PATH.fullmatch(text):
        return None
    segments = []
    for segment in _SEGMENTS.findall(text):
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


def resolve_scalar(text: str) -> Scalar:
    """Return what an unquoted scalar stands for in the core schema of YAML 1.2.

    Raises:
        ValueError: a number too long or too large to hold, with a message for users.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.fullmatch(text):
        if len(text) > MAX_INTEGER_CHARACTERS:
            raise ValueError(
                f"an integer may have {MAX_INTEGER_CHARACTERS} characters, not {len(text)}"
            )
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            raise ValueError(f"{shorten(text)} is too large for a float; write .inf for infinity")
        return number
    if match := _INFINITY.fullmatch(text):
        return float(f"{match[1]}inf")
    return text


def parse_file_text(data: bytes, source: str, log: ProblemLog) -> Node:
    """Build the tree of a file; an empty one is an empty mapping.

    Args:
        data: what the file holds.
        source: the file's name, for positions.
        log: takes what is wrong with single keys and values.

    Raises:
        UnreadableError: the bytes are not UTF-8, not YAML, or exceed a limit of this module.
    """
    if len(data) > MAX_BYTES:
        raise UnreadableError(Origin(source), f"the file is larger than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _position(data[: error.start].decode("utf-8-sig"))
        raise UnreadableError(
            Origin(source, line + 1, column + 1),
            f"the byte 0x{data[error.start]:02x} is not UTF-8",
            "Save the file as UTF-8.",
        ) from None

    def place(line: int, column: int) -> Origin:
        return Origin(source, line + 1, column + 1)

    root = _TreeBuilder(place, log, flow_only=False).build(text)
    if root is None or (root.value is None and not root.broken):
        return Node({}, root.origin if root else place(0, 0))
    return root


def parse_value(text: str, origin: Origin, log: ProblemLog) -> Node:
    """Build the tree of one value given outside a file: a scalar or a flow collection.

    An empty text is null, as it is after a colon in a file; all of it has one origin.

    Raises:
        UnreadableError: the text is not YAML, not of that form, or exceeds a limit.
    """
    if len(text) > MAX_BYTES:
        raise UnreadableError(origin, f"the value is longer than {MAX_BYTES} characters")
    builder = _TreeBuilder(lambda _line, _column: origin, log, flow_only=True)
    return builder.build(text) or Node(None, origin)


def _position(before: str) -> tuple[int, int]:
    """Return the line and the column, both from 0, after a text."""
    lines = before.split("\n")
    return len(lines) - 1, len(lines[-1])


def _events(text: str, place: _Place) -> Iterator[Any]:
    if match := _UNPRINTABLE.search(text):
        raise UnreadableError(
            place(*_position(text[: match.start()])),
            f"the character U+{ord(match[0]):04X} is not allowed in YAML",
            "Write it as an escape in a text in double quotes.",
        )
    try:
        yield from yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if error.problem == _TOO_DEEP_FOR_LIBYAML and mark is not None:
            # Its scanner is ahead of the events, and gives up before the builder sees any.
            raise UnreadableError(place(mark.line, mark.column), _TOO_DEEP) from None
        message = ", ".join(filter(None, (error.context, error.problem)))
        line, column = (mark.line, mark.column) if mark else (0, 0)
        raise UnreadableError(place(line, column), f"not valid YAML: {message}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets ValueError and OverflowError of int() and chr() out of its scanner.
        raise UnreadableError(place(0, 0), f"not valid YAML: {error}") from None


@dataclass(slots=True)
class _Open:
    """A collection that has begun and not ended."""

    origin: Origin
    anchor: str | None
    is_mapping: bool
    broken: bool
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Node] = field(default_factory=dict)
    key: tuple[str | None, Origin] | None = None


class _TreeBuilder:
    """Turns events into one tree without recursion, checking the limits as it goes."""

    def __init__(self, place: _Place, log: ProblemLog, *, flow_only: bool) -> None:
        self._place = place
        self._log = log
        self._flow_only = flow_only
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node | None] = {}
        self._root: Node | None = None
        self._documents = 0
        self._count = 0

    def build(self, text: str) -> Node | None:
        for event in _events(text, self._place):
            origin = self._place(event.start_mark.line, event.start_mark.column)
            if isinstance(event, yaml.ScalarEvent):
                node = self._scalar(event, origin)
                self._keep(event.anchor, node)
                self._place_node(node, is_plain_key=event.implicit[0])
            elif isinstance(event, yaml.AliasEvent):
                self._place_node(self._alias(str(event.anchor), origin))
            elif isinstance(event, yaml.CollectionStartEvent):
                self._open(event, origin)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close()
            elif isinstance(event, yaml.DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    raise UnreadableError(origin, "a second YAML document begins here")
        return self._root

    def _scalar(self, event: Any, origin: Origin) -> Node:
        text, tag = event.value, event.tag
        try:
            if _SURROGATE.search(text):
                raise ValueError("half of a surrogate pair is not a character")
            if tag in (None, "!"):
                return Node(resolve_scalar(text) if event.implicit[0] else text, origin)
            kind = tag.removeprefix(_TAG_PREFIX)
            if kind == "str":
                return Node(text, origin)
            if kind not in _SCALAR_TYPES:
                raise ValueError(_tag_message(tag))
            value = resolve_scalar(text)
            if type(value) not in _SCALAR_TYPES[kind]:
                raise ValueError(f"{describe(text)} is not a !!{kind}")
            if kind == "float":
                assert isinstance(value, int | float)
                value = float(value)
            return Node(value, origin)
        except (ValueError, OverflowError) as error:
            return self._broken(origin, str(error))

    def _alias(self, anchor: str, origin: Origin) -> Node:
        if anchor not in self._anchors:
            raise UnreadableError(origin, f"the alias *{shorten(anchor)} has no anchor")
        node = self._anchors[anchor]
        if node is None:
            return self._broken(origin, f"the alias *{shorten(anchor)} stands inside itself")
        return node

    def _open(self, event: Any, origin: Origin) -> None:
        if len(self._stack) >= MAX_DEPTH:
            raise UnreadableError(origin, _TOO_DEEP)
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        if self._flow_only and not event.flow_style:
            raise UnreadableError(
                origin,
                f"a {'mapping' if is_mapping else 'list'} has to be written in brackets here",
                "Write {key: value} or [item, item], or put quotes around a text.",
            )
        broken = event.tag not in (None, "!", f"{_TAG_PREFIX}{'map' if is_mapping else 'seq'}")
        if broken:
            self._broken(origin, _tag_message(event.tag))
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._stack.append(_Open(origin, event.anchor, is_mapping, broken))

    def _close(self) -> None:
        done = self._stack.pop()
        value = done.entries if done.is_mapping else tuple(done.items)
        node = Node(value, done.origin, broken=done.broken)
        # Its children were counted when they were placed; placing it counts the whole again.
        self._count -= node.size - 1
        self._keep(done.anchor, node)
        self._place_node(node)

    def _place_node(self, node: Node, *, is_plain_key: bool = False) -> None:
        parent = self._stack[-1] if self._stack else None
        if parent is None or not parent.is_mapping or parent.key is not None:
            self._count += node.size
        if self._count > MAX_NODES:
            raise UnreadableError(
                node.origin, f"more than {MAX_NODES} values, counting those that aliases repeat"
            )
        if len(self._stack) + node.height > MAX_DEPTH + 1:
            raise UnreadableError(node.origin, _TOO_DEEP)
        if parent is None:
            self._root = node
        elif not parent.is_mapping:
            parent.items.append(node)
        elif parent.key is None:
            parent.key = (self._key(node, parent, is_plain=is_plain_key), node.origin)
        else:
            key, at = parent.key
            parent.key = None
            if key is not None:
                parent.entries[key] = node.placed(at)

    def _key(self, node: Node, parent: _Open, *, is_plain: bool) -> str | None:
        """Return the key, or None with a problem logged where it cannot be one."""
        key = node.value
        if node.broken:
            return None
        if not isinstance(key, str):
            hint = 'Put quotes around it: "...".' if node.height == 1 else None
            self._broken(node.origin, f"a key has to be text, not {describe(key)}", hint)
        elif key == "<<" and is_plain:
            self._broken(
                node.origin,
                "merge keys (<<) are not part of YAML 1.2",
                "Write the keys out, or give the whole mapping as an alias.",
            )
        elif key in parent.entries:
            first = parent.entries[key].key
            self._broken(
                node.origin, f"the key {shorten(format_path([key]))} is given twice; first {first}"
            )
        else:
            return key
        return None

    def _keep(self, anchor: str | None, node: Node) -> None:
        if anchor is not None:
            self._anchors[anchor] = node

    def _broken(self, origin: Origin, message: str, hint: str | None = None) -> Node:
        path = []
        for frame in self._stack:
            if not frame.is_mapping:
                path.append(str(len(frame.items)))
            elif frame.key is not None and frame.key[0] is not None:
                path.append(frame.key[0])
        self._log.add(origin, format_path(path), message, hint)
        return Node(None, origin, broken=True)


def _tag_message(tag: str) -> str:
    display_tag = tag.replace(_TAG_PREFIX, "!!", 1)
    return f"the tag {shorten(display_tag)} is not allowed; a configuration holds only plain data"
