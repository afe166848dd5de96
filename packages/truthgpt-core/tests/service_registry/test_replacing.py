"""Services change while they are in use: what is built anew, what is closed, what is undone."""

from __future__ import annotations

from typing import Any

import pytest

from truthgpt_core.service_registry import (
    MissingDependencyError,
    ServiceCloseError,
    ServiceContainer,
    ServiceError,
)
from truthgpt_core.transaction import Transaction


class Engine:
    pass


class Closing:
    """A service that logs that it is closed."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def close(self) -> None:
        self.log.append(self.name)


def test_replacing_rebuilds_what_depends_on_it(container: ServiceContainer) -> None:
    """After `replace=True`, dependents are built anew on the new service."""
    container.register("motor", lambda: "old")
    container.register("car", lambda motor: [motor], singleton=False)
    container.register("race", lambda car: [car])
    assert container.get("race") == [["old"]]
    container.register("motor", lambda: "new", replace=True)
    assert container.get("race") == [["new"]]


def test_replacing_leaves_the_others_alone(container: ServiceContainer) -> None:
    """What does not depend on a replaced service keeps its instance."""
    container.register("motor", lambda: "old")
    container.register("engine", Engine)
    engine = container.get("engine")
    container.register("motor", lambda: "new", replace=True)
    assert container.get("engine") is engine


def test_replacing_closes_what_was_built_on_it(container: ServiceContainer) -> None:
    """Replacing a service closes it after its dependents, and nothing else."""
    log: list[str] = []
    container.register("c", lambda: Closing(log, "c"))
    container.register("b", lambda c: Closing(log, "b"))
    container.register("a", lambda b: Closing(log, "a"))
    container.get("a")
    container.register("b", lambda c: Closing(log, "new b"), replace=True)
    assert log == ["a", "b"]


def test_replacement_is_in_force_though_closing_fails(container: ServiceContainer) -> None:
    """A service that cannot be closed is reported, and is replaced nevertheless."""

    class Stuck:
        def close(self) -> None:
            raise ValueError("stuck")

    container.register("s", Stuck)
    container.get("s")
    with pytest.raises(ServiceCloseError, match='"s": ValueError: stuck'):
        container.register("s", Engine, replace=True)
    assert isinstance(container.get("s"), Engine)


def test_lifetime_can_be_replaced(container: ServiceContainer) -> None:
    """The same class can become transient, and its dependents follow."""
    container.register("engine", Engine)
    container.register("car", lambda engine: engine, singleton=False)
    assert container.get("car") is container.get("car")
    container.register("engine", Engine, singleton=False, replace=True)
    assert container.get("car") is not container.get("car")


def test_new_name_is_injected_where_a_default_was(container: ServiceContainer) -> None:
    """A service that appears later replaces the default that a dependent was built with."""
    container.register("car", lambda motor="default": [motor])
    container.register("race", lambda car: [car])
    assert container.get("race") == [["default"]]
    container.register("motor", lambda: "real")
    assert container.get("race") == [["real"]]


def test_name_that_is_undone_leaves_the_default(container: ServiceContainer) -> None:
    """A dependent is built with its default again when a service is gone."""
    container.register("car", lambda motor="default": [motor])
    with Transaction() as plugin:
        container.register("motor", lambda: "real")
    assert container.get("car") == ["real"]
    plugin.rollback()
    assert container.get("car") == ["default"]


def test_dependent_of_what_is_gone_is_refused(container: ServiceContainer) -> None:
    """A dependent that was built does not outlive what it needs."""
    with Transaction() as plugin:
        container.register("motor", Engine)
    container.register("car", lambda motor: [motor])
    container.get("car")
    plugin.rollback()
    with pytest.raises(MissingDependencyError):
        container.get("car")


# Transactions


def test_failed_transaction_restores_what_was_replaced(container: ServiceContainer) -> None:
    """Rolling back takes new names away and brings replaced services back."""
    container.register("a", lambda: "a")

    def activate() -> None:
        with Transaction():
            container.register("a", lambda: "other", replace=True)
            container.register("b", lambda: "b")
            assert container.get("a") == "other"
            raise LookupError

    with pytest.raises(LookupError):
        activate()
    assert container.registry.names() == ("a",)
    assert container.get("a") == "a"


def test_undoing_closes_what_was_registered(container: ServiceContainer) -> None:
    """A plugin that is deactivated has its services closed, dependents first."""
    log: list[str] = []
    with Transaction() as plugin:
        container.register("base", lambda: Closing(log, "base"))
    container.register("user", lambda base=None: Closing(log, "user"))
    container.get("user")
    plugin.rollback()
    assert log == ["user", "base"]


def test_plugins_are_undone_in_any_order(container: ServiceContainer) -> None:
    """Undoing a registration that was replaced since leaves the newer one in force."""
    container.register("a", lambda: "original")
    with Transaction() as first:
        container.register("a", lambda: "first", replace=True)
    with Transaction() as second:
        container.register("a", lambda: "second", replace=True)
    first.rollback()
    assert container.get("a") == "second"
    second.rollback()
    assert container.get("a") == "original"


def test_two_plugins_may_register_the_same_service(container: ServiceContainer) -> None:
    """A service that two plugins register stays, as it is, until both are gone."""
    with Transaction() as first:
        container.register("engine", Engine)
    engine = container.get("engine")
    with Transaction() as second:
        container.register("engine", Engine)
    first.rollback()
    assert container.get("engine") is engine
    second.rollback()
    assert container.registry.names() == ()


def test_service_registered_for_good_outlives_the_plugin(container: ServiceContainer) -> None:
    """What the application registers, too, stays when the plugin goes."""
    with Transaction() as plugin:
        container.register("engine", Engine)
    container.register("engine", Engine)
    plugin.rollback()
    assert container.registry.names() == ("engine",)


# While a service is being built


def test_service_that_changes_what_it_is_built_on_is_refused(container: ServiceContainer) -> None:
    """A constructor that replaces its own dependency makes no service; what it made is closed."""
    log: list[str] = []

    def rebuild(motor: str) -> Closing:
        if motor == "old":
            container.register("motor", lambda: "new", replace=True)
        return Closing(log, motor)

    container.register("motor", lambda: "old")
    container.register("car", rebuild)
    with pytest.raises(ServiceError, match='"car" was changed while it was being built'):
        container.get("car")
    assert log == ["old"]
    assert container.get("car").name == "new"


def test_constructor_may_register_what_it_does_not_need(container: ServiceContainer) -> None:
    """A constructor may activate plugins, which register services and may fail."""

    def activate() -> None:
        with Transaction():
            container.register("extra", lambda: "extra")
            container.get("extra")
            raise LookupError

    def car() -> Any:
        container.register("kept", lambda: "kept")
        with pytest.raises(LookupError):
            activate()
        return [container.get("kept")]

    container.register("car", car)
    assert container.get("car") == ["kept"]
    assert container.get("car") is container.get("car")
    assert container.registry.names() == ("car", "kept")
