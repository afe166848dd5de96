"""Reports as JSON: what `report.json` holds, reading it back, and its JSON Schema.

`python -m truthgpt_services.results.io` prints the JSON Schema of `report.json`.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.paths import expanded, read_regular_bytes, write_file
from truthgpt_services.results.schema import SCHEMA_VERSION, Report

JSON_NAME = "report.json"
HTML_NAME = "report.html"
_NON_FINITE = ("NaN", "Infinity", "-Infinity")
_PROBLEMS_SHOWN = 5
_LARGEST = 1 << 24


class ReportError(TruthGPTError):
    """A report cannot be read or written."""


def read_report(path: str | os.PathLike[str]) -> Report:
    """Read a report from its JSON file, or from the directory that holds one.

    Fields that a later TruthGPT added to this version of the schema are ignored.

    Raises:
        ReportError: there is none, it is not JSON, or not a report that this version reads.
    """
    file = expanded(path)
    if file.is_dir():
        file /= JSON_NAME
    try:
        data = json.loads(read_regular_bytes(file, limit=_LARGEST))
    except FileNotFoundError:
        raise ReportError(
            f"There is no report at {file}", hint="`truthgpt optimize` writes one beside the model."
        ) from None
    except OSError as error:
        raise ReportError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{file} is not JSON: {error}") from None
    if not isinstance(data, dict) or "schema_version" not in data:
        raise ReportError(f'{file} is not a report: it has no "schema_version"')
    version = data["schema_version"]
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise ReportError(
            f"{file} is a report of schema version {json.dumps(version)}, "
            f"and this TruthGPT reads version {SCHEMA_VERSION}",
            hint="Read it with the TruthGPT that wrote it.",
        )
    return _validated(data, file)


def write_text(path: Path, text: str) -> None:
    """Write a file of a report; a reader never sees half of it.

    Raises:
        ReportError: it cannot be written.
    """
    # A lone surrogate, which a file name can hold, becomes the \uXXXX that JSON reads.
    content = text.encode("utf-8", "backslashreplace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error.strerror}") from error


def report_json(report: Report) -> str:
    """Return what `report.json` holds.

    JSON has no NaN and no infinity; they stand as the strings that `float` reads.
    """
    return json_text(report.model_dump(mode="json"))


def json_text(data: Any) -> str:
    """Return data as JSON, with numbers that JSON lacks as the strings that `float` reads."""
    plain = _without_non_finite(data)
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def report_schema() -> dict[str, Any]:
    """Return the JSON Schema of `report.json`.

    It allows fields that it does not know, because a version may gain fields.
    """
    schema = Report.model_json_schema(mode="serialization", schema_generator=_Schema)
    schema["$schema"] = GenerateJsonSchema.schema_dialect
    schema["title"] = f"TruthGPT report, version {SCHEMA_VERSION}"
    return schema


class _Schema(GenerateJsonSchema):
    """Describes the file as it is written, and as an earlier or a later one may be."""

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), {"enum": list(_NON_FINITE)}]}

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        described = super().model_schema(schema)
        described.pop("additionalProperties", None)
        # A field with a default was added within the version: earlier reports lack it.
        described["required"] = [
            name
            for name, field in schema["cls"].model_fields.items()
            if field.is_required() or name == "schema_version"
        ]
        return described


def _validated(data: dict[str, Any], file: Path) -> Report:
    try:
        return Report.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
    unknown = [problem["loc"] for problem in problems if problem["type"] == "extra_forbidden"]
    if unknown:
        for *parents, field in unknown:
            holder: Any = data
            for key in parents:
                holder = holder[key]
            del holder[field]
        return _validated(data, file)
    messages = [
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        for problem in problems[:_PROBLEMS_SHOWN]
    ]
    if len(problems) > _PROBLEMS_SHOWN:
        messages.append(f"and {len(problems) - _PROBLEMS_SHOWN} more")
    raise ReportError(f"{file} is not a report of version {SCHEMA_VERSION}: {'; '.join(messages)}")


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_non_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return _NON_FINITE[0] if math.isnan(value) else _NON_FINITE[1 if value > 0 else 2]
    return value


if __name__ == "__main__":
    sys.stdout.write(json.dumps(report_schema(), indent=2) + "\n")
