"""What services get injected, and how the graph of them is judged."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from truthgpt_core.service_registry import (
    AmbiguousDependencyError,
    LifetimeError,
    MissingDependencyError,
    Provider,
    ServiceContainer,
    ServiceCycleError,
)

if TYPE_CHECKING:
    from decimal import Decimal  # an annotation that cannot be evaluated when the tests run


class Engine:
    pass


class Car:
    def __init__(self, motor: Engine) -> None:
        self.motor = motor


@pytest.fixture
def container() -> Iterator[ServiceContainer]:
    with ServiceContainer() as container:
        yield container


def test_annotation_finds_the_service_whatever_its_name(container: ServiceContainer) -> None:
    """A parameter gets the one service of the class that it is annotated with."""
    container.register("v8", Engine)
    container.register("car", Car)
    assert container.get("car").motor is container.get("v8")


def test_parameter_name_finds_the_service(container: ServiceContainer) -> None:
    """A parameter without annotation gets the service that has its name."""
    container.register("motor", Engine)
    container.register("car", lambda motor: [motor])
    assert container.get("car") == [container.get("motor")]


def test_annotation_comes_before_the_name(container: ServiceContainer) -> None:
    """The annotation decides where it and the name of the parameter point elsewhere."""
    container.register("v8", Engine)
    container.register("motor", lambda: "no engine")
    container.register("car", Car)
    assert isinstance(container.get("car").motor, Engine)


def test_two_services_of_the_class_are_ambiguous(container: ServiceContainer) -> None:
    """Where two services would do, the error lists them and the parameter."""
    container.register("v8", Engine)
    container.register("v6", Engine)
    container.register("car", Car)
    with pytest.raises(
        AmbiguousDependencyError, match=r'"car" needs one of "v6", "v8" \(parameter "motor" of Car'
    ):
        container.get("car")


def test_parameter_name_settles_ambiguity(container: ServiceContainer) -> None:
    """Of several services of the class, the one with the name of the parameter is meant."""
    container.register("motor", Engine)
    container.register("spare", Engine)
    container.register("car", Car)
    assert container.get("car").motor is container.get("motor")


def test_default_is_kept_where_nothing_matches(container: ServiceContainer) -> None:
    """Parameters that match nothing keep their defaults, also between others that match."""

    def make(a: int, b: int = 2, c: int = 3, *, d: int = 4, e: int) -> tuple[int, ...]:
        return (a, b, c, d, e)

    for name, value in [("a", 10), ("c", 30), ("e", 50)]:
        container.register(name, value)
    container.register("all", make)
    assert container.get("all") == (10, 2, 30, 4, 50)


def test_builtin_types_tell_no_service(container: ServiceContainer) -> None:
    """A registered string is not injected into every parameter annotated `str`."""
    container.register("model_name", "gpt2")
    container.register("made", lambda: "made")

    def make(title: str = "untitled") -> list[str]:
        return [title]

    container.register("book", make)
    assert container.get("book") == ["untitled"]


def test_optional_annotation_finds_the_service(container: ServiceContainer) -> None:
    """`Engine | None = None` gets the engine where there is one."""

    def make(motor: Engine | None = None) -> list[Engine | None]:
        return [motor]

    container.register("v8", Engine)
    container.register("car", make)
    assert container.get("car") == [container.get("v8")]


def test_return_annotation_of_a_factory_tells_its_class(container: ServiceContainer) -> None:
    """What a factory says it returns, or yields, is found by annotation."""

    def make() -> Iterator[Engine]:
        yield Engine()

    container.register("v8", make)
    container.register("car", Car)
    assert container.get("car").motor is container.get("v8")


def test_classes_inside_a_function_find_each_other(container: ServiceContainer) -> None:
    """String annotations of classes defined in a function are resolved among the registered."""

    class Part:
        pass

    class Whole:
        def __init__(self, piece: Part) -> None:
            self.piece = piece

    container.register("whole", Whole)
    container.register("part", Part)
    assert container.get("whole").piece is container.get("part")


def test_class_that_a_factory_closes_over_is_found(container: ServiceContainer) -> None:
    """A class of the function around that is not registered itself is resolved as well."""

    class Part:
        pass

    def make_part() -> Part:
        return Part()

    def make_whole(piece: Part) -> tuple[type, Part]:
        return (Part, piece)

    container.register("part", make_part)
    container.register("whole", make_whole)
    assert container.get("whole") == (Part, container.get("part"))


def test_annotation_is_resolved_once_its_class_is_registered(container: ServiceContainer) -> None:
    """A dependent whose annotation said nothing is built anew when it comes to say something."""

    class Part:
        pass

    class Whole:
        def __init__(self, piece: Part | None = None) -> None:
            self.piece = piece

    container.register("whole", Whole)
    assert container.get("whole").piece is None
    container.register("part", Part)
    assert container.get("whole").piece is container.get("part")


def test_dataclass_is_injected(container: ServiceContainer) -> None:
    """The fields of a dataclass are parameters like any others."""

    @dataclass
    class Truck:
        motor: Engine
        wheels: int = 6

    container.register("v8", Engine)
    container.register("truck", Truck)
    assert container.get("truck") == Truck(container.get("v8"))


def test_annotation_that_cannot_be_evaluated_leaves_the_name(container: ServiceContainer) -> None:
    """An annotation imported for type checkers only falls back to the parameter name."""

    def make(price: Decimal, broken: 1 / 0) -> tuple[Any, ...]:  # type: ignore[valid-type]
        return (price, broken)

    container.register("price", 3)
    container.register("broken", 4)
    container.register("all", make)
    assert container.get("all") == (3, 4)


def test_partial_asks_only_for_what_is_left(container: ServiceContainer) -> None:
    """A parameter that a partial binds is not injected."""

    def make(motor: Engine, seats: int) -> tuple[Engine, int]:
        return (motor, seats)

    container.register("v8", Engine)
    container.register("seats", 4)
    container.register("car", functools.partial(make, seats=2))
    motor, seats = container.get("car")
    assert isinstance(motor, Engine)
    assert seats in (2, 4)  # a keyword of a partial is a default, and a service comes first
    assert seats == 4


def test_many_parameters_arrive_in_order(container: ServiceContainer) -> None:
    """Every parameter gets its own service, however many there are."""
    for name in "abcd":
        container.register(name, name.upper())
    container.register("two", lambda a, b: a + b)
    container.register("four", lambda a, b, c, d: a + b + c + d)
    assert container.get("two") + container.get("four") == "ABABCD"


def test_provider_breaks_a_cycle(container: ServiceContainer) -> None:
    """Two services may need each other if one gets a provider, and both are the singletons."""

    class Parent:
        def __init__(self, child: Provider[Child]) -> None:
            self.child = child

    class Child:
        def __init__(self, parent: Parent) -> None:
            self.parent = parent

    container.register("parent", Parent)
    container.register("child", Child)
    parent = container.get("parent")
    assert parent.child() is container.get("child")
    assert parent.child().parent is parent


def test_provider_called_too_early_is_a_cycle(container: ServiceContainer) -> None:
    """Calling a provider while its target waits for the caller is an error, not a recursion."""

    def parent(child: Provider[Any]) -> object:
        return child()

    container.register("parent", parent)
    container.register("child", lambda parent: object())
    with pytest.raises(ServiceCycleError) as caught:
        container.get("parent")
    assert caught.value.path == ("parent", "child", "parent")


def test_provider_of_a_scoped_service_gets_it_from_the_scope(container: ServiceContainer) -> None:
    """A provider injected in a scope gets the instance of that scope."""

    def job(session: Provider[Any]) -> Any:
        return session

    container.register("session", Engine, lifetime="scoped")
    container.register("job", job, singleton=False)
    with container.scope() as scope:
        assert scope.get("job")() is scope.get("session")


# Judging the graph


def test_missing_dependency_names_who_needs_it(container: ServiceContainer) -> None:
    """The error says who needs what, in which parameter, and what was probably meant."""

    class A:
        def __init__(self, modle_manager: Engine) -> None:
            pass

    container.register("a", A)
    container.register("model_manager", lambda: 1)
    with pytest.raises(MissingDependencyError) as caught:
        container.get("a")
    assert str(caught.value) == (
        '"a" needs "modle_manager" (parameter "modle_manager" of A.__init__), '
        'which is not registered. Did you mean "model_manager"?'
    )


def test_whole_graph_is_judged_before_the_first_use(container: ServiceContainer) -> None:
    """A fault anywhere shows at the first `get`, before anything is built."""
    built: list[str] = []
    container.register("good", lambda: built.append("good"))
    container.register("bad", lambda absent: None)
    with pytest.raises(MissingDependencyError):
        container.get("good")
    assert built == []


def test_cycle_is_told_as_its_path(container: ServiceContainer) -> None:
    """A cycle is an error that shows it in full, from its first name."""
    container.register("c", lambda a: a)
    container.register("b", lambda c: c)
    container.register("a", lambda b: b)
    with pytest.raises(ServiceCycleError, match="a -> b -> c -> a"):
        container.get("b")


def test_singleton_on_a_scoped_service_is_refused(container: ServiceContainer) -> None:
    """A singleton cannot need a scoped service, also not through a transient one."""
    container.register("session", Engine, lifetime="scoped")
    container.register("query", lambda session: session, singleton=False)
    container.register("cache", lambda query: query)
    with pytest.raises(LifetimeError, match="cache -> query -> session"):
        container.registry.validate()


def test_singleton_on_a_provider_of_a_scoped_service_is_refused(
    container: ServiceContainer,
) -> None:
    """A provider does not help a singleton to a scoped service."""

    def cache(session: Provider[Any]) -> None:
        pass

    container.register("session", Engine, lifetime="scoped")
    container.register("cache", cache)
    with pytest.raises(LifetimeError, match="cache -> session"):
        container.registry.validate()


def test_repaired_graph_is_judged_again(container: ServiceContainer) -> None:
    """What was refused works once the missing service is there."""
    container.register("car", Car)
    with pytest.raises(MissingDependencyError):
        container.get("car")
    container.register("motor", Engine)
    assert container.get("car").motor is container.get("motor")


def test_fault_at_run_time_leaves_built_services_in_use(container: ServiceContainer) -> None:
    """A faulty registration does not take away what is built and does not depend on it."""
    container.register("engine", Engine)
    engine = container.get("engine")
    container.register("bad", lambda absent: None)
    assert container.get("engine") is engine
