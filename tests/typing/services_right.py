"""Right uses of the services: a type checker finds nothing, and knows what it can."""

# pyright: strict

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, assert_type

from truthgpt_core.service_registry import (
    Provider,
    ServiceContainer,
    ServiceHealth,
    ServiceRegistry,
    ServiceScope,
    get_container,
    get_service,
    register_service,
)


class Clock:
    """A service."""

    def now(self) -> float:
        """Return the time."""
        return 0.0


@register_service("typed_alarm", lifetime="scoped")
class Alarm:
    """A service that is given another one, and stays what it is though it was registered."""

    def __init__(self, clock: Clock, later: Provider[Clock]) -> None:
        assert_type(later(), Clock)
        self.clock = clock


def opened() -> Iterator[Clock]:
    """Make a service that is closed afterwards."""
    yield Clock()


def use(registry: ServiceRegistry) -> None:
    """Register services and get them."""
    registry.register("clock", Clock, singleton=True)
    registry.register("opened", opened, lifetime="transient", replace=True)
    container = ServiceContainer(registry)
    assert_type(container.registry, ServiceRegistry)
    assert_type(container.get("clock"), Any)
    with container.scope() as scope:
        assert_type(scope, ServiceScope)
        clock: Clock = scope.get("clock")
    with container.override("clock", Clock()) as nothing:
        assert_type(nothing, None)
    assert_type(clock.now(), float)
    assert_type(container.health(), Mapping[str, ServiceHealth])
    assert_type(container.graph(), str)
    assert_type(get_container(), ServiceContainer)
    assert_type(get_service("clock"), Any)
    assert_type(Alarm(clock, Clock).clock, Clock)
