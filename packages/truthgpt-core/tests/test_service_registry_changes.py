"""Plugins come and go at run time: what is judged again, built anew, and taken back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from typing import Iterator as TypingIterator  # noqa: UP035 - without an argument, it is another

import pytest

from truthgpt_core.service_registry import (
    AmbiguousDependencyError,
    MissingDependencyError,
    ServiceContainer,
    ServiceError,
    UnknownServiceError,
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


# Judging again


class Judged(Counter[str]):
    """How often the annotations of each service were evaluated, as judging it does."""

    def service(self, name: str, *needs: str) -> Callable[..., str]:
        """Return a factory whose annotations count when they are evaluated."""
        parameters = ", ".join(f"{need}: judge()" for need in needs)
        scope: dict[str, Any] = {"judge": lambda: self.update([name]) or object}
        code = f"from __future__ import annotations\ndef make({parameters}) -> judge(): return ''"
        exec(code, scope)
        make: Callable[..., str] = scope["make"]
        return make

    def since(self, act: Callable[[], object]) -> set[str]:
        """Return the services that were judged while something was done."""
        self.clear()
        act()
        return set(self)


@pytest.fixture
def judged() -> Judged:
    return Judged()


@pytest.fixture
def chain(container: ServiceContainer, judged: Judged) -> ServiceContainer:
    """A container in use, in which a needs b, b needs c, and d needs nothing."""
    for name, *needs in ("ab", "bc", "c", "d"):
        container.register(name, judged.service(name, *needs))
    container.get("a")
    container.get("d")
    return container


def test_a_valid_graph_is_judged_once(chain: ServiceContainer, judged: Judged) -> None:
    """Once everything was judged, using services judges nothing."""

    def use() -> None:
        chain.registry.validate()
        chain.get("a")
        chain.graph()

    assert judged.since(use) == set()


def test_a_plugin_that_adds_a_service_has_only_that_judged(
    chain: ServiceContainer, judged: Judged
) -> None:
    """A service that comes at run time is judged, and those it depends on are not."""

    def add() -> None:
        chain.register("new", judged.service("new", "a"))
        chain.get("new")

    assert judged.since(add) == {"new"}


def test_a_plugin_that_withdraws_a_service_has_only_its_dependents_judged(
    chain: ServiceContainer, judged: Judged
) -> None:
    """When a service goes, those that asked for it by name are judged, and the rest are not."""

    def withdraw() -> None:
        chain.registry.unregister("b")
        with pytest.raises(MissingDependencyError):
            chain.registry.validate()

    assert judged.since(withdraw) == {"a"}


def test_a_replaced_service_has_only_it_and_its_dependents_judged(
    chain: ServiceContainer, judged: Judged
) -> None:
    """Replacing a service judges its replacement and what gets it, not what they stand on."""

    def replace() -> None:
        chain.register("b", judged.service("b", "c"), replace=True)
        chain.get("a")

    assert judged.since(replace) <= {"a", "b"}
    assert judged["b"]


# What a change outdates


def test_service_that_got_another_by_hand_is_built_anew_when_that_is_replaced(
    container: ServiceContainer,
) -> None:
    """`get` in a constructor counts as a dependency, and so does what was built on it."""
    container.register("motor", lambda: "old")
    container.register("car", lambda: [container.get("motor")])
    container.register("race", lambda car: [car])
    assert container.get("race") == [["old"]]
    container.register("motor", lambda: "new", replace=True)
    assert container.get("race") == [["new"]]


def test_service_that_asked_in_vain_is_built_anew_when_what_it_wanted_comes(
    container: ServiceContainer,
) -> None:
    """A constructor that did without a service is run again once there is one."""

    def car() -> list[str]:
        try:
            return [container.get("motor")]
        except UnknownServiceError:
            return ["none"]

    container.register("car", car)
    assert container.get("car") == ["none"]
    container.register("motor", lambda: "real")
    assert container.get("car") == ["real"]


def test_constructor_cannot_replace_what_it_got_by_hand(container: ServiceContainer) -> None:
    """A service would be built on what is closed already, so replacing it is refused."""

    def car() -> None:
        container.get("motor")
        container.register("motor", lambda: "new", replace=True)

    container.register("motor", lambda: "old")
    container.register("car", car)
    with pytest.raises(ServiceError, match='"car" is being built'):
        container.get("car")
    assert container.get("motor") == "old"


def test_failed_activation_inside_a_constructor_is_undone(container: ServiceContainer) -> None:
    """A transaction that fails in a constructor is rolled back, whatever was got meanwhile."""

    def activate() -> None:
        with Transaction():
            container.register("extra", lambda: "extra")
            container.get("extra")
            raise LookupError

    def car() -> str:
        with pytest.raises(LookupError):
            activate()
        return "car"

    container.register("car", car)
    assert container.get("car") == "car"
    assert container.registry.names() == ("car",)


def test_return_annotation_is_understood_once_its_class_is_registered(
    container: ServiceContainer,
) -> None:
    """A factory whose return annotation said nothing provides the class once it says it."""

    class Part:
        pass

    def made() -> Part:
        raise AssertionError

    container.register("made", made)
    container.register("user", lambda: "built")
    container.get("user")  # from here on, what the annotations say is known
    container.register("part", Part)

    def whole(piece: Part) -> Part:
        return piece

    container.register("whole", whole)
    with pytest.raises(AmbiguousDependencyError, match='"made", "part"'):
        container.get("whole")


@pytest.mark.parametrize("annotation", [TypingIterator, Iterator])
def test_iterator_of_nothing_in_particular_is_a_generator_function(
    container: ServiceContainer, annotation: Any
) -> None:
    """A generator function annotated with a bare Iterator works, and provides no class."""

    def made():  # type: ignore[no-untyped-def]
        yield "service"

    made.__annotations__["return"] = annotation
    container.register("made", made)
    assert container.get("made") == "service"


def test_missing_class_says_who_provides_a_subclass(container: ServiceContainer) -> None:
    """Who asks for a base class is told which service has a subclass, and how to get it."""

    class Diesel(Engine):
        pass

    container.register("diesel", Diesel)
    container.register("car", Car)
    with pytest.raises(MissingDependencyError) as caught:
        container.get("car")
    assert caught.value.hint == (
        '"diesel" provides a subclass of Engine: give the parameter its name, '
        "or register it with a function that says it returns Engine."
    )


# Taking back


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


def test_same_service_registered_for_good_outlives_the_plugin(
    container: ServiceContainer,
) -> None:
    """What the application registers, too, stays when the plugin goes."""
    with Transaction() as plugin:
        container.register("engine", Engine)
    container.register("engine", Engine)
    plugin.rollback()
    assert container.registry.names() == ("engine",)
