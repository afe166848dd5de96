"""A JSON Schema for a YAML file, from which editors check and complete it."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, JsonSchemaWarningKind
from pydantic_core import core_schema

from truthgpt_core.config.components import SCHEMA_KEY, Lookup, choices
from truthgpt_core.config.validation import names_of


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
    """Return the JSON Schema of the files that `load_yaml_model` reads as `model`."""
    generated = model.model_json_schema(schema_generator=_FileSchema)
    schema: dict[str, Any] = _with_choices(generated, lookup)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
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


def _add_other_names(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Let a field stand under each of the keys that it may have in a file."""
    properties = schema["properties"]
    for name, info in model.model_fields.items():
        first, *others = names_of(name, info, model)
        if others and first in properties:
            properties.update(dict.fromkeys(others, properties[first]))
            if first in schema.get("required", ()):
                schema["required"].remove(first)
