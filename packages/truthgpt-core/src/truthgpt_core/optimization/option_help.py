"""What options there are, for users: names, types, defaults, what they do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from truthgpt_core.optimization.options import Options
from truthgpt_core.terminal_text import columns

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
}
_TYPES = {"boolean": "true or false", "null": "none", "object": "mapping", "string": "text"}


class HasOptions(Protocol):
    """What has options: an optimization, an exporter."""

    options_type: ClassVar[type[Options]]


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """One option.

    Attributes:
        name: as it is written before `=`.
        type: what its value may be: "int8 | int4", "integer, at least 0 | auto".
        default: as it would be written; empty if the option must be given.
        description: what it does; empty if its author did not say.
    """

    name: str
    type: str
    default: str
    description: str


def describe_options(kind: type[HasOptions]) -> list[OptionInfo]:
    """Describe options, in the order of their definition.

    Args:
        kind: the optimization or exporter that has them; nothing is made of it.
    """
    fields = kind.options_type.model_fields
    try:
        schema = kind.options_type.model_json_schema()
    except Exception:  # noqa: BLE001 - a type that JSON does not know, or a validator that fails
        schema = {}
    properties = schema.get("properties", {})
    return [
        OptionInfo(
            name,
            _type(properties.get(field.alias or name, {}), schema.get("$defs", {})),
            "" if field.is_required() else _written(field.get_default(call_default_factory=True)),
            " ".join((field.description or "").split()),
        )
        for name, field in fields.items()
    ]


def option_lines(name: str, kind: type[HasOptions], *, written: str = "") -> list[str]:
    """Write options for a terminal.

    Args:
        name: what the optimization or exporter was asked for by.
        kind: the optimization or exporter.
        written: what comes before an option on the command line; `--apply NAME:` if empty.
    """
    options = describe_options(kind)
    about = (kind.__doc__ or "").strip().partition("\n")[0]
    lines = [f"{name}: {about}" if about else name]
    if not options:
        return [*lines, "It has no options."]
    for each in options:
        default = f"default {each.default}" if each.default else "must be given"
        lines += ["", *columns([[f"  {each.name}", each.type, default]])]
        lines += [f"    {line}" for line in _wrapped(each.description)]
    first = options[0]
    example = f"{written or f'--apply {name}:'}{first.name}={first.default or 'VALUE'}"
    lines += ["", f"Write them as {example}"]
    return lines


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 92, break_long_words=False, break_on_hyphens=False)


def _type(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return in words what a JSON Schema allows."""
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _type(definitions.get(reference.rpartition("/")[2], {}), {})
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " | ".join(dict.fromkeys(_type(each, definitions) for each in schema[key]))
    if "enum" in schema:
        return " | ".join(_written(each) for each in schema["enum"])
    if "const" in schema:
        return _written(schema["const"])
    kind = schema.get("type", "anything")
    if kind == "array":
        item = schema.get("items")
        return f"list of {_type(item, definitions)}" if isinstance(item, Mapping) else "list"
    bounds = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    return ", ".join([_TYPES.get(kind, str(kind)), *bounds])


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value or '""'
    if value is None:
        return "none"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(map(_written, value)) or "none"
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
