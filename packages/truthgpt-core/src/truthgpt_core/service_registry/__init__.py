"""Services by name, with what they need injected: where other modules import them from.

    @register_service("model_manager")
    class ModelManager:
        def __init__(self, cache: Cache) -> None: ...

    manager = get_service("model_manager")

`ServiceRegistry` says what can be built, a `ServiceContainer` builds and closes it;
the functions here use one default container. The parts: `service_spec` reads what is
registered, `service_graph` judges who needs whom, `service_resolver` compiles that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from truthgpt_core.service_registry.container import ServiceContainer
from truthgpt_core.service_registry.errors import (
    AmbiguousDependencyError,
    DuplicateServiceError,
    InvalidServiceError,
    LifetimeError,
    MissingDependencyError,
    ServiceClosedError,
    ServiceCloseError,
    ServiceCycleError,
    ServiceError,
    UnknownServiceError,
)
from truthgpt_core.service_registry.graph import ServiceInfo
from truthgpt_core.service_registry.health import ServiceHealth
from truthgpt_core.service_registry.keeping import ServiceScope
from truthgpt_core.service_registry.registration import ServiceRegistry
from truthgpt_core.service_registry.spec import Lifetime, Provider, check_name, is_factory

__all__ = [
    "AmbiguousDependencyError",
    "DuplicateServiceError",
    "InvalidServiceError",
    "Lifetime",
    "LifetimeError",
    "MissingDependencyError",
    "Provider",
    "ServiceCloseError",
    "ServiceClosedError",
    "ServiceContainer",
    "ServiceCycleError",
    "ServiceError",
    "ServiceHealth",
    "ServiceInfo",
    "ServiceRegistry",
    "ServiceScope",
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
    """Return a service of the default container; see `ServiceContainer.get`.

    Args:
        name: the name that it is registered under.

    Raises:
        ServiceError: if there is none, or it cannot be built.
    """
    return _default.get(name)


def register_service(
    name: str,
    singleton: bool = True,
    *,
    lifetime: Lifetime | None = None,
    replace: bool = False,
) -> Callable[[_F], _F]:
    """Register the decorated class or function in the default container.

    Args:
        name: the key, a string that is not empty.
        singleton: whether one instance is shared; if not, every `get` makes a new one.
        lifetime: "singleton", "scoped" or "transient"; see `ServiceRegistry.register`.
        replace: whether to take the place of the service that has the name.

    Returns:
        A decorator that returns what it decorates, unchanged.

    Raises:
        InvalidServiceError: if the name will not do; from the decorator, if what it
            decorates can never be made or is neither a class nor a function.
        DuplicateServiceError: from the decorator, if `name` is taken.
        UnknownServiceError: from the decorator, if it is not and `replace` is True.
    """
    check_name(name)

    def decorate(factory: _F) -> _F:
        if not is_factory(factory):
            raise InvalidServiceError(
                f'Service "{name}" cannot be made by {factory!r}: '
                "it is neither a class nor a function",
                hint="Register an instance with get_container().register(name, instance).",
            )
        _default.register(name, factory, singleton, lifetime=lifetime, replace=replace)
        return factory

    return decorate
