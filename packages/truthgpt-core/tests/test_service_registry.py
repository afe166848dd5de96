"""Registering services, taking registrations back, and what is refused."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from truthgpt_core.service_registry import (
    DuplicateServiceError,
    InvalidServiceError,
    MissingDependencyError,
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


@pytest.fixture
def container() -> Iterator[ServiceContainer]:
    with ServiceContainer() as container:
        yield container


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
    assert name not in get_container().registry.names()


def test_decorator_refuses_what_is_not_called() -> None:
    """The decorator refuses what is neither a class nor a function."""
    with pytest.raises(InvalidServiceError, match="neither a class nor a function"):
        register_service("thing")(property(lambda self: 1))  # type: ignore[type-var]


def test_decorator_without_parentheses_is_refused() -> None:
    """Forgetting the parentheses of the decorator is an error at once."""
    with pytest.raises(InvalidServiceError, match="must be a string"):
        register_service(Engine)  # type: ignore[arg-type]


# Registering


def test_plugin_registers_on_the_registry_of_a_container() -> None:
    """What is registered on a registry can be got from the container that owns it."""
    registry = ServiceRegistry()
    container = ServiceContainer(registry)
    registry.register("my_service", Engine)
    assert isinstance(container.get("my_service"), Engine)


def test_registry_belongs_to_one_container() -> None:
    """A second container on the same registry is refused."""
    registry = ServiceRegistry()
    ServiceContainer(registry)
    with pytest.raises(ServiceError, match="another container"):
        ServiceContainer(registry)


def test_names_are_sorted(container: ServiceContainer) -> None:
    """`names` does not tell in which order services were registered."""
    container.register("b", Engine)
    container.register("a", Engine)
    assert container.registry.names() == ("a", "b")


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


def test_replacing_rebuilds_what_depends_on_it(container: ServiceContainer) -> None:
    """After `replace=True`, dependents are built anew on the new service."""
    container.register("motor", lambda: "old")
    container.register("car", lambda motor: [motor])
    assert container.get("car") == ["old"]
    container.register("motor", lambda: "new", replace=True)
    assert container.get("car") == ["new"]


def test_replacing_leaves_the_others_alone(container: ServiceContainer) -> None:
    """What does not depend on a replaced service keeps its instance."""
    container.register("motor", lambda: "old")
    container.register("engine", Engine)
    engine = container.get("engine")
    container.register("motor", lambda: "new", replace=True)
    assert container.get("engine") is engine


def test_new_name_is_injected_where_a_default_was(container: ServiceContainer) -> None:
    """A service that appears later replaces the default that a dependent was built with."""
    container.register("car", lambda motor="default": [motor])
    assert container.get("car") == ["default"]
    container.register("motor", lambda: "real")
    assert container.get("car") == ["real"]


def test_unregistered_name_is_unknown(container: ServiceContainer) -> None:
    """After `unregister`, the name stands for nothing."""
    container.register("engine", Engine)
    container.get("engine")
    container.registry.unregister("engine")
    with pytest.raises(UnknownServiceError):
        container.get("engine")


def test_withdrawing_a_dependency_shows_at_the_dependent(container: ServiceContainer) -> None:
    """A dependent that was built does not survive the withdrawal of what it needs."""
    container.register("motor", Engine)
    container.register("car", Car)
    container.get("car")
    container.registry.unregister("motor")
    with pytest.raises(MissingDependencyError):
        container.get("car")


def test_unregistering_an_unknown_name_suggests_one(container: ServiceContainer) -> None:
    """`unregister` of a misspelt name says what was probably meant."""
    container.register("engine", Engine)
    with pytest.raises(UnknownServiceError, match='Did you mean "engine"'):
        container.registry.unregister("engin")


def test_getting_an_unknown_name_suggests_one(container: ServiceContainer) -> None:
    """`get` of a misspelt name says what was probably meant."""
    container.register("engine", Engine)
    with pytest.raises(UnknownServiceError, match='Did you mean "engine"'):
        container.get("engin")


def test_names_are_the_only_keys(container: ServiceContainer) -> None:
    """Getting by class is refused, though the class is registered."""
    container.register("engine", Engine)
    for key in (Engine, ["engine"]):
        with pytest.raises(UnknownServiceError, match="Names are strings"):
            container.get(key)  # type: ignore[arg-type]


# Transactions


def test_failed_transaction_restores_what_was_replaced(container: ServiceContainer) -> None:
    """Rolling back takes new names away and brings replaced and removed services back."""
    container.register("a", lambda: "a")
    container.register("b", lambda: "b")

    def activate() -> None:
        with Transaction():
            container.register("a", lambda: "other", replace=True)
            container.registry.unregister("b")
            container.register("c", lambda: "c")
            assert container.get("a") == "other"
            raise LookupError

    with pytest.raises(LookupError):
        activate()
    assert container.registry.names() == ("a", "b")
    assert [container.get("a"), container.get("b")] == ["a", "b"]


def test_plugins_are_taken_back_in_any_order(container: ServiceContainer) -> None:
    """Taking back a registration that was replaced since leaves the newer one in force."""
    container.register("a", lambda: "original")
    with Transaction() as first:
        container.register("a", lambda: "first", replace=True)
    with Transaction() as second:
        container.register("a", lambda: "second", replace=True)
    first.rollback()
    assert container.get("a") == "second"
    second.rollback()
    assert container.get("a") == "original"


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
    ("service", "said"),
    [
        (_coroutine, "async function _coroutine"),
        (_async_generator, "async function _async_generator"),
        (functools.partial(_coroutine), "async function _coroutine"),
        (dict.fromkeys, "no signature|is positional-only"),
        (_with_args, r'"\*args: ?\'?int\'?" is variadic positional'),
        (_with_kwargs, r'"\*\*kwargs: ?\'?int\'?" is variadic keyword'),
        (_positional_only, "is positional-only"),
        (None, "cannot be None"),
    ],
)
def test_what_can_never_be_made_is_refused_when_registered(
    container: ServiceContainer, service: object, said: str
) -> None:
    """A factory that cannot be called with services is refused by `register`, with the reason."""
    with pytest.raises(InvalidServiceError, match=said):
        container.register("x", service)
    assert container.registry.names() == ()


def test_instance_cannot_be_made_anew(container: ServiceContainer) -> None:
    """Something that is not called cannot be transient."""
    with pytest.raises(InvalidServiceError, match="neither a class nor a function"):
        container.register("x", 3, singleton=False)


def test_transient_generator_function_is_refused(container: ServiceContainer) -> None:
    """A generator function cannot be transient, for nothing would finish it."""
    with pytest.raises(InvalidServiceError, match="yield"):
        container.register("x", _generator, singleton=False)


@pytest.mark.parametrize("name", ["", None, 3, Engine])
def test_name_must_be_a_string(container: ServiceContainer, name: Any) -> None:
    """Anything but a string that is not empty is refused as a name."""
    with pytest.raises(InvalidServiceError, match="must be a string"):
        container.register(name, Engine)


def test_unknown_lifetime_is_refused(container: ServiceContainer) -> None:
    """A misspelt lifetime is an error that lists the lifetimes."""
    with pytest.raises(InvalidServiceError, match="singleton, scoped, transient"):
        container.register("x", Engine, lifetime="forever")  # type: ignore[arg-type]


def test_contradictory_lifetimes_are_refused(container: ServiceContainer) -> None:
    """`singleton=False` together with `lifetime="singleton"` is an error."""
    with pytest.raises(InvalidServiceError, match="singleton=False"):
        container.register("x", Engine, singleton=False, lifetime="singleton")


def test_callable_object_is_an_instance(container: ServiceContainer) -> None:
    """An object with `__call__`, such as a network, is the service and is not called."""

    class Network:
        def __call__(self) -> None:
            raise AssertionError

    network = Network()
    container.register("network", network)
    assert container.get("network") is network


def test_generator_function_that_yields_nothing_is_refused(container: ServiceContainer) -> None:
    """A generator function that ends without a yield made no service."""

    def nothing() -> Iterator[int]:
        yield from ()

    container.register("nothing", nothing)
    with pytest.raises(InvalidServiceError, match='"nothing" yielded nothing'):
        container.get("nothing")
