"""Values given on the command line and in the environment, laid over those of the file.

Both name a value by its path and give it as YAML: a scalar (`training.epochs=3`) or a flow
collection (`data.columns=[text, label]`). The value replaces what stood at the path, whatever
it was; missing mappings on the way are made. `items.0.name=x` changes an element of a list
that is there already, in the file or as a default. A key with dots is put in double quotes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import BaseModel

from truthgpt_core.config.errors import Origin, ProblemLog
from truthgpt_core.config.validation import default_list
from truthgpt_core.config.yaml_nodes import (
    MAX_DEPTH,
    KeyPath,
    Node,
    UnreadableError,
    format_path,
    list_index,
    parse_path,
    parse_value,
    split_assignment,
)

ENVIRONMENT_PREFIX: Final = "TRUTHGPT_CONFIG__"
"""What the names of variables begin with that set values; `__` divides the rest into keys."""


def apply_environment(
    root: Node, environment: Mapping[str, str], model: type[BaseModel], log: ProblemLog
) -> Node:
    """Set what variables named `TRUTHGPT_CONFIG__section__key` give, in order of their names.

    Keys are spelled as in the file, in upper or lower case; where the system folds the case of
    variables' names, as Windows does, keys in lower case cannot be set.
    """
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            origin = Origin(f"environment {name}")
            path = tuple(name.removeprefix(ENVIRONMENT_PREFIX).split("__"))
            if all(path):
                root = _set(root, path, environment[name], origin, model, log)
            else:
                log.add(origin, "", f"write it as {ENVIRONMENT_PREFIX}section__key")
    return root


def apply_overrides(
    root: Node, overrides: Sequence[str], model: type[BaseModel], log: ProblemLog
) -> Node:
    """Set what `path=value` texts give, the later over the earlier."""
    for number, text in enumerate(overrides, 1):
        origin = Origin(f"override {number}", text=text)
        assignment = split_assignment(text)
        path = None if assignment is None else parse_path(assignment[0])
        if assignment is None or path is None:
            log.add(origin, "", "write it as section.key=value")
        else:
            root = _set(root, path, assignment[1], origin, model, log)
    return root


def _set(
    root: Node, path: KeyPath, text: str, origin: Origin, model: type[BaseModel], log: ProblemLog
) -> Node:
    path_text = format_path(path)
    if len(path) > MAX_DEPTH:
        log.add(origin, path_text, f"values nest more than {MAX_DEPTH} deep")
        return root
    try:
        value = parse_value(text, origin, log)
        return _replace_at(root, path, 0, value.placed(origin), model)
    except UnreadableError as error:
        log.add(origin, path_text, error.message, error.hint)
    return root


def _replace_at(node: Node, path: KeyPath, depth: int, new: Node, model: type[BaseModel]) -> Node:
    if depth == len(path):
        return new
    segment = path[depth]
    if isinstance(node.value, tuple):
        index = list_index(segment)
        if index is None or index >= len(node.value):
            raise UnreadableError(
                new.origin,
                f"{format_path(path[:depth])} is a list of {len(node.value)}, "
                f'"{segment}" is not an index into it',
            )
        items = list(node.value)
        items[index] = _replace_at(items[index], path, depth + 1, new, model)
        return node.with_value(tuple(items))
    if not isinstance(node.value, dict):
        # A scalar that gives way to a mapping takes its place with it: the mapping is the
        # override's.
        return _replace_at(Node({}, new.origin, key=node.key), path, depth, new, model)
    child = node.value.get(segment)
    if child is None:
        child = default_list(model, path[: depth + 1]) or Node({}, new.origin, key=new.origin)
    below = _replace_at(child, path, depth + 1, new, model)
    return node.with_value({**node.value, segment: below})
