"""Properties of the graph of services that hold whatever the graph is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.service_registry import (
    ServiceContainer,
    ServiceCycleError,
    ServiceError,
)
from truthgpt_core.transaction import Transaction

NAMES = "abcdefgh"

Graph = dict[str, list[str]]


class Part:
    """A service that logs that it is made and closed."""

    def __init__(self, name: str, log: list[tuple[str, str]]) -> None:
        self.name, self.log = name, log
        log.append(("made", name))

    def close(self) -> None:
        self.log.append(("closed", self.name))


def factory(name: str, needs: list[str], log: list[tuple[str, str]]) -> Callable[..., Any]:
    """Return a function with the parameters `needs` that makes a `Part`."""
    scope: dict[str, Any] = {"make_part": lambda: Part(name, log)}
    exec(f"def make({', '.join(needs)}): return make_part()", scope)
    make: Callable[..., Any] = scope["make"]
    return make


@st.composite
def acyclic(draw: st.DrawFn) -> Graph:
    """Draw a graph in which every name needs only names that come before it in some order."""
    order = draw(st.permutations(NAMES))
    return {
        name: draw(st.lists(st.sampled_from(order[:place]), unique=True)) if place else []
        for place, name in enumerate(order)
    }


@st.composite
def cyclic(draw: st.DrawFn) -> Graph:
    """Draw an acyclic graph with one circle closed in it."""
    graph = draw(acyclic())
    circle = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    for name, needed in zip(circle, [*circle[1:], circle[0]], strict=True):
        if needed not in graph[name]:
            graph[name].append(needed)
    return graph


def registered(graph: Graph, log: list[tuple[str, str]]) -> ServiceContainer:
    container = ServiceContainer()
    for name in sorted(graph):
        container.register(name, factory(name, graph[name], log))
    return container


@given(acyclic(), st.permutations(NAMES))
def test_dependencies_are_built_first_and_closed_last(graph: Graph, asked: list[str]) -> None:
    """In whatever order services are got, all is built on what it needs, and closed before it."""
    log: list[tuple[str, str]] = []
    with registered(graph, log) as container:
        for name in asked:
            container.get(name)
    assert sorted(log) == sorted((done, name) for done in ("made", "closed") for name in NAMES)
    for name, needs in graph.items():
        for needed in needs:
            assert log.index(("made", needed)) < log.index(("made", name))
            assert log.index(("closed", name)) < log.index(("closed", needed))


@given(cyclic(), st.sampled_from(NAMES))
def test_cycle_is_refused_with_its_path(graph: Graph, asked: str) -> None:
    """A graph with a cycle is refused, before anything is built, with a cycle that it has."""
    log: list[tuple[str, str]] = []
    container = registered(graph, log)
    with pytest.raises(ServiceCycleError) as caught:
        container.get(asked)
    path = caught.value.path
    assert path[0] == path[-1]
    assert len(path) == len(set(path)) + 1
    for name, needed in itertools.pairwise(path):
        assert needed in graph[name]
    assert log == []


def outcome(container: ServiceContainer, name: str) -> object:
    try:
        return container.get(name)
    except ServiceError as error:
        return (type(error), str(error))


def plain(name: str, needs: list[str], number: int) -> Callable[..., Any]:
    """Return a function that makes a tuple which shows how it was made."""
    needs = sorted(needs, reverse=True)  # parameters with a default come last
    parameters = ", ".join(f"{need}='default'" if need < "c" else need for need in needs)
    scope: dict[str, Any] = {}
    exec(f"def make({parameters}): return ({name!r}, {number}, {', '.join(needs)})", scope)
    make: Callable[..., Any] = scope["make"]
    return make


names = st.sampled_from(NAMES[:5])
steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("register"), names, st.lists(names, max_size=2, unique=True), st.booleans()
        ),
        st.tuples(st.just("undo"), st.integers(0, 9)),
        st.tuples(st.just("get"), names),
    ),
    max_size=15,
)


@given(steps)
def test_changed_container_equals_a_fresh_one(steps: list[tuple[Any, ...]]) -> None:
    """After any changes, also between uses, a container does what a new one would do."""
    changed = ServiceContainer()
    registered: list[tuple[str, Callable[..., Any], bool, Transaction]] = []
    for number, (step, chosen, *rest) in enumerate(steps):
        if step == "get":
            outcome(changed, chosen)
        elif step == "register":
            needs, singleton = rest
            make = plain(chosen, needs, number)
            with Transaction() as transaction:
                changed.register(chosen, make, singleton, replace=chosen in changed)
            registered.append((chosen, make, singleton, transaction))
        elif registered:
            registered.pop(chosen % len(registered))[-1].rollback()
    fresh = ServiceContainer()
    for name, make, singleton, _ in registered:
        fresh.register(name, make, singleton, replace=name in fresh)
    assert changed.graph() == fresh.graph()
    # A fault refuses what is not built yet, so only a sound graph is compared in full.
    judged = [judgment(container) for container in (changed, fresh)]
    assert judged[0] == judged[1]
    if judged[0] is None:
        for name in NAMES[:5]:
            assert outcome(changed, name) == outcome(fresh, name)


def judgment(container: ServiceContainer) -> object:
    try:
        container.registry.validate()
    except ServiceError as error:
        return (type(error), str(error))
    return None


class User:
    """A service that checks, when it is closed, that all it was made of is open."""

    def __init__(self, parts: list[User]) -> None:
        self.parts = parts
        self.closed = False

    def open(self) -> bool:
        return not self.closed and all(part.open() for part in self.parts)

    def close(self) -> None:
        assert self.open()
        self.closed = True


@given(
    acyclic(),
    st.sets(st.sampled_from(NAMES)),
    st.sets(st.sampled_from(NAMES)),
    st.lists(st.sampled_from(NAMES), max_size=12),
)
def test_everything_is_closed_before_what_it_uses(
    graph: Graph, transient: set[str], by_hand: set[str], asked: list[str]
) -> None:
    """Each service is closed while what it was given, or got by itself, is still open."""
    container = ServiceContainer()
    made: list[User] = []

    def register(name: str) -> None:
        def make(*injected: User) -> User:
            got = [container.get(need) for need in graph[name] if need in by_hand]
            user = User([*injected, *got])
            if name not in transient:
                made.append(user)
            return user

        injected = [need for need in graph[name] if need not in by_hand]
        scope: dict[str, Any] = {"make": make}
        exec(f"def factory({', '.join(injected)}): return make({', '.join(injected)})", scope)
        container.register(name, scope["factory"], name not in transient)

    for name in NAMES:
        register(name)
    for name in asked:
        container.get(name)
    container.close()
    assert all(user.closed for user in made)
