"""What constructor parameters get, and what is refused before anything is built."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

import pytest

from truthgpt_core.service_registry import (
    AmbiguousDependencyError,
    MissingDependencyError,
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


def test_parameter_name_finds_the_service(container: ServiceContainer) -> None:
    """A parameter gets the service that has its name."""
    container.register("motor", Engine)
    container.register("car", lambda motor: [motor])
    assert container.get("car") == [container.get("motor")]


def test_annotation_finds_the_service_whatever_its_name(container: ServiceContainer) -> None:
    """A parameter gets the one service of the class that it is annotated with."""
    container.register("v8", Engine)
    container.register("car", Car)
    assert container.get("car").motor is container.get("v8")


def test_name_comes_before_the_annotation(container: ServiceContainer) -> None:
    """The name decides where it and the annotation point to different services."""
    container.register("v8", Engine)
    container.register("motor", lambda: "a motor")
    container.register("car", Car)
    assert container.get("car").motor == "a motor"


def test_name_decides_between_services_of_one_class(container: ServiceContainer) -> None:
    """Of several services of the class, the one with the name of the parameter is meant."""
    container.register("motor", Engine)
    container.register("spare", Engine)
    container.register("car", Car)
    assert container.get("car").motor is container.get("motor")


def test_instance_is_found_by_its_class(container: ServiceContainer) -> None:
    """An instance that was registered matches the annotation of its class."""
    engine = Engine()
    container.register("v8", engine)
    container.register("car", Car)
    assert container.get("car").motor is engine


def test_factory_is_found_by_its_return_annotation(container: ServiceContainer) -> None:
    """A function matches by the class that it is annotated to return."""

    def make() -> Engine:
        return Engine()

    container.register("v8", make)
    container.register("car", Car)
    assert container.get("car").motor is container.get("v8")


def test_service_that_wraps_its_own_class_gets_the_other(container: ServiceContainer) -> None:
    """A service does not match its own parameters by class."""

    class Turbo(Engine):
        inner: Engine

    def add_turbo(engine_without: Engine) -> Engine:
        turbo = Turbo()
        turbo.inner = engine_without
        return turbo

    container.register("v8", Engine)
    container.register("turbo", add_turbo)
    assert container.get("turbo").inner is container.get("v8")


@pytest.mark.parametrize("annotation", [Engine | None, Optional[Engine], "Engine | None"])  # noqa: UP045
def test_optional_annotation_finds_the_service(
    container: ServiceContainer, annotation: Any
) -> None:
    """`Engine | None = None` gets the engine where there is one."""

    def make(motor=None):  # type: ignore[no-untyped-def]
        return [motor]

    make.__annotations__["motor"] = annotation
    container.register("car", make)
    assert container.get("car") == [None]
    container.register("v8", Engine)
    assert container.get("car") == [container.get("v8")]


def test_default_is_kept_where_nothing_matches(container: ServiceContainer) -> None:
    """Parameters that match nothing keep their defaults, also between others that match."""

    def make(a: int, b: int = 2, c: int = 3, *, d: int = 4, e: int) -> tuple[int, ...]:
        return (a, b, c, d, e)

    for name, value in [("a", 10), ("c", 30), ("e", 50)]:
        container.register(name, value)
    container.register("all", make)
    assert container.get("all") == (10, 2, 30, 4, 50)


def test_builtin_types_match_nothing(container: ServiceContainer) -> None:
    """A registered string is not injected into every parameter annotated `str`."""
    container.register("model_name", "gpt2")
    container.register("anything", lambda: "anything")

    def make(title: str = "untitled", other: Any = None) -> list[Any]:
        return [title, other]

    container.register("book", make)
    assert container.get("book") == ["untitled", None]


def test_builtin_class_is_found_by_its_name(container: ServiceContainer) -> None:
    """A parameter gets a `dict` by name."""
    container.register("memory", dict)
    container.register("user", lambda memory: [memory])
    assert container.get("user")[0] is container.get("memory")


def test_classes_inside_a_function_find_each_other(container: ServiceContainer) -> None:
    """String annotations of classes defined in a function are resolved among the registered."""

    class Part:
        pass

    class Whole:
        def __init__(self, piece: Part | None = None) -> None:
            self.piece = piece

    container.register("whole", Whole)
    assert container.get("whole").piece is None
    container.register("part", Part)
    assert container.get("whole").piece is container.get("part")


def test_annotation_may_name_a_class_that_is_defined_later(container: ServiceContainer) -> None:
    """Annotations are read when the first service is built, not when one is registered."""
    module: dict[str, Any] = {"__name__": "a_module"}
    exec("class Whole:\n  def __init__(self, piece: 'Part'): self.piece = piece", module)
    container.register("whole", module["Whole"])
    exec("class Part: pass", module)
    container.register("it", module["Part"])
    assert container.get("whole").piece is container.get("it")


def test_annotation_that_cannot_be_evaluated_leaves_the_name(container: ServiceContainer) -> None:
    """With an annotation that is imported for type checkers only, the name still matches."""

    def make(price: Decimal, broken: 1 / 0, other: Decimal = 5) -> tuple[Any, ...]:  # type: ignore[valid-type,assignment]
        return (price, broken, other)

    container.register("price", 3)
    container.register("broken", 4)
    container.register("all", make)
    assert container.get("all") == (3, 4, 5)


def test_dataclass_is_injected(container: ServiceContainer) -> None:
    """The fields of a dataclass are parameters like any others."""

    @dataclass
    class Truck:
        motor: Engine
        wheels: int = 6

    container.register("v8", Engine)
    container.register("truck", Truck)
    assert container.get("truck") == Truck(container.get("v8"))


def test_partial_needs_only_what_is_left(container: ServiceContainer) -> None:
    """A parameter that a partial binds by position is not injected, by keyword is a default."""

    def make(wheels: int, motor: Engine, seats: int) -> tuple[int, Engine, int]:
        return (wheels, motor, seats)

    container.register("v8", Engine)
    container.register("wheels", 3)
    container.register("car", functools.partial(make, 4, seats=2))
    assert container.get("car") == (4, container.get("v8"), 2)
    container.register("seats", 5)
    assert container.get("car") == (4, container.get("v8"), 5)


def test_many_parameters_arrive_in_order(container: ServiceContainer) -> None:
    """Every parameter gets its own service, however many there are."""
    for name in "abcd":
        container.register(name, name.upper())
    container.register("two", lambda a, b: a + b)
    container.register("four", lambda d, c, b, a: d + c + b + a)
    assert container.get("two") + container.get("four") == "ABDCBA"


# What is refused


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


def test_two_services_of_the_class_are_ambiguous(container: ServiceContainer) -> None:
    """Where two services would do, the error lists them and the parameter."""
    container.register("v8", Engine)
    container.register("v6", Engine)
    container.register("car", Car)
    with pytest.raises(
        AmbiguousDependencyError, match=r'"car" needs one of "v6", "v8" \(parameter "motor" of Car'
    ):
        container.get("car")


def test_ambiguous_default_is_refused_too(container: ServiceContainer) -> None:
    """A default does not decide between two services of the class."""

    def make(motor: Engine | None = None) -> None:
        raise AssertionError

    container.register("v8", Engine)
    container.register("v6", Engine)
    container.register("car", make)
    with pytest.raises(AmbiguousDependencyError):
        container.get("car")


def test_whole_graph_is_judged_before_the_first_use(container: ServiceContainer) -> None:
    """A fault anywhere shows at the first `get`, before anything is built."""
    built: list[str] = []
    container.register("good", lambda: built.append("good"))
    container.register("bad", lambda absent: None)
    with pytest.raises(MissingDependencyError):
        container.get("good")
    assert built == []


def test_cycle_is_reported_with_its_path(container: ServiceContainer) -> None:
    """A cycle is an error that shows it in full, from its first name."""
    container.register("c", lambda a: a)
    container.register("b", lambda c: c)
    container.register("a", lambda b: b)
    with pytest.raises(ServiceCycleError, match="a -> b -> c -> a") as caught:
        container.get("b")
    assert caught.value.path == ("a", "b", "c", "a")


def test_cycle_through_get_is_reported(container: ServiceContainer) -> None:
    """A constructor that gets what waits for it is an error, not a recursion."""
    container.register("parent", lambda: container.get("child"))
    container.register("child", lambda parent: parent)
    with pytest.raises(ServiceCycleError) as caught:
        container.get("parent")
    assert caught.value.path == ("parent", "child", "parent")


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
