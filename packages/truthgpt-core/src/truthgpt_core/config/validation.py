"""Validating a tree by its model, and saying what pydantic says in the words of YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from truthgpt_core.config.components import UNKNOWN_COMPONENT, Lookup, validation_context
from truthgpt_core.config.model_shape import ignored_keys, keys_at
from truthgpt_core.config.nodes import KeyPath, Node, format_path
from truthgpt_core.config.problems import Origin, ProblemLog, describe, suggest
from truthgpt_core.config.yaml_source import resolve_scalar

ModelT = TypeVar("ModelT", bound=BaseModel)

UNKNOWN_KEY = "unknown key"

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


def validate(root: Node, model: type[ModelT], log: ProblemLog, lookup: Lookup) -> ModelT | None:
    """Return the instance of `model` that the tree describes, or log why there is none.

    Args:
        root: the values.
        model: the type of the whole file.
        log: takes what is wrong.
        lookup: finds the factories that components are named of.
    """
    try:
        value = model.model_validate_json(
            json.dumps(root.plain()), strict=True, context=validation_context(lookup)
        )
    except ValidationError as error:
        _add_errors(error, root, model, log)
        return None
    for path, node, known in ignored_keys(root, value, [model]):
        _add_unknown(path, node, known, log)
    return value


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
    for (origin, shown), those in complaints.items():
        for message, hint in _merged(those):
            log.add(origin, shown, message, hint)
    for node, path in forbidden:
        known = [key for key in keys_at(model, path[:-1]) if key != path[-1]]
        _add_unknown(path, node, known, log)


def _add_unknown(path: KeyPath, node: Node, known: list[str], log: ProblemLog) -> None:
    # It may be said already, or be no fault in another member of a union.
    if not log.full and not log.names(format_path(path)):
        log.add(node.named_at, format_path(path), UNKNOWN_KEY, suggest(path[-1], known))


def _merged(complaints: list[_Complaint]) -> Iterator[tuple[str, str | None]]:
    """Yield one message for what the members of a union want of a value, where it can be one."""
    if all(complaint.expected.startswith(_SHOULD_BE) for complaint in complaints):
        wanted = dict.fromkeys(each.expected.removeprefix(_SHOULD_BE) for each in complaints)
        hint = next((each.hint for each in complaints if each.hint), None)
        yield f"{_SHOULD_BE}{' or '.join(wanted)}{complaints[0].found}", hint
    else:
        yield from ((f"{each.expected}{each.found}", each.hint) for each in complaints)


def _complaint(root: Node, details: ErrorDetails) -> Iterator[tuple[Origin, KeyPath, _Complaint]]:
    """Yield where an error of pydantic's belongs and what to say; nothing if it is said already."""
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
        found = _Complaint(f"the key {_said(details)}", f", not {describe(path[-1])}", None)
        expected = str(context.get("expected", ""))
        found = found._replace(hint=suggest(path[-1], _QUOTED.findall(expected)))
        at = node.named_at
    else:
        shown = "" if kind in _NO_VALUE_SHOWN else _not(node)
        found = _Complaint(_said(details), shown, _hint(kind, node.value, details))
        at = node.origin
    if not node.broken:
        yield at, path, found


def _said(details: ErrorDetails) -> str:
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
