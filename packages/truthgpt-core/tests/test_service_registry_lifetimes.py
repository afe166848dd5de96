"""How long services live, what their errors say, and looking at them from outside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.service_registry import (
    LifetimeError,
    Provider,
    ServiceContainer,
    ServiceError,
    ServiceInfo,
)


class Engine:
    pass


class Car:
    def __init__(self, motor: Engine) -> None:
        self.motor = motor


@pytest.fixture
def container() -> Iterator[ServiceContainer]:
    with ServiceContainer() as container:
        yield container


# Lifetimes


def test_singleton_is_one(container: ServiceContainer) -> None:
    """A singleton is the same for everyone, in scopes too."""
    container.register("engine", Engine)
    with container.scope() as scope:
        assert scope.get("engine") is container.get("engine")


def test_transient_is_new_every_time(container: ServiceContainer) -> None:
    """Every `get` of a transient service makes one."""
    container.register("engine", Engine, singleton=False)
    assert container.get("engine") is not container.get("engine")


def test_scoped_is_one_in_each_scope(container: ServiceContainer) -> None:
    """A scoped service is shared in its scope and with no other scope."""
    container.register("session", Engine, lifetime="scoped")
    with container.scope() as one, container.scope() as other:
        assert one.get("session") is one.get("session")
        assert one.get("session") is not other.get("session")


@pytest.mark.parametrize("name", ["session", "query"])
def test_scoped_service_needs_a_scope(container: ServiceContainer, name: str) -> None:
    """Getting what is or needs a scoped service from the container is an error."""
    container.register("session", Engine, lifetime="scoped")
    container.register("query", lambda session: session, singleton=False)
    with pytest.raises(LifetimeError, match='"session" is scoped'):
        container.get(name)


# Errors of constructors


def test_constructor_error_passes_with_the_path(container: ServiceContainer) -> None:
    """A constructor's own error arrives as it is, with a note that names the path."""
    error = ValueError("boom")

    def fail() -> None:
        raise error

    container.register("c", fail)
    container.register("b", lambda c: c, singleton=False)
    container.register("a", lambda b: b)
    for _ in range(2):
        with pytest.raises(ValueError, match="boom") as caught:
            container.get("a")
        assert caught.value is error
        assert error.__context__ is None
    assert error.__notes__ == ["While building services: a -> b -> c"]


def test_failed_singleton_is_built_again(container: ServiceContainer) -> None:
    """A singleton whose constructor raised is tried again by the next `get`."""
    attempts = iter([True, False])

    def flaky() -> Engine:
        if next(attempts):
            raise OSError("not yet")
        return Engine()

    container.register("flaky", flaky)
    with pytest.raises(OSError, match="not yet"):
        container.get("flaky")
    assert isinstance(container.get("flaky"), Engine)


def test_service_being_built_cannot_be_changed(container: ServiceContainer) -> None:
    """A constructor that replaces what it is built on is refused, and nothing changes."""

    def rebuild(motor: Engine) -> None:
        container.register("motor", Car, replace=True)

    container.register("motor", Engine)
    container.register("car", rebuild)
    with pytest.raises(ServiceError, match='"car" is being built'):
        container.get("car")

    def probe(found_by_class: Engine) -> Engine:
        return found_by_class

    container.register("probe", probe)
    assert container.get("probe") is container.get("motor")


def test_service_being_built_cannot_be_overridden(container: ServiceContainer) -> None:
    """A constructor that overrides what it is built on is refused."""

    def rebuild(motor: Engine) -> None:
        with container.override("motor", 1):
            pass

    container.register("motor", Engine)
    container.register("car", rebuild)
    with pytest.raises(ServiceError, match='"car" is being built'):
        container.get("car")


# Looking at it


def test_graph_is_a_mermaid_flowchart(container: ServiceContainer) -> None:
    """`graph` shows lifetimes, arrows and providers, and escapes names."""

    def job(session: Provider[Any], engine: Engine) -> None:
        pass

    container.register("job", job, singleton=False)
    container.register("session", lambda: 1, lifetime="scoped")
    container.register('the "engine" #1\n', Engine)
    assert container.graph() == (
        "flowchart TD\n"
        '    n0(["job"])\n'
        '    n1("session")\n'
        '    n2["the#32;#34;engine#34;#32;#35;1#10;"]\n'
        "    n0 -.-> n1\n"
        "    n0 --> n2\n"
    )


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("model_service", "model_service"),
        ("kebab-case-2", "kebab-case-2"),
        ("end", "end"),
        ('"]', "#34;#93;"),
        ("größe 日本", "gr#246;#223;e#32;#26085;#26412;"),
        ("a;b\n%%c", "a#59;b#10;#37;#37;c"),
        ("direction TB", "direction#32;TB"),
        ("style a:b#c", "style#32;a#58;b#35;c"),
        ("fa:fa-car", "fa#58;fa-car"),
        ("__init__", "#95;#95;init#95;#95;"),
        ("- 1. *x*", "#45;#32;1#46;#32;#42;x#42;"),
        ("www.example.com", "www#46;example#46;com"),
        ("`code`", "#96;code#96;"),
        ("<b>", "#60;b#62;"),
        ("a--b_", "a#45;#45;b#95;"),
        (" ", "#32;"),
        ("\ud800", "#55296;"),
    ],
)
def test_names_are_no_mermaid(container: ServiceContainer, name: str, label: str) -> None:
    """No name is taken for a command, an icon or Markdown, and the text is ASCII."""
    container.register(name, Engine)
    assert container.graph() == f'flowchart TD\n    n0["{label}"]\n'


@given(st.text(min_size=1))
def test_labels_stand_for_names(name: str) -> None:
    """Reading the entities of a label gives the name, whatever it is."""
    container = ServiceContainer()
    container.register(name, Engine)
    lines = container.graph().splitlines()
    match = re.fullmatch(r' {4}n0\["((?:[A-Za-z0-9_-]|#[0-9]+;)+)"\]', lines[1])
    assert len(lines) == 2
    assert match
    assert re.sub("#([0-9]+);", lambda code: chr(int(code[1])), match[1]) == name


def test_services_are_described_without_making_them(container: ServiceContainer) -> None:
    """`describe` tells lifetimes and needs of a graph that is not valid, too."""

    def job(session: Provider[Any], engine: Engine, driver: Any, *, speed: int = 3) -> None:
        raise AssertionError("made")

    container.register("job", job, singleton=False)
    container.register("session", lambda: 1, lifetime="scoped")
    container.register("big", Engine)
    container.register("small", Engine)
    assert container.registry.describe() == (
        ServiceInfo("big", "singleton", needs=(), later=(), missing=()),
        ServiceInfo("job", "transient", ("big", "small"), ("session",), ("driver",)),
        ServiceInfo("session", "scoped", (), (), ()),
        ServiceInfo("small", "singleton", (), (), ()),
    )


def test_health_builds_nothing(container: ServiceContainer) -> None:
    """Asking for health does not build, and says what is not built."""
    container.register("engine", Engine)
    container.register("session", Engine, lifetime="scoped")
    health = container.health()
    assert [(one.built, one.ok, one.lifetime) for one in health.values()] == [
        (False, True, "singleton"),
        (False, True, "scoped"),
    ]


def _raises() -> None:
    raise OSError("disk full")


def test_service_whose_health_cannot_even_be_asked_is_not_well(
    container: ServiceContainer,
) -> None:
    """An attribute `health` that raises is the answer of that service, not an error of all."""

    class Broken:
        @property
        def health(self) -> None:
            raise OSError("no device")

    container.register("broken", Broken)
    container.get("broken")
    assert container.health()["broken"].message == "OSError: no device"


@pytest.mark.parametrize(
    ("answer", "ok", "message"),
    [
        (lambda: None, True, ""),
        (lambda: True, True, ""),
        (lambda: False, False, ""),
        (lambda: "3 models", True, "3 models"),
        (_raises, False, "OSError: disk full"),
    ],
)
def test_health_is_what_the_service_says(
    container: ServiceContainer, answer: Any, ok: bool, message: str
) -> None:
    """The `health()` of a service that is built tells how it is, raising for not well."""
    service = Engine()
    service.health = answer  # type: ignore[attr-defined]
    container.register("engine", lambda: service)
    container.get("engine")
    health = container.health()["engine"]
    assert (health.built, health.ok, health.message) == (True, ok, message)
