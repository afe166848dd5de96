"""Types of values that may be written in more than one way: fractions, and dtypes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

_PERCENT: Final = r"^\s*[-+]?(\d+(\.\d*)?|\.\d+)\s*%\s*$"

DTYPE_ALIASES: Final[Mapping[str, str]] = {
    "fp32": "float32",
    "float": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
}
"""Short names of dtypes, in lower case, and the names that torch has for them."""


def dtype_name(given: str) -> str:
    """Return torch's name of a dtype that may be given by a short name, else the text itself.

    Args:
        given: such as `bf16`, `half`, `torch.float16` or `float32`.
    """
    plain = given.strip().removeprefix("torch.")
    return DTYPE_ALIASES.get(plain.lower(), plain)


def fraction(given: str) -> float:
    """Return the number that a text stands for: `0.02`, or `2%`.

    Args:
        given: a number, or one followed by a percent sign.

    Raises:
        ValueError: it is neither.
    """
    if re.match(_PERCENT, given):
        return float(given.strip().rstrip("%")) / 100
    return float(given)


@dataclass(frozen=True, slots=True)
class _OrPercent:
    """Lets a number be written as a percentage too."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_from_percent, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"type": "string", "pattern": _PERCENT}]}


@dataclass(frozen=True, slots=True)
class _OrShortName:
    """Lets a dtype be given by a short name too."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_from_short_name, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(schema)
        return {**found, "enum": [*found.get("enum", ()), *DTYPE_ALIASES]}


def _from_percent(value: Any) -> Any:
    if isinstance(value, str) and re.match(_PERCENT, value):
        return fraction(value)
    return value


def _from_short_name(value: Any) -> Any:
    return dtype_name(value) if isinstance(value, str) else value


Fraction: TypeAlias = Annotated[float, _OrPercent()]
"""A number that may be written as a percentage: `0.02` or `2%`. Bounds stand in its `Field`."""

Dtype: TypeAlias = Annotated[Literal["auto", "float32", "float16", "bfloat16"], _OrShortName()]
"""A dtype by torch's name or a short one (`fp16`, `bf16`, `fp32`, `half`); torch's is kept."""
