"""A JSON Schema for a YAML file, from which editors check and complete it."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, JsonSchemaWarningKind
from pydantic_core import core_schema

from truthgpt_core.config.components import SCHEMA_KEY, Lookup, choices
from truthgpt_core.config.includes import INCLUDE
from truthgpt_core.config.model_shape import names_of

_DEFINITIONS = "#/$defs/"
# What such a text comes to is not known before the reference is followed.
_REFERENCE = {"type": "string", "pattern": r"\$\{"}
# What describes a property rather than constrains it; editors show it when it stands outside.
_ANNOTATIONS = ("title", "description", "default", "examples", "deprecated")


class _FileSchema(GenerateJsonSchema):
    """Says what loading does: keys that nothing names are errors unless a model allows them.

    What JSON has no words for may be anything.
    """

    # One odd field of one plugin must not cost the schema of all the others.
    ignored_warning_kinds: ClassVar[set[JsonSchemaWarningKind]] = {  # type: ignore[misc]
        *GenerateJsonSchema.ignored_warning_kinds,
        "non-serializable-default",
    }

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        generated = super().model_schema(schema)
        model = schema["cls"]
        if "properties" in generated:
            _add_other_names(generated, model)
            if model.model_config.get("extra") != "allow":
                generated["additionalProperties"] = False
        return generated

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        return {**super().dataclass_schema(schema), "additionalProperties": False}

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        return {**super().typed_dict_schema(schema), "additionalProperties": False}


def file_schema(model: type[BaseModel], lookup: Lookup) -> dict[str, Any]:
    """Return the JSON Schema of the files that `load_yaml_model` reads as `model`.

    Every value may also be a text with a `${section.key}` reference, and `include` may name
    other files. In a file that includes others nothing is required of the file or its sections,
    for the others may have it.

    Args:
        model: the type of the whole file.
        lookup: finds the factories whose components are named.
    """
    generated = model.model_json_schema(schema_generator=_FileSchema)
    schema = _with_references(_with_choices(generated, lookup))
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$defs"] = {
        name: _with_references(definition) for name, definition in schema.get("$defs", {}).items()
    }
    _require_unless_included(schema)
    schema.setdefault("properties", {})[INCLUDE] = {
        "title": "Include",
        "description": "Files to lay this one over, relative to it; the later over the earlier.",
        "anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "items": {"type": "string", "minLength": 1}},
        ],
    }
    return schema


def _with_choices(schema: Any, lookup: Lookup) -> Any:
    """Return `schema` with the names of components where one of them is wanted."""
    if isinstance(schema, list):
        return [_with_choices(each, lookup) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _with_choices(each, lookup) for key, each in schema.items() if key != SCHEMA_KEY}
    if SCHEMA_KEY in schema:
        names = choices(schema[SCHEMA_KEY], lookup)
        if names is not None:
            found["enum"] = names
    return found


def _with_references(schema: dict[str, Any]) -> dict[str, Any]:
    """Return `schema` with every value below it also allowed to be a reference."""
    found = dict(schema)
    for key in ("properties", "patternProperties"):
        if key in found:
            found[key] = {name: _or_reference(below) for name, below in found[key].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), dict):
            found[key] = _or_reference(found[key])
    if "prefixItems" in found:
        found["prefixItems"] = [_or_reference(below) for below in found["prefixItems"]]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in found:
            found[key] = [_with_references(choice) for choice in found[key]]
    return found


def _or_reference(schema: dict[str, Any]) -> dict[str, Any]:
    inside = _with_references(schema)
    outside = {key: inside.pop(key) for key in _ANNOTATIONS if key in inside}
    if not inside:
        return outside
    choices = inside["anyOf"] if inside.keys() == {"anyOf"} else [inside]
    return {**outside, "anyOf": [*choices, _REFERENCE]}


def _add_other_names(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Let a field stand under each of the keys that it may have in a file."""
    properties = schema["properties"]
    for name, info in model.model_fields.items():
        first, *others = names_of(name, info, model)
        if others and first in properties:
            properties.update(dict.fromkeys(others, properties[first]))
            if first in schema.get("required", ()):
                schema["required"].remove(first)


def _require_unless_included(schema: dict[str, Any]) -> None:
    """Let what is required depend on whether the file includes others."""
    definitions = schema["$defs"]
    sections = {}
    for name, value in schema.get("properties", {}).items():
        models = [choice["$ref"] for choice in value.get("anyOf", ()) if "$ref" in choice]
        if len(models) == 1:
            sections[name] = definitions[models[0].removeprefix(_DEFINITIONS)]
    schema["if"] = {"not": {"required": [INCLUDE]}}
    schema["then"] = {
        "required": schema.pop("required", []),
        "properties": {
            name: {"required": section["required"]}
            for name, section in sections.items()
            if section.get("required")
        },
    }
    for section in sections.values():
        section.pop("required", None)
