"""From a YAML file to an instance of a pydantic model, with every error in its place.

The values go through pydantic as strict JSON: YAML has types of its own, so the text `"3"` is
no integer and `1` is no boolean, while what JSON has no type for (paths, enumerations, dates,
tuples) is read from text and lists.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_jsonable_python

from truthgpt_core.config.includes import INCLUDE, read_with_includes
from truthgpt_core.config.model_shape import keys_at, names_of, unknown_keys
from truthgpt_core.config.nodes import KeyPath, Node, format_path, parse_path
from truthgpt_core.config.overrides import apply_environment, apply_overrides
from truthgpt_core.config.problems import (
    DEFAULT,
    Origin,
    ProblemLog,
    describe,
    suggest,
)
from truthgpt_core.config.references import resolve_references
from truthgpt_core.config.yaml_source import MAX_DEPTH, MAX_NODES, resolve_scalar
from truthgpt_core.errors import TruthGPTError

ModelT = TypeVar("ModelT", bound=BaseModel)

NO_ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType({})

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
# Errors about a value whose message says all there is to say about the value.
_NO_VALUE_SHOWN = {"value_error", "assertion_error"}
_YAML_1_1_BOOLEANS = {"yes", "no", "on", "off", "y", "n"}


class ResolvedRow(NamedTuple):
    """One value of a loaded configuration.

    Attributes:
        path: its dotted path.
        value: the value in force, in the types of JSON.
        origin: where it comes from: `file:line:column`, `environment NAME`, `override N` or
            `default`.
    """

    path: str
    value: object
    origin: str


@dataclass(frozen=True)
class LoadedYaml(Generic[ModelT]):
    """A validated file together with where its values come from.

    Attributes:
        value: the model.
        root: the tree it was made from.
    """

    value: ModelT
    root: Node

    def origin(self, path: str) -> str:
        """Return where the value at a dotted path comes from.

        Args:
            path: such as `training.learning_rate` or `items.0.name`.

        Raises:
            TruthGPTError: there is no such key.
        """
        segments = parse_path(path)
        if segments is not None:
            shown = format_path(segments)
            for found, _, at in self._walk():
                if found == segments:
                    return str(at)
            raise TruthGPTError(
                f"no configuration key is called {shown}",
                hint=suggest(shown, (row.path for row in self.rows())),
            )
        raise TruthGPTError(f'"{path}" is no dotted path')

    def rows(self) -> Iterator[ResolvedRow]:
        """Yield the values in force, those of mappings and lists one by one."""
        for path, value, origin in self._walk():
            if not (isinstance(value, dict | list) and value):
                yield ResolvedRow(format_path(path), value, str(origin))

    def _walk(self) -> Iterator[tuple[KeyPath, object, Origin]]:
        yield from _walk(_file_view(self.value), self.root, ())


def load_yaml_model(
    path: str | os.PathLike[str],
    model: type[ModelT],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = NO_ENVIRONMENT,
) -> ModelT:
    """Read a YAML file into a pydantic model.

    Priority, from the lowest: the model's defaults, files named by the top-level `include` key,
    the file, `environment`, `overrides`. Then `${section.key}` references are resolved, and the
    result is validated. Keys that the model does not know are errors unless its own
    configuration says `extra="allow"`.

    Args:
        path: the file; relative `include` paths start from its directory.
        model: what the file has to be. It may not have a field that is called `include`.
        overrides: `section.key=value` texts with YAML values, the later over the earlier.
        environment: variables, of which those named `TRUTHGPT_CONFIG__section__key` are read;
            none unless given.

    Returns:
        An instance of `model`.

    Raises:
        ConfigError: all that is wrong, with `file:line:column` for each.
        ValueError: `model` has a field that is called `include`.
    """
    return load_located(path, model, overrides, environment).value


def load_located(
    path: str | os.PathLike[str],
    model: type[ModelT],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    *,
    unknown_section_hint: str | None = None,
) -> LoadedYaml[ModelT]:
    """Do what `load_yaml_model` does, and keep where every value comes from.

    Args:
        path: as for `load_yaml_model`.
        model: as for `load_yaml_model`.
        overrides: as for `load_yaml_model`.
        environment: as for `load_yaml_model`.
        unknown_section_hint: what to add to the error about an unknown top-level key.

    Returns:
        The model and the origins of its values.

    Raises:
        ConfigError: as for `load_yaml_model`.
        ValueError: as for `load_yaml_model`.
    """
    if INCLUDE in keys_at(model, ()):
        raise ValueError(f'{model.__name__} has a field "{INCLUDE}", which names files to include')
    log = ProblemLog()
    root = read_with_includes(os.fspath(path), log)
    if root is None:
        log.raise_if_any()
    assert root is not None
    root = apply_environment(root, environment, model, log)
    root = apply_overrides(root, overrides, model, log)
    if root.size > MAX_NODES or root.height > MAX_DEPTH + 1:
        log.add(root.origin, "", f"more than {MAX_NODES} values, or {MAX_DEPTH} in one another")
        log.raise_if_any()
    root = resolve_references(root, model, log)
    _check_keys(root, model, log, unknown_section_hint)
    value = _validate(root, model, log)
    log.raise_if_any()
    assert value is not None
    return LoadedYaml(value, root)


def _check_keys(root: Node, model: type[BaseModel], log: ProblemLog, hint: str | None) -> None:
    for path, node, known in unknown_keys(root, model):
        if log.full:
            return
        hints = [suggest(path[-1], known), hint if len(path) == 1 else None]
        log.add(
            node.named_at, format_path(path), "unknown key", " ".join(filter(None, hints)) or None
        )


def _validate(root: Node, model: type[ModelT], log: ProblemLog) -> ModelT | None:
    try:
        return model.model_validate_json(json.dumps(root.plain()), strict=True)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            if log.full:
                break
            _add_pydantic_error(root, details, log)
    return None


def _add_pydantic_error(root: Node, details: ErrorDetails, log: ProblemLog) -> None:
    kind, location = details["type"], details["loc"]
    missing = str(location[-1]) if kind == "missing" and location else None
    node, path = _find(root, location[:-1] if missing is not None else location)
    if node.broken or kind == "extra_forbidden":
        return
    if missing is not None:
        shown = format_path((*path, missing))
        log.add(node.named_at, shown, "this key is required and missing")
        return
    message = _MESSAGES.get(kind) or details["msg"].removeprefix("Input ")
    if kind in _NO_VALUE_SHOWN:
        message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    else:
        message = f"{message}, not {describe(node.value)}"
    log.add(node.origin, format_path(path), message, _hint(kind, node.value, details))


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
    if kind in {"literal_error", "enum"}:
        expected = str(details.get("ctx", {}).get("expected", ""))
        return suggest(value, re.findall(r"'([^']*)'", expected))
    return None


def _file_view(value: object) -> Any:
    """Return a model's values as plain data under the keys that a file would have."""
    if isinstance(value, BaseModel):
        view: dict[str, Any] = {}
        for name, info in type(value).model_fields.items():
            key = names_of(name, info, type(value))[0]
            view[key] = _file_view(getattr(value, name))
        for key, extra in (value.__pydantic_extra__ or {}).items():
            view[key] = _file_view(extra)
        return view
    if isinstance(value, Mapping):
        return {str(_file_view(key)): _file_view(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_file_view(each) for each in value]
    return to_jsonable_python(value, serialize_unknown=True)


def _walk(
    value: object, node: Node | None, path: KeyPath, origin: Origin = DEFAULT
) -> Iterator[tuple[KeyPath, object, Origin]]:
    """Yield everything below `value`; what the file does not name comes from where its owner does.

    A default within a mapping of the file is a default all the same; the element of a list that
    a validator made from a scalar comes from that scalar.
    """
    if node is not None:
        origin = node.origin
    if path:
        yield path, value, origin
    if isinstance(value, dict):
        entries: Iterator[tuple[str, object]] = iter(value.items())
    elif isinstance(value, list):
        entries = ((str(index), each) for index, each in enumerate(value))
    else:
        return
    written = node is not None and isinstance(node.value, dict)
    inherited = DEFAULT if written and isinstance(value, dict) else origin
    for key, each in entries:
        child = node.child(key) if node is not None else None
        yield from _walk(each, child, (*path, key), inherited)
