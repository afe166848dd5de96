"""A JSON Schema for a YAML file, from which editors check and complete it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from truthgpt_core.config.includes import INCLUDE

_REFERENCE = {"type": "string", "pattern": r"^\$\{[^}]*\}$"}
# What describes a property rather than constrains it; editors show it when it stands outside.
_ANNOTATIONS = ("title", "description", "default", "examples", "deprecated")


class _ClosedSchema(GenerateJsonSchema):
    """Says what loading does: keys a model does not name are errors unless it allows them."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        generated = super().model_schema(schema)
        if "properties" in generated and schema["cls"].model_config.get("extra") != "allow":
            generated["additionalProperties"] = False
        return generated


def file_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of the files that `load_yaml_model` reads as `model`.

    Every value may also be a `${section.key}` reference, and `include` may name other files.

    Args:
        model: the type of the whole file.
    """
    schema = model.model_json_schema(schema_generator=_ClosedSchema)
    for definition in (schema, *schema.get("$defs", {}).values()):
        properties = definition.get("properties", {})
        for name, constraint in properties.items():
            properties[name] = _or_reference(constraint)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema.setdefault("properties", {})[INCLUDE] = {
        "title": "Include",
        "description": "Files to lay this one over, relative to it; the later over the earlier.",
        "anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "items": {"type": "string", "minLength": 1}},
        ],
    }
    return schema


def _or_reference(constraint: dict[str, Any]) -> dict[str, Any]:
    outside = {key: constraint[key] for key in _ANNOTATIONS if key in constraint}
    inside = {key: value for key, value in constraint.items() if key not in outside}
    return {**outside, "anyOf": [inside, _REFERENCE]}
