"""Validating a tree by its model, and saying what pydantic says in the words of YAML.

Pydantic tells what is wrong with a value. It does not tell which keys would have been right,
and models that do not say otherwise ignore keys that they do not know: unknown keys are found
here, before validation and, among the members of unions, after it.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from pydantic import AliasChoices, BaseModel, RootModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import (
    ErrorDetails,
    PydanticSerializationError,
    PydanticUndefined,
    to_jsonable_python,
)

from truthgpt_core.config.components import FACTORIES, UNKNOWN_COMPONENT, Lookup
from truthgpt_core.config.errors import Origin, ProblemLog, describe, suggest
from truthgpt_core.config.yaml_nodes import (
    KeyPath,
    Node,
    default_node,
    format_path,
    resolve_scalar,
)

ModelT = TypeVar("ModelT", bound=BaseModel)
SectionHint: TypeAlias = Callable[[str, str | None], str | None]
"""Takes an unknown top-level key and what is suggested for it; returns the hint to show."""

_UnknownKey: TypeAlias = tuple[KeyPath, Node, list[str]]
"""A key that is not known: its path, its value, and the keys that are known."""

_SHOULD_BE = "should be "
_MISSING = "is required and missing"
_MAPPING = "should be a mapping"
_MESSAGES = {
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "dict_type": _MAPPING,
    "dataclass_type": _MAPPING,
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "set_type": "should be a list",
    "frozen_set_type": "should be a list",
    "string_type": "should be text",
    "bool_type": "should be true or false",
    "int_type": "should be an integer",
    "float_type": "should be a number",
}
# What pydantic puts before `should`, where it is not simply "Input".
_SUBJECT = re.compile(r"^\w+ (?=should )")
# Errors about a value whose message says all there is to say about the value.
_NO_VALUE_SHOWN = {"value_error", "assertion_error", "too_long", "too_short"}
_YAML_1_1_BOOLEANS = {"yes", "no", "on", "off", "y", "n"}
_QUOTED = re.compile(r"'([^']*)'")
# The last part of a location where what is wrong is the key of a mapping, not its value.
_KEY = "[key]"
_SCALAR_TYPES = (str, bytes, int, float, type(None))
_NOT_MADE: Final = object()


def validate(
    root: Node,
    model: type[ModelT],
    log: ProblemLog,
    lookup: Lookup,
    section_hint: SectionHint | None = None,
) -> ModelT | None:
    """Return the instance of `model` that the tree describes, or log why there is none."""
    for path, node, known in _unknown_keys(root, [model], ()):
        if log.full:
            break
        hint = suggest(path[-1], known)
        if section_hint is not None and len(path) == 1:
            hint = section_hint(path[0], hint)
        log.add(node.named_at, format_path(path), "unknown key", hint)
    try:
        value = model.model_validate_json(
            json.dumps(root.plain()), strict=True, context={FACTORIES: lookup}
        )
    except ValidationError as error:
        _add_errors(error, root, model, log)
        return None
    for path, node, known in _unknown_keys(root, [model], (), value):
        _add_unknown(path, node, known, log)
    return value


def names_of(name: str, info: FieldInfo, model: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys under which a field may stand in a file, the one to show first."""
    alias = info.validation_alias if info.validation_alias is not None else info.alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    names = [choice for choice in choices if isinstance(choice, str)]
    config = model.model_config
    if not names or config.get("populate_by_name") or config.get("validate_by_name"):
        names.append(name)
    return tuple(dict.fromkeys(names))


def default_list(model: type[BaseModel], path: KeyPath) -> Node | None:
    """Return the list that the model has at `path` by default; None if it has no list there."""
    for shape in _shapes_at(model, path[:-1]):
        info = shape.fields.get(path[-1])
        if info is None or getattr(info, "default_factory_takes_validated_data", False):
            continue
        value = info.get_default(call_default_factory=True)
        if value is PydanticUndefined:
            continue
        try:
            plain = to_jsonable_python(value, by_alias=True)
        except PydanticSerializationError:
            continue
        if isinstance(plain, list):
            return default_node(plain)
    return None


# What pydantic says


class _Complaint(NamedTuple):
    """What is wrong with one value: what it should be, what it is, and a hint."""

    expected: str
    found: str
    hint: str | None


def _add_errors(
    error: ValidationError, root: Node, model: type[BaseModel], log: ProblemLog
) -> None:
    complaints: dict[tuple[Origin, str], list[_Complaint]] = {}
    forbidden: list[tuple[Node, KeyPath]] = []
    for details in error.errors(include_url=False):
        if details["type"] == "extra_forbidden":
            forbidden.append(_find(root, details["loc"]))
            continue
        for origin, path, complaint in _complaint(root, details):
            complaints.setdefault((origin, format_path(path)), []).append(complaint)
    for (origin, path_text), those in complaints.items():
        for message, hint in _merged(those):
            log.add(origin, path_text, message, hint)
    for node, path in forbidden:
        shapes = _shapes_at(model, path[:-1])
        known = [key for shape in shapes for key in shape.keys if key != path[-1]]
        _add_unknown(path, node, known, log)


def _add_unknown(path: KeyPath, node: Node, known: list[str], log: ProblemLog) -> None:
    # It may be reported already, or be allowed by another member of a union.
    if not log.full and not log.names(format_path(path)):
        log.add(node.named_at, format_path(path), "unknown key", suggest(path[-1], known))


def _merged(complaints: list[_Complaint]) -> Iterator[tuple[str, str | None]]:
    """Yield one message for what the members of a union want of a value, where it can be one."""
    if all(complaint.expected.startswith(_SHOULD_BE) for complaint in complaints):
        wanted = dict.fromkeys(each.expected.removeprefix(_SHOULD_BE) for each in complaints)
        hint = next((each.hint for each in complaints if each.hint), None)
        yield f"{_SHOULD_BE}{' or '.join(wanted)}{complaints[0].found}", hint
    else:
        yield from ((f"{each.expected}{each.found}", each.hint) for each in complaints)


def _complaint(root: Node, details: ErrorDetails) -> Iterator[tuple[Origin, KeyPath, _Complaint]]:
    """Yield where an error of pydantic belongs and what to say; nothing if it is said already."""
    kind, location, context = details["type"], details["loc"], details.get("ctx", {})
    node, path = _find(root, location)
    if kind == "missing":
        node, path = _find(root, location[:-1])
        what = "item" if isinstance(location[-1], int) else "key"
        found = _Complaint(f"this {what} {_MISSING}", "", None)
        at, path = node.named_at, (*path, str(location[-1]))
    elif kind == "union_tag_not_found":
        found = _Complaint(f"this key {_MISSING}", "", None)
        at, path = node.named_at, (*path, *_tag_key(context))
    elif kind == "union_tag_invalid":
        tag = next(filter(None, map(node.child, _tag_key(context))), node)
        expected = str(context.get("expected_tags", ""))
        hint = suggest(str(context.get("tag", "")), _QUOTED.findall(expected))
        found = _Complaint(f"should be one of {expected}", _not(tag), hint)
        at, path = tag.origin, path if tag is node else (*path, *_tag_key(context))
    elif location and location[-1] == _KEY and _find(root, location[:-1])[1] == path:
        hint = suggest(path[-1], _QUOTED.findall(str(context.get("expected", ""))))
        found = _Complaint(f"the key {_message(details)}", f", not {describe(path[-1])}", hint)
        at = node.named_at
    else:
        actual = "" if kind in _NO_VALUE_SHOWN else _not(node)
        found = _Complaint(_message(details), actual, _hint(kind, node.value, details))
        at = node.origin
    if not node.broken:
        yield at, path, found


def _message(details: ErrorDetails) -> str:
    kind = details["type"]
    message = _MESSAGES.get(kind) or _SUBJECT.sub("", details["msg"])
    if kind in _NO_VALUE_SHOWN:
        message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
        message = message.replace(" after validation", "")
    return message


def _not(node: Node) -> str:
    return f", not {describe(node.value)}"


def _tag_key(context: dict[str, object]) -> tuple[str, ...]:
    """Return the key that tells the members of a union apart; () if a function does."""
    return tuple(_QUOTED.findall(str(context.get("discriminator", "")))[:1])


def _find(root: Node, location: Sequence[str | int]) -> tuple[Node, KeyPath]:
    """Follow pydantic's location as far as it names values: it names members of unions too."""
    node, path = root, list[str]()
    for part in location:
        child = node.child(str(part))
        if child is not None:
            node = child
            path.append(str(part))
    return node, tuple(path)


def _hint(kind: str, value: object, details: ErrorDetails) -> str | None:
    if kind == "string_type" and isinstance(value, int | float):
        return "Put quotes around it to make it text."
    if not isinstance(value, str):
        return None
    if kind == "bool_type" and value.lower() in _YAML_1_1_BOOLEANS:
        return "YAML 1.2 has no booleans but true and false."
    if kind in {"int_type", "float_type", "bool_type"}:
        try:
            is_text = isinstance(resolve_scalar(value), str)
        except ValueError:
            is_text = True
        return None if is_text else "Take the quotes away."
    if kind == UNKNOWN_COMPONENT:
        hint: str | None = details["ctx"]["hint"]
        return hint
    if kind in {"literal_error", "enum"}:
        return suggest(value, _QUOTED.findall(str(details.get("ctx", {}).get("expected", ""))))
    return None


# What keys a model takes


@dataclass(frozen=True, slots=True)
class _Shape:
    """The keys of one type of mapping, and whether it takes others too."""

    keys: dict[str, Any]
    fields: dict[str, FieldInfo]  # for a model
    is_open: bool


def _unknown_keys(
    node: Node, annotations: Iterable[Any], path: KeyPath, value: object = _NOT_MADE
) -> Iterator[_UnknownKey]:
    """Yield every key that no type at its place takes.

    Of the members of a union, only the one that validation chose counts, once it has made
    `value` of the node.
    """
    options = list(_options(annotations))
    if isinstance(value, RootModel):
        value = value.root
    if isinstance(value, BaseModel):
        # What a validator made of a value by rules of its own is its own affair.
        options = [option for option in options if option is type(value)]
    made = _made_below(value, node)
    if isinstance(node.value, dict):
        shapes = list(_shapes(options))
        known = {key for shape in shapes for key in shape.keys}
        closed = bool(shapes) and not any(shape.is_open for shape in shapes)
        closed = closed and not any(map(_may_be_any_mapping, options))
        for key, child in node.value.items():
            if closed and key not in known:
                yield (*path, key), child, sorted(known)
            else:
                below, each = _below(options, key), made.get(key, _NOT_MADE)
                yield from _unknown_keys(child, below, (*path, key), each)
    elif isinstance(node.value, tuple):
        items = list(_below(options, "0"))
        for index, child in enumerate(node.value):
            each = made.get(str(index), _NOT_MADE)
            yield from _unknown_keys(child, items, (*path, str(index)), each)


def _made_below(value: object, node: Node) -> dict[str, object]:
    """Return what validation made of the nodes below a node, by key or index, where it is known."""
    if isinstance(value, BaseModel):
        kind = type(value)
        return {
            key: getattr(value, name)
            for name, info in kind.model_fields.items()
            for key in names_of(name, info, kind)
        }
    if isinstance(value, collections.abc.Mapping) and isinstance(node.value, dict):
        return dict(zip(node.value, value.values(), strict=False))
    if isinstance(value, list | tuple):
        return {str(index): each for index, each in enumerate(value)}
    return {}


def _options(annotations: Iterable[Any]) -> Iterator[Any]:
    """Take unions, Optional, Annotated, aliases and root models apart."""
    for annotation in annotations:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            yield from _options(typing.get_args(annotation)[:1])
        elif origin in (typing.Union, types.UnionType):
            yield from _options(typing.get_args(annotation))
        elif isinstance(annotation, type) and issubclass(annotation, RootModel):
            yield from _options([annotation.model_fields["root"].annotation])
        elif type(annotation).__name__ == "TypeAliasType":
            yield from _options([annotation.__value__])
        else:
            yield annotation


def _shapes_at(model: type[BaseModel], path: KeyPath) -> Iterator[_Shape]:
    """Yield what the model may have at `path`, as far as it has keys."""
    annotations: list[Any] = [model]
    for segment in path:
        annotations = list(_below(annotations, segment))
    yield from _shapes(_options(annotations))


def _shapes(options: Iterable[Any]) -> Iterator[_Shape]:
    for option in options:
        shape = _shape(typing.get_origin(option) or option)
        if shape is not None:
            yield shape


def _shape(kind: Any) -> _Shape | None:
    if not isinstance(kind, type):
        return None
    if issubclass(kind, BaseModel):
        fields = {
            key: info
            for name, info in kind.model_fields.items()
            for key in names_of(name, info, kind)
        }
        keys = {key: info.annotation for key, info in fields.items()}
        return _Shape(keys, fields, kind.model_config.get("extra") == "allow")
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        try:
            return _Shape(typing.get_type_hints(kind), {}, is_open=False)
        except NameError:
            return None
    return None


def _below(annotations: Iterable[Any], segment: str) -> Iterator[Any]:
    """Yield the types that may stand behind one key or index."""
    for option in _options(annotations):
        origin = typing.get_origin(option)
        shape = _shape(origin or option)
        if shape is not None:
            if segment in shape.keys:
                yield shape.keys[segment]
        elif isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
            yield from typing.get_args(option)[1:]
        elif isinstance(origin, type) and issubclass(origin, collections.abc.Iterable):
            yield from (each for each in typing.get_args(option) if each is not Ellipsis)


def _may_be_any_mapping(option: Any) -> bool:
    """Return whether a mapping of unknown keys may be meant; yes where we cannot tell."""
    kind = typing.get_origin(option) or option
    if kind is typing.Literal or _shape(kind) is not None:
        return False
    if not isinstance(kind, type) or kind is object:
        return True
    if issubclass(kind, collections.abc.Mapping):
        return True
    return not issubclass(kind, (*_SCALAR_TYPES, collections.abc.Collection))
