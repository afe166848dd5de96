"""Reading YAML that nobody has vouched for, keeping the place of every key and value.

The tree is built from the parser's events, not from composed nodes: libyaml's composer
recurses in C and can be driven through the end of the stack, while events come one by one and
let the limits below be checked before anything is built.

What is read is the core schema of YAML 1.2, not the YAML 1.1 of PyYAML's own loaders:

- only `true` and `false` (also `True`, `TRUE`, ...) are booleans: `yes`, `no`, `on` and `off`
  are text, and so is `1_000`;
- `1e-3`, `1E5` and `.5e-2` are floats, `010` is ten, `0o10` is eight;
- dates and times are text;
- keys are text and are given once; `<<` does not merge;
- the tags of the core schema (`!!str 1`) are understood, all others are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from truthgpt_core.config.nodes import Node, Scalar, format_path
from truthgpt_core.config.problems import Origin, ProblemLog, describe, shorten

MAX_BYTES: Final = 2**20
"""The size of a file, in bytes, and of a value given outside one, in characters."""

MAX_NODES: Final = 50_000
"""The values in a configuration, those that aliases repeat counted every time."""

MAX_DEPTH: Final = 64
"""How deep values may nest, after the same."""

MAX_INTEGER_CHARACTERS: Final = 500
"""The length of one integer as it is written; Python refuses to print much longer ones."""

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
    """The text is no YAML, or more than we read; nothing of it can be used."""

    def __init__(self, origin: Origin, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.origin = origin
        self.message = message
        self.hint = hint


def resolve_scalar(text: str) -> Scalar:
    """Return what an unquoted scalar stands for in the core schema of YAML 1.2.

    Args:
        text: the scalar as it is written.

    Returns:
        null, a boolean, an integer, a float, or the text itself.

    Raises:
        ValueError: a number too long or too large to hold, with a message for people.
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
        before = data[: error.start].decode("utf-8-sig")
        raise UnreadableError(
            _position(source, before),
            f"the byte 0x{data[error.start]:02x} is not UTF-8",
            "Save the file as UTF-8.",
        ) from None

    def place(line: int, column: int) -> Origin:
        return Origin(source, line + 1, column + 1)

    root = _build(text, place, log, flow_only=False)
    if root is None or (root.value is None and not root.broken):
        return Node({}, root.origin if root else place(0, 0))
    return root


def parse_value(text: str, origin: Origin, log: ProblemLog) -> Node:
    """Build the tree of one value given outside a file: a scalar or a flow collection.

    Args:
        text: the value; empty is null, as it is after a colon in a file.
        origin: what stands in for every position.
        log: takes what is wrong with single keys and values.

    Raises:
        UnreadableError: the text is not YAML, not of that form, or exceeds a limit.
    """
    if len(text) > MAX_BYTES:
        raise UnreadableError(origin, f"the value is longer than {MAX_BYTES} characters")
    return _build(text, lambda _line, _column: origin, log, flow_only=True) or Node(None, origin)


def _position(source: str, before: str) -> Origin:
    lines = before.split("\n")
    return Origin(source, len(lines), len(lines[-1]) + 1)


def _events(text: str, place: _Place) -> Iterator[Any]:
    if match := _UNPRINTABLE.search(text):
        at = _position("", text[: match.start()])
        assert at.line is not None
        assert at.column is not None
        raise UnreadableError(
            place(at.line - 1, at.column - 1),
            f"the character U+{ord(match[0]):04X} is not allowed in YAML",
            "Write it as an escape in a text in double quotes.",
        )
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        yield from yaml.parse(text, Loader=loader)
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


def _build(text: str, place: _Place, log: ProblemLog, *, flow_only: bool) -> Node | None:
    return _TreeBuilder(place, log, flow_only=flow_only).build(_events(text, place))


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

    def build(self, events: Iterator[Any]) -> Node | None:
        for event in events:
            origin = self._place(event.start_mark.line, event.start_mark.column)
            if isinstance(event, yaml.ScalarEvent):
                node = self._scalar(event, origin)
                self._keep(event.anchor, node)
                self._place_node(node, is_plain_key=event.implicit[0])
            elif isinstance(event, yaml.AliasEvent):
                self._place_node(self._alias(event.anchor, origin))
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
                raise ValueError(f"{describe(text)} is no !!{kind}")
            if kind == "float":
                assert isinstance(value, int | float)
                value = float(value)
            return Node(value, origin)
        except (ValueError, OverflowError) as error:
            return self._broken(origin, str(error))

    def _alias(self, anchor: str | None, origin: Origin) -> Node:
        assert anchor is not None
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
    shown = tag.replace(_TAG_PREFIX, "!!", 1)
    return f"the tag {shorten(shown)} is not allowed; a configuration holds only plain data"
