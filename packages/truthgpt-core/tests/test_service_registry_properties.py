"""Properties of the graph of services that hold whatever the graph is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.service_registry import (
    Provider,
    ServiceContainer,
    ServiceCycleError,
    ServiceError,
)

NAMES = "abcdefgh"

Graph = dict[str, list[str]]


def factory(name: str, needs: list[str], log: list[tuple[str, str]]) -> Callable[..., Any]:
    """Return a generator function with the parameters `needs` that logs making and closing."""
    scope: dict[str, Any] = {"log": log}
    exec(
        f"def make({', '.join(needs)}):\n"
        f"    log.append(('made', {name!r}))\n"
        f"    yield ({name!r}, {', '.join(needs)})\n"
        f"    log.append(('closed', {name!r}))\n",
        scope,
    )
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


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("register"),
            st.sampled_from(NAMES[:5]),
            st.lists(st.sampled_from(NAMES[:5]), max_size=2, unique=True),
            st.sampled_from(["singleton", "transient"]),
        ),
        st.tuples(st.just("unregister"), st.sampled_from(NAMES[:5])),
        st.tuples(st.just("get"), st.sampled_from(NAMES[:5])),
    ),
    max_size=15,
)


def plain(name: str, needs: list[str], number: int) -> Callable[..., Any]:
    """Return a function that makes a tuple which tells how it was made."""
    needs = sorted(needs, reverse=True)  # parameters with a default come last
    parameters = ", ".join(f"{need}='default'" if need < "c" else need for need in needs)
    scope: dict[str, Any] = {}
    exec(f"def make({parameters}): return ({name!r}, {number}, {', '.join(needs)})", scope)
    make: Callable[..., Any] = scope["make"]
    return make


@given(steps)
def test_changed_container_equals_a_fresh_one(steps: list[tuple[Any, ...]]) -> None:
    """After any changes, also between uses, a container does what a new one would do."""
    changed = ServiceContainer()
    present: dict[str, tuple[Any, str]] = {}
    for number, (step, name, *rest) in enumerate(steps):
        if step == "register":
            needs, lifetime = rest
            replace = name in present
            present[name] = (plain(name, needs, number), lifetime)
            changed.register(name, present[name][0], lifetime=lifetime, replace=replace)
        elif step == "get":
            outcome(changed, name)
        elif present.pop(name, None):
            changed.registry.unregister(name)
    fresh = ServiceContainer()
    for name, (make, lifetime) in present.items():
        fresh.register(name, make, lifetime=lifetime)  # type: ignore[arg-type]
    assert changed.graph() == fresh.graph()
    # A fault refuses what is not built yet, so only a sound graph is compared in full.
    judged = [_judgement(container) for container in (changed, fresh)]
    assert judged[0] == judged[1]
    if judged[0] is None:
        for name in NAMES[:5]:
            assert outcome(changed, name) == outcome(fresh, name)


def _judgement(container: ServiceContainer) -> object:
    try:
        container.registry.validate()
    except ServiceError as error:
        return (type(error), str(error))
    return None


@given(acyclic(), st.sampled_from(NAMES), st.permutations(NAMES))
def test_override_leaves_no_trace(graph: Graph, name: str, asked: list[str]) -> None:
    """Whatever is got around and during an override, all instances are the same after it."""
    log: list[tuple[str, str]] = []
    container = registered(graph, log)
    built = asked[:4]
    before = {one: container.get(one) for one in built}
    with container.override(name, "fake"):
        for one in asked:
            container.get(one)
    assert all(container.get(one) is service for one, service in before.items())
    container.close()
    for one in NAMES:
        assert log.count(("made", one)) == log.count(("closed", one))


WAYS = st.sampled_from(["not", "injected", "by hand", "later"])


class Part:
    """A service that is closed while all that it was made of, or got later, is open."""

    def __init__(self, name: str, parts: list[Part], later: dict[str, Callable[[], Part]]) -> None:
        self.name, self.parts, self.later = name, parts, later
        self.got: list[Part] = []
        self.closed = False

    def open(self) -> bool:
        return not self.closed and all(part.open() for part in self.parts)

    def close(self) -> None:
        assert self.open(), f"{self.name} is closed after what it was made of"
        assert all(part.open() for part in self.got), f"{self.name} is closed after what it got"
        self.closed = True


@given(
    st.tuples(*[st.tuples(*[WAYS] * 6)] * 6),
    st.tuples(*[st.sampled_from(["singleton", "singleton", "transient"])] * 6),
    st.lists(st.tuples(st.sampled_from(NAMES[:6]), st.sampled_from(NAMES[:6])), max_size=12),
)
def test_everything_is_closed_before_what_it_uses(
    ways: Any, lifetimes: Any, program: list[tuple[str, str]]
) -> None:
    """However services got one another, each is closed while all of those are still open.

    Of two that need each other, one through a provider, only that one's holder has to wait.
    """
    names = NAMES[:6]
    container = ServiceContainer()
    needs: dict[str, dict[str, str]] = {}
    made: list[Part] = []

    def register(name: str, lifetime: Any) -> None:
        by_hand = [need for need, way in needs[name].items() if way == "by hand"]

        def make(given: dict[str, Any]) -> Part:
            parts = [given[need] for need, way in needs[name].items() if way == "injected"]
            later = {need: given[need] for need, way in needs[name].items() if way == "later"}
            part = Part(name, [*parts, *map(container.get, by_hand)], later)
            if lifetime == "singleton":
                made.append(part)
            return part

        parameters = ", ".join(
            need if way == "injected" else f"{need}: Provider"
            for need, way in needs[name].items()
            if way in ("injected", "later")
        )
        scope: dict[str, Any] = {"make": make, "Provider": Provider}
        exec(f"def factory({parameters}): return make(locals())", scope)
        container.register(name, scope["factory"], lifetime=lifetime)

    for place, name in enumerate(names):
        found = zip(names, ways[place], strict=True)
        # What is needed at once comes before, so that there is no cycle without a provider.
        needs[name] = {n: way for n, way in found if way == "later" or (n < name and way != "not")}
    for name, lifetime in zip(names, lifetimes, strict=True):
        register(name, lifetime)
    for name, later in program:
        part = container.get(name)
        if later in part.later and not _needs(needs, later, name):
            part.got.append(part.later[later]())
    container.close()
    assert all(part.closed for part in made)


def _needs(needs: dict[str, dict[str, str]], start: str, goal: str) -> bool:
    found, waiting = {start}, [start]
    while waiting:
        new = needs[waiting.pop()].keys() - found
        found |= new
        waiting += new
    return goal in found
