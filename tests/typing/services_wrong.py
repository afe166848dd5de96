"""Wrong uses of the services: a type checker says what is marked, and nothing else."""

from __future__ import annotations

from truthgpt_core.service_registry import ServiceContainer, get_container, register_service


class Clock:
    """A service."""


# error: arg-type, reportArgumentType
@register_service("typed_alarm", "singleton")
class Alarm:
    """A service with a lifetime that there is not."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock


def use(container: ServiceContainer) -> None:
    """Use a container as it cannot be used."""
    # error: arg-type, call-arg, reportCallIssue
    container.register(Clock)
    # error: arg-type, reportArgumentType
    container.register("clock", Clock, "singleton")
    # error: call-arg, reportCallIssue
    container.register("clock", Clock, lifetime="transient")
    # error: call-arg, reportCallIssue
    container.get()
    # error: arg-type, reportArgumentType
    container.get(Clock)
    # error: call-arg, reportCallIssue
    container.get("clock", default=None)
    # error: attr-defined, reportAttributeAccessIssue
    container.registry.get("clock")
    # error: index, reportIndexIssue
    container.health()["clock"] = True
    # error: misc, reportAttributeAccessIssue
    container.registry = get_container().registry
    # error: arg-type, reportArgumentType
    ServiceContainer({})
    # error: call-arg, reportCallIssue
    Alarm()
    # error: arg-type, reportArgumentType
    Alarm("now")
