"""Overrides that reach what got the service by hand, and that overlap in any order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.service_registry import Provider, ServiceContainer, ServiceError

NAMES = "abcde"


class Log(list[str]):
    """What was closed, in order."""

    def service(self, name: str, *parts: Any) -> Service:
        return Service(self, name, parts)


class Service:
    """A service that knows what it was built on, and notes that it is closed."""

    def __init__(self, log: Log, name: str, parts: tuple[Any, ...]) -> None:
        self.log, self.name, self.parts = log, name, parts
        self.closed = False

    def close(self) -> None:
        assert not self.closed
        assert not any(part.closed for part in self.parts), "it was built on what is closed"
        self.closed = True
        self.log.append(self.name)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def container(log: Log) -> Iterator[ServiceContainer]:
    """A container in which a gets b by hand, b is built on c, and d stands alone."""
    with ServiceContainer() as container:
        container.register("c", lambda: log.service("c"))
        container.register("b", lambda c: log.service("b", c))
        container.register("a", lambda: log.service("a", container.get("b")))
        container.register("d", lambda: log.service("d"))
        yield container


# What got the service by hand


def test_override_rebuilds_what_got_the_service_by_hand(
    container: ServiceContainer, log: Log
) -> None:
    """A constructor that calls `get` is run anew in the block, and its service restored after."""
    before = container.get("a")
    with container.override("c", lambda: log.service("fake")):
        assert container.get("a").parts[0].parts[0].name == "fake"
    assert container.get("a") is before
    assert log == ["a", "b", "fake"]


def test_override_rebuilds_what_called_its_provider_while_it_was_constructed(
    container: ServiceContainer,
) -> None:
    """A provider that is called in a constructor is no different from a `get` there."""

    def user(late: Provider[Any]) -> list[Any]:
        return [late()]

    container.register("late", lambda c: [c])
    container.register("user", user)
    before = container.get("user")
    with container.override("c", "fake"):
        assert container.get("user") == [["fake"]]
    assert container.get("user") is before


def test_override_rebuilds_what_is_built_on_what_got_it_by_hand(
    container: ServiceContainer, log: Log
) -> None:
    """Dependents of such a service are rebuilt as well, through transient ones too."""
    container.register("between", lambda a: [a], singleton=False)
    container.register("top", lambda between: [between])
    before = container.get("top")
    fake = log.service("fake")
    with container.override("b", fake):
        assert container.get("top")[0][0].parts == (fake,)
    assert container.get("top") is before


def test_constructor_cannot_override_what_it_got_by_hand(container: ServiceContainer) -> None:
    """An override in a constructor is refused if the service has got the real one."""

    def user() -> None:
        container.get("c")
        with container.override("c", "fake"):
            pass

    container.register("user", user)
    with pytest.raises(ServiceError, match='"user" is being built'):
        container.get("user")


def test_service_that_gets_when_it_needs_sees_the_override(container: ServiceContainer) -> None:
    """A service that calls its provider at every use needs no rebuilding."""

    def user(c: Provider[Any]) -> Callable[[], Any]:
        return lambda: c()

    container.register("user", user)
    use = container.get("user")
    real = use()
    with container.override("c", "fake"):
        assert container.get("user")() == "fake"
        assert use() == "fake"
    assert use() is real


def test_get_in_another_thread_is_not_taken_for_a_constructors(
    container: ServiceContainer,
) -> None:
    """What other threads get while a service is built is no dependency of it."""
    building, go_on = threading.Event(), threading.Event()

    def slow() -> list[str]:
        building.set()
        assert go_on.wait(20)
        return ["slow"]

    container.register("slow", slow)
    container.get("d")
    thread = threading.Thread(target=container.get, args=("slow",), daemon=True)
    thread.start()
    assert building.wait(20)
    container.get("d")
    go_on.set()
    thread.join(20)
    before = container.get("slow")
    with container.override("d", "fake"):
        assert container.get("slow") is before


# Overrides that overlap


def test_overrides_that_overlap_end_in_any_order(container: ServiceContainer) -> None:
    """Each override ends when its block does, though a later one goes on."""
    first, second = container.override("b", "fake b"), container.override("d", "fake d")
    before = container.get("b"), container.get("d")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert container.get("b") is before[0]
    assert container.get("d") == "fake d"
    second.__exit__(None, None, None)
    assert container.get("d") is before[1]


def test_overrides_of_one_service_end_in_any_order(container: ServiceContainer) -> None:
    """Of two overrides of a service the later one is in force, until it ends itself."""
    first, second = container.override("b", "first"), container.override("b", "second")
    before = container.get("b")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert container.get("b") == "second"
    second.__exit__(None, None, None)
    assert container.get("b") is before


def test_override_that_goes_on_keeps_what_it_outdates_out_of_use(
    container: ServiceContainer, log: Log
) -> None:
    """What depends on both services comes back when both overrides are over, not before."""
    before = container.get("a")
    first = container.override("b", lambda c: log.service("fake b", c))
    second = container.override("c", lambda: log.service("fake c"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert container.get("a") is not before
    assert container.get("a").parts[0].parts[0].name == "fake c"
    second.__exit__(None, None, None)
    assert container.get("a") is before


@pytest.mark.parametrize("lifetime", ["singleton", "scoped"])
def test_fault_does_not_keep_what_comes_back_from_use(
    container: ServiceContainer, log: Log, lifetime: Any
) -> None:
    """A service that was built is got again after an override, though another is faulty."""
    container.register("e", lambda: log.service("e"), lifetime=lifetime)
    with container.scope() as scope:
        before = scope.get("e")
        container.register("faulty", lambda absent: None)
        with container.override("e", "fake"):
            pass
        assert scope.get("e") is before


def test_override_that_ends_reaches_what_has_just_come_back(
    container: ServiceContainer,
) -> None:
    """Overrides that end one after the other leave nothing built on the first one's fake."""
    with container.override("c", "fake"):
        container.register("user", lambda c: [c])
        assert container.get("user") == ["fake"]
        with container.override("user", "other"):
            pass
    assert container.get("user") == [container.get("c")]


def test_what_one_override_hands_to_another_is_closed_in_its_order(
    container: ServiceContainer, log: Log
) -> None:
    """What comes to be set aside by another override is closed before what it is built on."""
    container.register("user", lambda b, d: log.service("user", b, d))
    container.get("user")
    first = container.override("d", log.service("fake d"))
    second = container.override("c", log.service("fake c"))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    container.close()
    second.__exit__(None, None, None)
    assert log == ["user", "d", "b", "c"]


def test_scope_that_ends_in_an_override_closes_all_that_was_built_in_it(
    container: ServiceContainer, log: Log
) -> None:
    """What an override set aside of a scope is closed with the scope, before what it is on."""
    container.register("session", lambda b: log.service("session", b), lifetime="scoped")
    with container.override("d", "fake"), container.scope() as scope:
        scope.get("session")
        with container.override("b", lambda: log.service("fake b")):
            scope.get("session")
            container.close()
    assert log == ["session", "session", "fake b", "b", "c"]


# Overrides, changes, and services that do not always need the same


def test_change_under_an_override_leaves_what_was_built_on_the_override(
    container: ServiceContainer, log: Log
) -> None:
    """A service that stands on the fake comes back, though the real one was replaced."""
    container.register("both", lambda b, d: log.service("both", b, d))
    with container.override("b", log.service("fake b")):
        before = container.get("both")
        with container.override("d", log.service("fake d")):
            container.register("b", lambda: log.service("new b"), replace=True)
        assert container.get("both") is before


def test_change_outdates_only_what_was_itself_built_on_it(
    container: ServiceContainer, log: Log
) -> None:
    """What is set aside comes back, though what is in its place now got a replaced service."""

    def user(c: Any) -> Service:
        return log.service("user", *([container.get("d")] if c.name == "fake" else []))

    container.register("user", user)
    before = container.get("user")
    with container.override("c", log.service("fake")):
        container.get("user")
        container.register("d", lambda: log.service("new d"), replace=True)
    assert container.get("user") is before


def test_service_that_did_not_need_the_fake_makes_room(
    container: ServiceContainer, log: Log
) -> None:
    """The old service comes back, and the one that was built meanwhile is closed with all on it."""
    needs = ["c"]
    container.register("user", lambda: log.service("user", *map(container.get, needs)))
    container.register("top", lambda user: log.service("top", user))
    before = container.get("top")
    with container.override("c", log.service("fake")):
        needs.clear()
        meanwhile = container.get("top")
        assert meanwhile.parts[0].parts == ()
    assert meanwhile.closed
    assert meanwhile.parts[0].closed
    assert container.get("top") is before


def test_of_two_that_could_come_back_the_older_does(container: ServiceContainer, log: Log) -> None:
    """Where overlapping overrides set aside two of a service, one comes back, the other closes."""
    needs = ["c", "d"]
    container.register("user", lambda: log.service("user", *map(container.get, needs)))
    before = container.get("user")
    first = container.override("c", log.service("fake c"))
    second = container.override("d", log.service("fake d"))
    first.__enter__()
    needs.remove("c")
    meanwhile = container.get("user")
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert container.get("user") is before
    assert meanwhile.closed


Program = list[tuple[str, int, list[str], list[str]]]

programs = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "end", "get"]),
        st.integers(0, 9),
        st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
        st.lists(st.sampled_from(NAMES), max_size=1),
    ),
    max_size=12,
)
graphs = st.tuples(*[st.tuples(*[st.sampled_from(["", "injected", "by hand"])] * 4)] * 5)


class World:
    """The services of a program, in one container or in a new one."""

    def __init__(self, graph: Any) -> None:
        self.log = Log()
        self.made: list[Service] = []
        self.container = ServiceContainer()
        self.recipes: dict[str, Callable[..., Service]] = {}
        for place, name in enumerate(NAMES):
            wanted = dict(zip(NAMES[:place], graph[place], strict=False))
            injected = [need for need, how in wanted.items() if how == "injected"]
            by_hand = [need for need, how in wanted.items() if how == "by hand"]
            self.recipes[name] = self.recipe(name, injected, by_hand)

    def recipe(self, name: str, injected: list[str], by_hand: list[str]) -> Callable[..., Service]:
        def made(*parts: Service) -> Service:
            got = [self.container.get(other) for other in by_hand]
            self.made.append(self.log.service(name, *parts, *got))
            return self.made[-1]

        scope: dict[str, Any] = {"made": made}
        needs = ", ".join(injected)
        exec(f"def make({needs}): return made({needs})", scope)
        make: Callable[..., Service] = scope["make"]
        return make

    def told(self, recipes: dict[str, Callable[..., Service]]) -> dict[str, Any]:
        """Return how each service is built in a new container with `recipes`."""
        used = self.container
        with ServiceContainer() as self.container:
            for name, recipe in recipes.items():
                self.container.register(name, recipe)
            told = {name: tell(self.container.get(name)) for name in recipes}
        self.container = used
        return told


def tell(service: Service) -> Any:
    assert not service.closed
    return (service.name, *map(tell, service.parts))


@given(graphs, programs)
def test_overrides_in_any_order_leave_no_trace(graph: Any, program: Program) -> None:
    """At each step, services are as in a new container; at the end, as before, and all closed."""
    world = World(graph)
    container = world.container
    for name, recipe in world.recipes.items():
        container.register(name, recipe)
    before = {name: container.get(name) for name in NAMES}
    in_force: list[tuple[str, Any, AbstractContextManager[None]]] = []
    for step, number, injected, by_hand in program:
        if step == "begin":
            name = NAMES[number % len(NAMES)]
            injected = [need for need in injected if need < name]
            by_hand = [need for need in by_hand if need < name]
            fake = world.recipe(f"{name} {number}", injected, by_hand)
            override = container.override(name, fake)
            override.__enter__()
            in_force.append((name, fake, override))
        elif step == "end" and in_force:
            in_force.pop(number % len(in_force))[2].__exit__(None, None, None)
        elif step == "get":
            fakes = {name: fake for name, fake, _ in in_force}
            told = world.told({**world.recipes, **fakes})
            assert {name: tell(container.get(name)) for name in NAMES} == told
    for *_, override in in_force:
        override.__exit__(None, None, None)
    assert {name: container.get(name) for name in NAMES} == before
    assert not any(service.closed for service in before.values())
    container.close()
    assert all(service.closed for service in world.made)
