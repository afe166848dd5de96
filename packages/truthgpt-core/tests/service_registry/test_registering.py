"""Registering services: names, what can be a service, and what is refused."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from truthgpt_core.service_registry import (
    DuplicateServiceError,
    InvalidServiceError,
    ServiceContainer,
    ServiceError,
    ServiceRegistry,
    UnknownServiceError,
    get_container,
    get_service,
    register_service,
)
from truthgpt_core.transaction import Transaction


class Engine:
    pass


class Car:
    def __init__(self, motor: Engine) -> None:
        self.motor = motor


# The default container


def test_decorated_class_is_got_by_name() -> None:
    """The seed's example: a decorated class is a service of the default container."""
    name = f"model_manager_{uuid.uuid4().hex}"
    with Transaction() as registered:

        @register_service(name, singleton=True)
        class ModelManager:
            pass

    assert isinstance(get_service(name), ModelManager)
    assert get_service(name) is get_container().get(name)
    registered.rollback()
    assert name not in get_container()


def test_decorator_can_replace_a_service() -> None:
    """`replace=True` and `singleton=False` of the decorator are those of `register`."""
    name = f"service_{uuid.uuid4().hex}"
    with Transaction() as registered:
        register_service(name)(lambda: 1)
        register_service(name, singleton=False, replace=True)(object)
    assert get_service(name) is not get_service(name)
    registered.rollback()


def test_decorator_without_parentheses_is_refused() -> None:
    """Forgetting the parentheses of the decorator is an error at once."""
    with pytest.raises(InvalidServiceError, match="must be a nonempty string"):
        register_service(Engine)  # type: ignore[arg-type]


# Names


def test_plugin_registers_on_the_registry_of_a_container() -> None:
    """What is registered on a registry can be got from the container that owns it."""
    registry = ServiceRegistry()
    container = ServiceContainer(registry)
    registry.register("my_service", Engine)
    assert isinstance(container.get("my_service"), Engine)
    assert container.registry is registry


def test_registry_belongs_to_one_container() -> None:
    """A second container on the same registry is refused."""
    registry = ServiceRegistry()
    ServiceContainer(registry)
    with pytest.raises(ServiceError, match="another container"):
        ServiceContainer(registry)


def test_names_are_sorted(container: ServiceContainer) -> None:
    """`names` does not depend on the order in which services were registered."""
    container.register("b", Engine)
    container.register("a", Engine)
    assert container.registry.names() == ("a", "b")


def test_container_contains_what_is_registered(container: ServiceContainer) -> None:
    """`in` looks at what is registered, built or not."""
    container.register("engine", Engine)
    assert "engine" in container
    assert "engine" in container.registry
    assert "motor" not in container


def test_name_that_is_taken_is_refused(container: ServiceContainer) -> None:
    """A taken name is an error, and what had it stays."""
    container.register("engine", Engine)
    with pytest.raises(DuplicateServiceError, match="replace=True"):
        container.register("engine", Car)
    assert isinstance(container.get("engine"), Engine)


def test_same_object_again_with_another_lifetime_is_refused(container: ServiceContainer) -> None:
    """Registering the same class again is refused if the lifetime differs."""
    container.register("engine", Engine)
    with pytest.raises(DuplicateServiceError):
        container.register("engine", Engine, singleton=False)


def test_same_registration_again_changes_nothing(container: ServiceContainer) -> None:
    """Registering the very same class again keeps the instance that is built."""
    container.register("engine", Engine)
    engine = container.get("engine")
    container.register("engine", Engine)
    assert container.get("engine") is engine


def test_replacing_what_is_not_registered_is_refused(container: ServiceContainer) -> None:
    """`replace=True` of a free name is an error that says what to do."""
    with pytest.raises(UnknownServiceError, match=r"Leave out replace=True\.$"):
        container.register("new", Engine, replace=True)
    assert container.registry.names() == ()


def test_getting_an_unknown_name_suggests_one(container: ServiceContainer) -> None:
    """`get` of a misspelled name says what was probably meant."""
    container.register("engine", Engine)
    with pytest.raises(UnknownServiceError, match=r'no service "engin".*Did you mean "engine"'):
        container.get("engin")


@pytest.mark.parametrize("key", [Engine, ["engine"]])
def test_names_are_the_only_keys(container: ServiceContainer, key: Any) -> None:
    """Getting by class is refused, though the class is registered."""
    container.register("engine", Engine)
    with pytest.raises(UnknownServiceError, match="Names are strings"):
        container.get(key)


@pytest.mark.parametrize("name", ["", None, 3, Engine])
def test_name_must_be_a_string(container: ServiceContainer, name: Any) -> None:
    """Anything but a string that is not empty is refused as a name."""
    with pytest.raises(InvalidServiceError, match="must be a nonempty string"):
        container.register(name, Engine)


# What can be a service


async def _coroutine() -> None:
    pass


async def _async_generator() -> Any:
    yield


def _generator() -> Iterator[int]:
    yield 1


def _with_args(*args: int) -> None:
    pass


def _with_kwargs(**kwargs: int) -> None:
    pass


def _positional_only(engine: int, /) -> None:
    pass


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        (_coroutine, "made by _coroutine: it is an async function"),
        (_async_generator, "made by _async_generator: it is an async function"),
        (functools.partial(_coroutine), "made by _coroutine: it is an async function"),
        (_generator, "made by _generator: it is a generator function"),
        (dict.fromkeys, "no signature|is positional-only"),
        (_with_args, r'"\*args: ?\'?int\'?" is variadic positional'),
        (_with_kwargs, r'"\*\*kwargs: ?\'?int\'?" is variadic keyword'),
        (_positional_only, "is positional-only"),
        (None, "cannot be None"),
    ],
)
def test_what_can_never_be_built_is_refused_when_registered(
    container: ServiceContainer, service: object, reason: str
) -> None:
    """A factory that cannot be called with services is refused by `register`, with the reason."""
    with pytest.raises(InvalidServiceError, match=reason):
        container.register("x", service)
    assert container.registry.names() == ()


def test_instance_is_the_service(container: ServiceContainer) -> None:
    """An instance is registered as it is."""
    engine = Engine()
    container.register("engine", engine)
    assert container.get("engine") is engine


def test_callable_object_is_an_instance(container: ServiceContainer) -> None:
    """An object with `__call__`, such as a network, is the service and is not called."""

    class Network:
        def __call__(self) -> None:
            raise AssertionError

    network = Network()
    container.register("network", network)
    assert container.get("network") is network


def test_instance_cannot_be_transient(container: ServiceContainer) -> None:
    """Something that is not called cannot be built anew."""
    with pytest.raises(InvalidServiceError, match="neither a class nor a function"):
        container.register("x", 3, singleton=False)


def test_method_and_partial_can_build_services(container: ServiceContainer) -> None:
    """Whatever is a function can be registered: a method of an object, a partial."""

    class Works:
        def make(self, size: int) -> list[int]:
            return [size]

    container.register("size", 3)
    container.register("by_method", Works().make)
    container.register("by_partial", functools.partial(Works.make, Works()))
    assert container.get("by_method") == container.get("by_partial") == [3]


@pytest.mark.parametrize("kind", [dict, list, set, frozenset, bytearray, object])
def test_builtin_classes_can_be_services(container: ServiceContainer, kind: type) -> None:
    """A class written in C is called without arguments, once or each time."""
    container.register("one", kind)
    container.register("many", kind, singleton=False)
    assert type(container.get("one")) is kind
    assert container.get("one") is container.get("one")
    assert type(container.get("many")) is kind
