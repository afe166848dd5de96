"""Names of components in configurations: checked where they are written, listed in the schema.

A field that names a component says which factory has it:

    optimizer: Annotated[str, ComponentName("optimizer_factory")] = "adamw"

What the factories hold is known once plugins are active. As long as a factory is empty, or none
is known, any text is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from truthgpt_core.config.errors import comes_with, suggest

if TYPE_CHECKING:
    from truthgpt_core.dynamic_factory import DynamicFactory

Factories: TypeAlias = "Mapping[str, DynamicFactory[Any]]"
Lookup: TypeAlias = "Callable[[str], DynamicFactory[Any] | None]"
"""Finds a factory by its name."""

UNKNOWN_COMPONENT: Final = "unknown_component"
"""The type of pydantic's error for a name that no component has."""

SCHEMA_KEY: Final = "x-truthgpt-component"
"""Holds, in a JSON Schema that is not finished yet, the `ComponentName` of a field."""

FACTORIES: Final = "truthgpt_factories"
"""The key of the context of validation that has what finds factories."""


@dataclass(frozen=True, slots=True)
class ComponentName:
    """Marks a text field as the name of a component, in `typing.Annotated`.

    Args:
        factory: the name of the factory that has the component, such as `optimizer_factory`.
        also: other values that the field takes, such as `auto`.
    """

    factory: str
    also: tuple[str, ...] = ()

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), SCHEMA_KEY: [self.factory, *self.also]}

    def _check(self, value: str, info: ValidationInfo) -> str:
        lookup = info.context.get(FACTORIES) if isinstance(info.context, Mapping) else None
        factory = None if lookup is None else lookup(self.factory)
        known = None if lookup is None else choices([self.factory, *self.also], lookup)
        if factory is None or known is None or value in known:
            return value
        *first, last = [f"'{name}'" for name in (*self.also, *factory.names())]
        expected = f"{', '.join(first)} or {last}" if first else last
        missing = factory.distribution_of(value)
        hint = suggest(value, known) if missing is None else comes_with(missing)
        raise PydanticCustomError(
            UNKNOWN_COMPONENT, "should be {expected}", {"expected": expected, "hint": hint}
        )


def lookup_in(factories: Factories | None) -> Lookup:
    """Return what finds a factory by its name; None looks among those that are published."""
    return _published if factories is None else factories.get


def choices(kind: list[str], lookup: Lookup) -> list[str] | None:
    """Return all values that a field takes, aliases included; None if any text may be meant.

    `kind` is the name of the factory, and then what else the field takes.
    """
    factory = lookup(kind[0])
    names = () if factory is None else factory.names()
    if factory is None or not names:
        return None
    return [*kind[1:], *names, *sorted(factory.aliases())]


def _published(name: str) -> DynamicFactory[Any] | None:
    from truthgpt_core.dynamic_factory.errors import UnknownFactoryError
    from truthgpt_core.dynamic_factory.published import get_factory

    try:
        return get_factory(name)
    except UnknownFactoryError:
        return None
