"""What keys a pydantic model takes at a path, and the defaults it has there.

Pydantic tells what is wrong with a value; it does not tell which keys would have been right,
and models that do not say otherwise ignore keys they do not know.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import AliasChoices, BaseModel, RootModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, PydanticUndefined, to_jsonable_python

from truthgpt_core.config.nodes import KeyPath, Node, default_node

_SCALAR_TYPES = (str, bytes, int, float, type(None))


@dataclass(frozen=True, slots=True)
class Shape:
    """The keys of one type of mapping.

    Attributes:
        keys: what may stand behind each key.
        fields: pydantic's description behind the same keys, for the fields of a model.
        is_open: whether it takes other keys too.
    """

    keys: dict[str, Any]
    fields: dict[str, FieldInfo]
    is_open: bool


def names_of(name: str, info: FieldInfo, model: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys under which a field may stand in a file, the one to show first."""
    alias = info.validation_alias if info.validation_alias is not None else info.alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    names = [choice for choice in choices if isinstance(choice, str)]
    config = model.model_config
    if not names or config.get("populate_by_name") or config.get("validate_by_name"):
        names.append(name)
    return tuple(dict.fromkeys(names))


def unknown_keys(node: Node, model: type[BaseModel]) -> Iterator[tuple[KeyPath, Node, list[str]]]:
    """Yield every key that no type at its place takes: its path, its value and the known keys."""
    yield from _unknown_keys(node, [model], ())


def ignored_keys(
    node: Node, value: object, annotations: Iterable[Any], path: KeyPath = ()
) -> Iterator[tuple[KeyPath, Node, list[str]]]:
    """Yield every key that only other members of a union take than the one that was chosen.

    Args:
        node: what the file says.
        value: what validation made of it.
        annotations: the types that `value` may have.
        path: where it stands.
    """
    options = list(_options(annotations))
    below: Iterable[tuple[str, object]] = ()
    if isinstance(value, RootModel):
        yield from ignored_keys(node, value.root, options, path)
    elif isinstance(value, BaseModel):
        # What a validator made of a value by rules of its own is its own affair.
        if type(value) not in options or not isinstance(node.value, dict):
            return
        names = {
            key: name
            for name, info in type(value).model_fields.items()
            for key in names_of(name, info, type(value))
        }
        below = ((key, getattr(value, name)) for key, name in names.items())
        if type(value).model_config.get("extra") != "allow":
            unknown = (key for key in node.value if key not in names)
            yield from (((*path, key), node.value[key], sorted(names)) for key in unknown)
    elif isinstance(value, collections.abc.Mapping) and isinstance(node.value, dict):
        below = zip(node.value, value.values(), strict=False)
    elif isinstance(value, list | tuple):
        below = ((str(index), each) for index, each in enumerate(value))
    for key, each in below:
        child = node.child(key)
        if child is not None:
            yield from ignored_keys(child, each, _below(options, key), (*path, key))


def keys_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the keys that the model knows of in the mapping at `path`."""
    return [key for shape in _shapes_at(model, path) for key in shape.keys]


def default_list(model: type[BaseModel], path: KeyPath) -> Node | None:
    """Return the list that the model has at `path` by default; None if it has no list there."""
    for shape in _shapes_at(model, path[:-1]):
        found = _default_of(shape.fields.get(path[-1]))
        if found is not None and isinstance(found.value, tuple):
            return found
    return None


def _shapes_at(model: type[BaseModel], path: KeyPath) -> Iterator[Shape]:
    annotations: list[Any] = [model]
    for segment in path:
        annotations = list(_below(annotations, segment))
    yield from _shapes(_options(annotations))


def _default_of(info: FieldInfo | None) -> Node | None:
    if info is None or getattr(info, "default_factory_takes_validated_data", False):
        return None
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return None
    try:
        return default_node(to_jsonable_python(value, by_alias=True))
    except PydanticSerializationError:
        return None


def _unknown_keys(
    node: Node, annotations: Iterable[Any], path: KeyPath
) -> Iterator[tuple[KeyPath, Node, list[str]]]:
    options = list(_options(annotations))
    if not options:
        return
    if isinstance(node.value, dict):
        shapes = list(_shapes(options))
        known = {key for shape in shapes for key in shape.keys}
        closed = bool(shapes) and not any(shape.is_open for shape in shapes)
        closed = closed and not any(map(_may_be_any_mapping, options))
        for key, child in node.value.items():
            if closed and key not in known:
                yield (*path, key), child, sorted(known)
            else:
                yield from _unknown_keys(child, _below(options, key), (*path, key))
    elif isinstance(node.value, tuple):
        below = list(_below(options, "0"))
        for index, child in enumerate(node.value):
            yield from _unknown_keys(child, below, (*path, str(index)))


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


def _shapes(options: Iterable[Any]) -> Iterator[Shape]:
    for option in options:
        shape = _shape(typing.get_origin(option) or option)
        if shape is not None:
            yield shape


def _shape(kind: Any) -> Shape | None:
    if not isinstance(kind, type):
        return None
    if issubclass(kind, BaseModel):
        fields = {
            key: info
            for name, info in kind.model_fields.items()
            for key in names_of(name, info, kind)
        }
        keys = {key: info.annotation for key, info in fields.items()}
        return Shape(keys, fields, kind.model_config.get("extra") == "allow")
    if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
        try:
            return Shape(typing.get_type_hints(kind), {}, is_open=False)
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
