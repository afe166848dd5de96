"""Names of components in configurations: checked where they are written, listed in the schema.

A field that names a component says which factory has it:

    optimizer: Annotated[str, ComponentName("optimizer_factory")] = "adamw"

What the factories hold is known once plugins are active. As long as a factory is empty, or none
is known, any text is accepted: nothing is known then that a name could be checked against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from truthgpt_core.config.problems import suggest

if TYPE_CHECKING:
    from truthgpt_core.dynamic_factory import DynamicFactory

Factories: TypeAlias = "Mapping[str, DynamicFactory[Any]]"
Lookup: TypeAlias = "Callable[[str], DynamicFactory[Any] | None]"

UNKNOWN_COMPONENT: Final = "unknown_component"
"""The type of pydantic's error for a name that no component has."""

SCHEMA_KEY: Final = "x-truthgpt-component"
"""Holds, in a JSON Schema that is not finished yet, the `ComponentName` of a field."""

_CONTEXT: Final = "truthgpt_factories"


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
        check_component(self, value, info.context)
        return value


def validation_context(lookup: Lookup) -> dict[str, Any]:
    """Return the context to validate with, so that names of components are checked.

    Args:
        lookup: returns the factory of a name, or None if there is none.
    """
    return {_CONTEXT: lookup}


def lookup_in(factories: Factories | None) -> Lookup:
    """Return what finds a factory by its name.

    Args:
        factories: where to look; None for those that are published in this process.
    """
    return _published if factories is None else factories.get


def check_component(kind: ComponentName, value: str, context: Any) -> None:
    """Refuse a name that no component has.

    Args:
        kind: what it names.
        value: the name.
        context: what `validation_context` returned; anything else checks nothing.

    Raises:
        PydanticCustomError: there is no such component; its context has `expected` and `hint`.
    """
    lookup = context.get(_CONTEXT) if isinstance(context, Mapping) else None
    if lookup is None:
        return
    factory = lookup(kind.factory)
    known = choices([kind.factory, *kind.also], lookup)
    if factory is None or known is None or value in known:
        return
    names = [*kind.also, *factory.names()]
    expected = _either(names)
    raise PydanticCustomError(
        UNKNOWN_COMPONENT,
        "should be {expected}",
        {"expected": expected, "hint": _hint(factory, value, known)},
    )


def choices(kind: list[str], lookup: Lookup) -> list[str] | None:
    """Return all values that a field takes, aliases included; None if any text may be meant.

    Args:
        kind: the name of the factory, then what else the field takes.
        lookup: as for `validation_context`.
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


def _either(names: list[str]) -> str:
    *first, last = [f"'{name}'" for name in names]
    return f"{', '.join(first)} or {last}" if first else last


def _hint(factory: DynamicFactory[Any], value: str, known: list[str]) -> str | None:
    missing = factory.distribution_of(value)
    if missing is None:
        return suggest(value, known)
    if _is_installed(missing):
        return f"It comes with {missing}, which is not active: see truthgpt plugins."
    return f"It comes with {missing}: pip install {missing}."


def _is_installed(distribution: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
