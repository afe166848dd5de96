"""Resolving `${section.key}` in the values of a configuration.

A value that is one reference and nothing else takes the value it names, with its type, be it a
scalar, a list or a mapping. Within other text a reference stands for the text of a scalar, as
YAML writes it. `$${` is a plain `${`. A reference may name what only the model has a default
for. A mapping taken by reference has the keys that are written where it stands, not the
defaults of its type.
"""

from __future__ import annotations

import re
from typing import Final

from pydantic import BaseModel

from truthgpt_core.config.model_shape import default_at, keys_at
from truthgpt_core.config.nodes import KeyPath, Node, format_path, parse_path
from truthgpt_core.config.problems import Origin, ProblemLog, describe, shorten, suggest
from truthgpt_core.config.yaml_source import MAX_BYTES, MAX_DEPTH, MAX_NODES

MAX_REFERENCE_DEPTH: Final = 96
"""How deep references and the values they name may lead into one another."""

_TOKEN = re.compile(r"\$\$\{|\$\{([^}]*)\}|\$\{")
_WHOLE = re.compile(r"\$\{([^}]*)\}")


class _UnresolvableError(Exception):
    """A reference that cannot be followed; a hint may be its second argument."""

    @property
    def hint(self) -> str | None:
        return self.args[1] if len(self.args) > 1 else None


def resolve_references(root: Node, model: type[BaseModel], log: ProblemLog) -> Node:
    """Return the tree with every reference replaced.

    Args:
        root: the merged values.
        model: the type of the whole file, for references to defaults.
        log: takes what is wrong; such values come back as broken nodes.
    """
    return _Resolver(root, model, log).resolve(root, ())


class _Resolver:
    def __init__(self, root: Node, model: type[BaseModel], log: ProblemLog) -> None:
        self._root = root
        self._model = model
        self._log = log
        self._done: dict[KeyPath, Node] = {}
        self._under_way: dict[KeyPath, None] = {}
        self._characters = 0

    def resolve(self, node: Node, path: KeyPath) -> Node:
        """Return the node at `path` with the references in and below it replaced."""
        if path in self._done:
            return self._done[path]
        if path in self._under_way:
            names = list(self._under_way)
            cycle = [*names[names.index(path) :], path]
            shown = " -> ".join(format_path(each) or "the whole file" for each in cycle)
            raise _UnresolvableError(f"references lead back to where they began: {shown}")
        if len(self._under_way) >= MAX_REFERENCE_DEPTH:
            raise _UnresolvableError(f"references lead more than {MAX_REFERENCE_DEPTH} deep")
        self._under_way[path] = None
        try:
            done = self._resolve(node, path)
        finally:
            del self._under_way[path]
        self._done[path] = done
        return done

    def _resolve(self, node: Node, path: KeyPath) -> Node:
        if isinstance(node.value, str) and "${" in node.value:
            try:
                return self._bounded(self._resolve_text(node.value, node))
            except _UnresolvableError as error:
                self._log.add(node.origin, format_path(path), error.args[0], error.hint)
                return Node(None, node.origin, node.key, broken=True)
        if isinstance(node.value, dict):
            entries = {key: self.resolve(each, (*path, key)) for key, each in node.value.items()}
            return self._checked(node.with_value(entries), path)
        if isinstance(node.value, tuple):
            items = [self.resolve(each, (*path, str(i))) for i, each in enumerate(node.value)]
            return self._checked(node.with_value(tuple(items)), path)
        return node

    def _resolve_text(self, text: str, node: Node) -> Node:
        whole = _WHOLE.fullmatch(text)
        if whole is not None:
            target = self._find(whole[1])
            return target.placed(key=node.key, origin=node.origin)
        parts: list[str] = []
        position = 0
        for match in _TOKEN.finditer(text):
            parts.append(text[position : match.start()])
            position = match.end()
            if match[0] == "$${":
                parts.append("${")
            elif match[1] is None:
                raise _UnresolvableError("a reference is not closed", "Write $${ for a plain ${.")
            else:
                parts.append(self._text_of(match[1]))
        parts.append(text[position:])
        return node.with_value("".join(parts))

    def _text_of(self, name: str) -> str:
        target = self._find(name)
        if target.broken:
            raise _UnresolvableError(f"${{{shorten(name)}}} could not be read")
        if isinstance(target.value, dict | tuple):
            raise _UnresolvableError(
                f"${{{shorten(name)}}} is {describe(target.value)} and cannot be part of a text"
            )
        if target.value is None:
            text = "null"
        elif isinstance(target.value, bool):
            text = str(target.value).lower()
        else:
            text = str(target.value)
        self._characters += len(text)
        if self._characters > MAX_BYTES:
            raise _UnresolvableError(f"references add more than {MAX_BYTES} characters")
        return text

    def _find(self, name: str) -> Node:
        """Return the resolved value that a reference names."""
        path = parse_path(name)
        if path is None:
            raise _UnresolvableError(f"${{{shorten(name)}}} names no key", "Write ${section.key}.")
        node = self._root
        for depth, segment in enumerate(path):
            if isinstance(node.value, str):
                # What it names may be a mapping that holds the rest of the path.
                node = self.resolve(node, path[:depth])
                for rest in path[depth:]:
                    node = self._child(node, rest) or self._missing(node, path)
                return node
            child = node.child(segment)
            if child is None:
                default = default_at(self._model, path, written=depth)
                return default or self._missing(node, path, depth)
            node = child
        return self.resolve(node, path)

    @staticmethod
    def _child(node: Node, segment: str) -> Node | None:
        return node if node.broken else node.child(segment)

    def _missing(self, node: Node, path: KeyPath, depth: int | None = None) -> Node:
        known = list(node.value) if isinstance(node.value, dict) else []
        hint = None
        if depth is not None and not self._log.full:
            known += keys_at(self._model, path[:depth])
            hint = suggest(path[depth], known)
        raise _UnresolvableError(
            f"${{{shorten(format_path(path))}}} names a key that is not there", hint
        )

    def _bounded(self, node: Node) -> Node:
        if node.size > MAX_NODES:
            raise _UnresolvableError(f"references repeat more than {MAX_NODES} values")
        if node.height > MAX_DEPTH:
            raise _UnresolvableError(f"values nest more than {MAX_DEPTH} deep")
        return node

    def _checked(self, node: Node, path: KeyPath) -> Node:
        try:
            return self._bounded(node)
        except _UnresolvableError as error:
            origin: Origin = node.named_at
            self._log.add(origin, format_path(path), error.args[0])
            return Node(None, node.origin, key=node.key, broken=True)
