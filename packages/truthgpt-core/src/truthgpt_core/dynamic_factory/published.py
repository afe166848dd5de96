"""The factories that the whole process knows by name.

Import these names from `truthgpt_core.dynamic_factory`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from truthgpt_core.dynamic_factory.errors import FactoryError, UnknownFactoryError
from truthgpt_core.dynamic_factory.names import lock
from truthgpt_core.errors import did_you_mean
from truthgpt_core.transaction import record_undo

if TYPE_CHECKING:
    from truthgpt_core.dynamic_factory.factory import DynamicFactory

FactoryT = TypeVar("FactoryT", bound="DynamicFactory[Any]")


@dataclass(eq=False, slots=True)
class _Publication:
    """One call of `publish_factory`: the same factory may be published by several."""

    factory: DynamicFactory[Any]


_published: dict[str, list[_Publication]] = {}


def publish_factory(factory: FactoryT, *, replace: bool = False) -> FactoryT:
    """Let `get_factory` find a factory by its name.

    Doing so again changes nothing; it is found until both are taken back.

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
        suggestion = did_you_mean(name, _published)
    raise UnknownFactoryError(
        f'There is no factory named "{name}"',
        hint=f"{suggestion} {have}" if suggestion else have,
    )


def _withdraw(name: str, publication: _Publication) -> None:
    with lock:
        rest = [kept for kept in _published.get(name, ()) if kept is not publication]
        if rest:
            _published[name] = rest
        else:
            _published.pop(name, None)
