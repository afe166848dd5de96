"""The factories that the whole process knows by name, and registering components in them.

Import these names from `truthgpt_core.dynamic_factory`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from truthgpt_core.dynamic_factory.errors import FactoryError, UnknownFactoryError
from truthgpt_core.dynamic_factory.factory import DynamicFactory, register_open
from truthgpt_core.dynamic_factory.names import check_name, lock
from truthgpt_core.errors import meant_or_known
from truthgpt_core.transaction import record_undo

ComponentT = TypeVar("ComponentT", bound=Callable[..., Any])
FactoryT = TypeVar("FactoryT", bound="DynamicFactory[Any]")


@dataclass(eq=False, slots=True)
class _Publication:
    """One call of `publish_factory`: the same factory may be published by several."""

    factory: DynamicFactory[Any]


_published: dict[str, list[_Publication]] = {}


def publish_factory(factory: FactoryT, *, replace: bool = False) -> FactoryT:
    """Let `get_factory` find a factory by its name.

    Doing so again changes nothing; it is found until both are undone.

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
        published = _published.get(name, [])
        if published and published[-1].factory is not factory and not replace:
            raise FactoryError(
                f'A factory named "{name}" exists already, {published[-1].factory!r}',
                hint="Choose another name, or say replace=True.",
            )
        publication = _Publication(factory)
        undoable = record_undo(partial(_withdraw, name, publication))
        # What lies under one that stays for good will never be found again.
        _published[name] = [*published, publication] if undoable else [publication]
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
            return _published[name][-1].factory
        have = f"There is: {', '.join(sorted(_published))}." if _published else "There is none."
        hint = meant_or_known(name, _published, have)
    raise UnknownFactoryError(f'There is no factory named "{name}"', hint=hint)


def register_component(
    name: str, factory: DynamicFactory[Any] | str | None = None, *, replace: bool = False
) -> Callable[[ComponentT], ComponentT]:
    """Return a decorator that registers a component and leaves it unchanged.

    Args:
        name: as for `DynamicFactory.register`.
        factory: the factory, or the name of a published one. None registers an open
            component: with every factory whose base class it satisfies, those made
            later too. It must be a class then, and no other open component may have
            the name.
        replace: take the place of what has the name.

    Raises:
        UnknownFactoryError: no factory is published under that name.
        FactoryError: the decorator raises as `DynamicFactory.register` does; then no
            factory has the component.
    """
    check_name(name)
    bound = get_factory(factory) if isinstance(factory, str) else factory

    def register(component: ComponentT) -> ComponentT:
        if bound is not None:
            bound.register(name, component, replace=replace)
        else:
            register_open(name, component, replace=replace)
        return component

    return register


def _withdraw(name: str, publication: _Publication) -> None:
    with lock:
        rest = [other for other in _published.get(name, ()) if other is not publication]
        if rest:
            _published[name] = rest
        else:
            _published.pop(name, None)
