"""From a YAML file to an instance of a pydantic model, with every error in its place.

The values go through pydantic as strict JSON: YAML has types of its own, so the text `"3"` is
no integer and `1` is no boolean, while what JSON has no type for (paths, enumerations, dates,
tuples) is read from text and lists.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from truthgpt_core.config.components import Factories, lookup_in
from truthgpt_core.config.model_shape import names_of, unknown_keys
from truthgpt_core.config.nodes import KeyPath, Node, format_path, parse_path
from truthgpt_core.config.overrides import apply_environment, apply_overrides
from truthgpt_core.config.problems import DEFAULT, Origin, ProblemLog, describe, suggest
from truthgpt_core.config.validation import UNKNOWN_KEY, validate
from truthgpt_core.config.yaml_source import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    UnreadableError,
    parse_file_text,
)
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.paths import open_regular

ModelT = TypeVar("ModelT", bound=BaseModel)

NO_ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType({})


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
    *,
    factories: Factories | None = None,
) -> ModelT:
    """Read a YAML file into a pydantic model.

    Priority, from the lowest: the model's defaults, the file, `environment`, `overrides`. Keys
    that the model does not know are errors unless its own configuration says `extra="allow"`.

    Args:
        path: the file.
        model: what the file has to be.
        overrides: `section.key=value` texts with YAML values, the later over the earlier.
        environment: variables, of which those named `TRUTHGPT_CONFIG__section__key` are read;
            none unless given.
        factories: what names of components are checked against (see `ComponentName`); None for
            the factories that this process has published.

    Returns:
        An instance of `model`.

    Raises:
        ConfigError: all that is wrong, with `file:line:column` for each.
        TruthGPTError: `overrides` is one text.
    """
    return load_located(path, model, overrides, environment, factories=factories).value


def load_located(
    path: str | os.PathLike[str],
    model: type[ModelT],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    *,
    factories: Factories | None = None,
    unknown_section_hint: str | None = None,
) -> LoadedYaml[ModelT]:
    """Do what `load_yaml_model` does, and keep where every value comes from.

    Args:
        path: as for `load_yaml_model`.
        model: as for `load_yaml_model`.
        overrides: as for `load_yaml_model`.
        environment: as for `load_yaml_model`.
        factories: as for `load_yaml_model`.
        unknown_section_hint: what to add to the error about an unknown top-level key.

    Returns:
        The model and the origins of its values.

    Raises:
        ConfigError: as for `load_yaml_model`.
        TruthGPTError: as for `load_yaml_model`.
    """
    if isinstance(overrides, str):
        raise TruthGPTError(
            f'overrides are a list of texts, not the text "{overrides}"',
            hint=f'Write ["{overrides}"].',
        )
    log = ProblemLog()
    root = _read(os.fspath(path), log)
    root = apply_environment(root, environment, model, log)
    root = apply_overrides(root, overrides, model, log)
    if root.size > MAX_NODES or root.height > MAX_DEPTH + 1:
        log.add(root.origin, "", f"more than {MAX_NODES} values, or {MAX_DEPTH} in one another")
        log.raise_if_any()
    _check_keys(root, model, log, unknown_section_hint)
    value = validate(root, model, log, lookup_in(factories))
    log.raise_if_any()
    assert value is not None
    return LoadedYaml(value, root)


def _read(path: str, log: ProblemLog) -> Node:
    """Return the tree of a file that is a mapping.

    Raises:
        ConfigError: it cannot be read, or is none; what its keys lack says nothing then.
    """
    try:
        try:
            with open_regular(path) as file:
                data = file.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            raise UnreadableError(Origin(path), *_unreadable(path, error)) from None
        root = parse_file_text(data, path, log)
        if not isinstance(root.value, dict) and not root.broken:
            found = describe(root.value)
            message = f"the file has to be a mapping of keys to values, not {found}"
            raise UnreadableError(root.origin, message)
    except UnreadableError as error:
        log.add(error.origin, "", error.message, error.hint)
        raise log.error() from None
    if root.broken:
        raise log.error()
    return root


def _unreadable(path: str, error: Exception) -> tuple[str, str | None]:
    """Return what to say about a file that cannot be opened, and a hint."""
    if isinstance(error, FileNotFoundError):
        return "the file does not exist", _nearby(path)
    if isinstance(error, IsADirectoryError) or os.path.isdir(path):  # noqa: PTH112
        return "the file is a directory", None
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"the file cannot be read: {reason}", None


def _nearby(path: str) -> str | None:
    try:
        names = os.listdir(os.path.dirname(path) or ".")  # noqa: PTH120, PTH208
    except OSError:
        return None
    return suggest(os.path.basename(path), names)  # noqa: PTH119


def _check_keys(root: Node, model: type[BaseModel], log: ProblemLog, hint: str | None) -> None:
    for path, node, known in unknown_keys(root, model):
        if log.full:
            return
        hints = [suggest(path[-1], known)]
        if len(path) == 1:
            hints.append(hint)
        shown = " ".join(filter(None, hints)) or None
        log.add(node.named_at, format_path(path), UNKNOWN_KEY, shown)


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
