"""Right uses of the services: a type checker finds nothing, and knows what it can."""

# pyright: strict

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

from truthgpt_core.service_registry import (
    ServiceContainer,
    ServiceHealth,
    ServiceInfo,
    ServiceRegistry,
    get_container,
    get_service,
    register_service,
)


class Clock:
    """A service."""

    def now(self) -> float:
        """Return the time."""
        return 0.0


@register_service("typed_alarm", singleton=False)
class Alarm:
    """A service that is given another one, and stays what it is though it was registered."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()


@register_service("typed_clock")
def make_clock() -> Clock:
    """Make a service."""
    return Clock()


def use(registry: ServiceRegistry) -> None:
    """Register services and get them."""
    registry.register("clock", Clock, singleton=True)
    registry.register("clock", make_clock, False, replace=True)
    assert_type(registry.names(), tuple[str, ...])
    assert_type(registry.describe(), tuple[ServiceInfo, ...])
    assert_type(registry.graph(), str)
    with registry.lock:
        registry.validate()
    container = ServiceContainer(registry)
    assert_type(container.registry, ServiceRegistry)
    with container as same:
        assert_type(same, ServiceContainer)
        assert_type("clock" in same, bool)
        assert_type(same.get("clock"), Any)
        clock: Clock = same.get("clock")
    assert_type(clock.now(), float)
    assert_type(container.health(), Mapping[str, ServiceHealth])
    assert_type(container.graph(), str)
    assert_type(get_container(), ServiceContainer)
    assert_type(get_service("clock"), Any)
    assert_type(Alarm(clock).clock, Clock)
    assert_type(make_clock(), Clock)
