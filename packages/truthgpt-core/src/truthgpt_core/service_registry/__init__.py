"""Services by name, with their dependencies injected.

    @register_service("model_manager")
    class ModelManager:
        def __init__(self, cache: Cache) -> None: ...

    manager = get_service("model_manager")

A `ServiceRegistry` says what can be built; a `ServiceContainer` builds it, keeps the
singletons and closes them. The functions here use the default container.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from truthgpt_core.service_registry.container import ServiceContainer, ServiceHealth
from truthgpt_core.service_registry.errors import (
    AmbiguousDependencyError,
    DuplicateServiceError,
    InvalidServiceError,
    MissingDependencyError,
    ServiceClosedError,
    ServiceCloseError,
    ServiceCycleError,
    ServiceError,
    UnknownServiceError,
)
from truthgpt_core.service_registry.registry import ServiceRegistry
from truthgpt_core.service_registry.wiring import ServiceInfo, check_name

__all__ = [
    "AmbiguousDependencyError",
    "DuplicateServiceError",
    "InvalidServiceError",
    "MissingDependencyError",
    "ServiceCloseError",
    "ServiceClosedError",
    "ServiceContainer",
    "ServiceCycleError",
    "ServiceError",
    "ServiceHealth",
    "ServiceInfo",
    "ServiceRegistry",
    "UnknownServiceError",
    "get_container",
    "get_service",
    "register_service",
]

_F = TypeVar("_F", bound=Callable[..., Any])

_default = ServiceContainer()


def get_container() -> ServiceContainer:
    """Return the default container, which `register_service` and `get_service` use."""
    return _default


def get_service(name: str) -> Any:
    """Return a service of the default container; see `ServiceContainer.get`."""
    return _default.get(name)


def register_service(
    name: str, singleton: bool = True, *, replace: bool = False
) -> Callable[[_F], _F]:
    """Register the decorated class or function in the default container.

    The arguments and the errors are those of `ServiceRegistry.register`.
    """
    check_name(name)

    def decorate(factory: _F) -> _F:
        _default.register(name, factory, singleton, replace=replace)
        return factory

    return decorate
