"""How services are, told without building any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from truthgpt_core.service_registry.spec import Lifetime


@dataclass(frozen=True)
class ServiceHealth:
    """What `ServiceContainer.health` says of one service.

    Attributes:
        lifetime: "singleton", "scoped" or "transient".
        built: whether the container holds an instance.
        ok: False only if the instance says, or its `health()` raises, that it is not well.
        message: what its `health()` said, or what it raised.
    """

    lifetime: Lifetime
    built: bool
    ok: bool = True
    message: str = ""


def ask(lifetime: Lifetime, service: Any) -> ServiceHealth:
    """Return how `service`, which is built, says that it is."""
    try:
        method = None if isinstance(service, type) else getattr(service, "health", None)
        if not callable(method):
            return ServiceHealth(lifetime, built=True)
        said = method()
    except Exception as error:  # noqa: BLE001 - raising is how a service says that it is not well
        return ServiceHealth(lifetime, True, False, f"{type(error).__name__}: {error}")
    message = "" if said is None or isinstance(said, bool) else str(said)
    return ServiceHealth(lifetime, True, said is not False, message)
