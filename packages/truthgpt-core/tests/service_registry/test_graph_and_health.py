"""Looking at services: the graph, the description, and their health."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.service_registry import ServiceContainer, ServiceInfo


class Engine:
    pass


def test_graph_is_a_mermaid_flowchart(container: ServiceContainer) -> None:
    """`graph` shows lifetimes and arrows, and escapes names."""

    def job(session: Any, engine: Engine) -> None:
        pass

    container.register("job", job, singleton=False)
    container.register("session", lambda: 1)
    container.register('the "engine" #1\n', Engine)
    assert container.graph() == (
        "flowchart TD\n"
        '    n0(["job"])\n'
        '    n1["session"]\n'
        '    n2["the#32;#34;engine#34;#32;#35;1#10;"]\n'
        "    n0 --> n1\n"
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


def test_services_are_described_without_building_them(container: ServiceContainer) -> None:
    """`describe` returns lifetimes and needs of a graph that is not valid, too."""

    def job(session: Any, engine: Engine, driver: Any, *, speed: int = 3) -> None:
        raise AssertionError("built")

    container.register("job", job, singleton=False)
    container.register("session", lambda: 1)
    container.register("big", Engine)
    container.register("small", Engine)
    assert container.registry.describe() == (
        ServiceInfo("big", "singleton", needs=(), missing=()),
        ServiceInfo("job", "transient", ("big", "session", "small"), ("driver",)),
        ServiceInfo("session", "singleton", (), ()),
        ServiceInfo("small", "singleton", (), ()),
    )


def test_health_builds_nothing(container: ServiceContainer) -> None:
    """`health` says of what is not built that it is not, and does not build it."""
    container.register("engine", Engine)
    container.register("session", Engine, singleton=False)
    health = container.health()
    assert [(one.built, one.ok, one.lifetime) for one in health.values()] == [
        (False, True, "singleton"),
        (False, True, "transient"),
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
