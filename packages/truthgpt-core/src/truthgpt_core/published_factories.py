"""The factories that the whole process knows by name.

Import these names from `truthgpt_core.dynamic_factory`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from truthgpt_core.component_names import lock
from truthgpt_core.errors import did_you_mean
from truthgpt_core.factory_errors import FactoryError, UnknownFactoryError
from truthgpt_core.transaction import record_undo

if TYPE_CHECKING:
    from truthgpt_core.dynamic_factory import DynamicFactory

FactoryT = TypeVar("FactoryT", bound="DynamicFactory[Any]")

_published: dict[str, list[DynamicFactory[Any]]] = {}


def publish_factory(factory: FactoryT, *, replace: bool = False) -> FactoryT:
    """Let `get_factory` find a factory by its name. Doing so again changes nothing.

    Args:
        factory: a factory with a name.
        replace: take the place of the factory that has the name.

    Returns:
        The factory.

    Raises:
        FactoryError: it has no name, or another factory has it.
    """
    name = factory.name
    if name is None:
        raise FactoryError(
            f"{factory!r} has no name to be published as", hint="Say DynamicFactory(name=...)."
        )
    with lock:
        published = _published.setdefault(name, [])
        if published and published[-1] is factory:
            return factory
        if published and not replace:
            raise FactoryError(
                f'A factory named "{name}" exists already, {published[-1]!r}',
                hint="Choose another name, or say replace=True.",
            )
        published.append(factory)
        record_undo(partial(_unpublish, name, factory))
    return factory


def get_factory(name: str) -> DynamicFactory[Any]:
    """Return the factory published as `name`. None is ever made by asking for it.

    Args:
        name: the name of a published factory.

    Raises:
        UnknownFactoryError: no factory is published under that name.
    """
    with lock:
        if name in _published:
            return _published[name][-1]
        have = f"There is: {', '.join(sorted(_published))}." if _published else "There is none."
        suggestion = did_you_mean(name, _published)
    raise UnknownFactoryError(
        f'There is no factory named "{name}"',
        hint=f"{suggestion} {have}" if suggestion else have,
    )


def _unpublish(name: str, factory: DynamicFactory[Any]) -> None:
    with lock:
        rest = list(_published.get(name, ()))
        if factory in rest:
            # The newest: published, replaced and published again, it is there twice.
            del rest[len(rest) - 1 - rest[::-1].index(factory)]
        if rest:
            _published[name] = rest
        else:
            _published.pop(name, None)
