"""From a YAML file to an instance of a pydantic model, with every error in its place.

The values go through pydantic as strict JSON: YAML has types of its own, so the text `"3"` is
not an integer and `1` is not a boolean, while what JSON has no type for (paths, enumerations,
dates, tuples) is read from text and lists.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from truthgpt_core.config.components import Factories, lookup_in
from truthgpt_core.config.errors import DEFAULT, Origin, ProblemLog, describe, suggest
from truthgpt_core.config.overrides import apply_environment, apply_overrides
from truthgpt_core.config.validation import ModelT, SectionHint, names_of, validate
from truthgpt_core.config.yaml_nodes import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    KeyPath,
    Node,
    UnreadableError,
    format_path,
    parse_file_text,
    parse_path,
)
from truthgpt_core.errors import TruthGPTError
from truthgpt_core.paths import open_regular

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
        if segments is None:
            raise TruthGPTError(f'"{path}" is not a dotted path')
        for found, _, at in _walk(self.value, self.root, ()):
            if found == segments:
                return str(at)
        path_text = format_path(segments)
        raise TruthGPTError(
            f"no configuration key is called {path_text}",
            hint=suggest(path_text, (row.path for row in self.rows())),
        )

    def rows(self) -> Iterator[ResolvedRow]:
        """Yield the values in force, those of mappings and lists one by one."""
        for path, value, origin in _walk(self.value, self.root, ()):
            if not (isinstance(value, dict | list) and value):
                yield ResolvedRow(format_path(path), value, str(origin))


def load_yaml_model(
    path: str | os.PathLike[str],
    model: type[ModelT],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    *,
    factories: Factories | None = None,
) -> ModelT:
    """Read a YAML file into a pydantic model, as `load_located` does, and return the model."""
    return load_located(path, model, overrides, environment, factories=factories).value


def load_located(
    path: str | os.PathLike[str],
    model: type[ModelT],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = NO_ENVIRONMENT,
    *,
    factories: Factories | None = None,
    section_hint: SectionHint | None = None,
) -> LoadedYaml[ModelT]:
    """Read a YAML file into a pydantic model, and keep where every value comes from.

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
        section_hint: says what to do about unknown top-level keys.

    Returns:
        The model and the origins of its values.

    Raises:
        ConfigError: all that is wrong, with `file:line:column` for each.
        TruthGPTError: `overrides` is one text.
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
        raise log.error()
    value = validate(root, model, log, lookup_in(factories), section_hint)
    log.raise_if_any()
    assert value is not None
    return LoadedYaml(value, root)


def _read(path: str, log: ProblemLog) -> Node:
    """Return the tree of a file that is a mapping.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    try:
        root = parse_file_text(_content(path), path, log)
        if root.broken:
            raise log.error()
        if not isinstance(root.value, dict):
            found = describe(root.value)
            message = f"the file has to be a mapping of keys to values, not {found}"
            raise UnreadableError(root.origin, message)
    except UnreadableError as error:
        log.add(error.origin, "", error.message, error.hint)
        raise log.error() from None
    return root


def _content(path: str) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        folder, name = os.path.split(path)
        hint = None
        with suppress(OSError):
            hint = suggest(name, os.listdir(folder or "."))  # noqa: PTH208
        raise UnreadableError(Origin(path), "the file does not exist", hint) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnreadableError(Origin(path), f"the file cannot be read: {reason}") from None


def _walk(
    value: object, node: Node | None, path: KeyPath, origin: Origin = DEFAULT
) -> Iterator[tuple[KeyPath, object, Origin]]:
    """Yield everything below `value`: its path, as plain data, and where it comes from.

    What the file does not name comes from where its owner does, but for what is a default
    within a mapping of the file. So the element of a list that a validator made from a scalar
    comes from that scalar.
    """
    plain = _plain(value)
    if node is not None:
        origin = node.origin
    if path:
        yield path, plain, origin
    if isinstance(plain, dict):
        entries: Iterable[tuple[str, object]] = plain.items()
        below = DEFAULT if node is not None and isinstance(node.value, dict) else origin
    elif isinstance(plain, list):
        entries, below = ((str(index), each) for index, each in enumerate(plain)), origin
    else:
        return
    for key, each in entries:
        yield from _walk(each, node.child(key) if node is not None else None, (*path, key), below)


def _plain(value: object) -> Any:
    """Return a value as plain data, or with what is below it as it is.

    The keys of a model are those that a file would have.
    """
    if isinstance(value, BaseModel):
        kind, extra = type(value), value.__pydantic_extra__ or {}
        fields = kind.model_fields.items()
        return {
            names_of(name, info, kind)[0]: getattr(value, name) for name, info in fields
        } | extra
    if isinstance(value, Mapping):
        return {str(_plain(key)): each for key, each in value.items()}
    if isinstance(value, list | tuple):
        return list(value)
    return to_jsonable_python(value, serialize_unknown=True)
