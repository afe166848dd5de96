"""Properties of the graph of services that hold whatever the graph is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.service_registry import ServiceContainer, ServiceCycleError, ServiceError

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
            present[name] = (plain(name, needs, number), lifetime)
            changed.register(name, present[name][0], lifetime=lifetime, replace=True)
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
