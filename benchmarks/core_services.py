"""Getting services: what a container costs on top of the dict and the calls it stands for.

The libraries are used as their documentation has it, in the way that is fastest for one
thread: dishka without its lock, though the other containers are safe to share between
threads; wireup's transient services from one scope, because it makes them in scopes only.
svcs has no transient services: a container of it keeps whatever it has made.
"""

from __future__ import annotations

from core_timing import TURNS, Contest, Way, calling, if_installed

from truthgpt_core.service_registry import ServiceContainer


class Inner:
    """What the middle one needs."""


class Middle:
    """What the outer one needs."""

    def __init__(self, inner: Inner) -> None:
        self.inner = inner


class Outer:
    """A service three deep."""

    def __init__(self, middle: Middle) -> None:
        self.middle = middle


GRAPH = (Inner, Middle, Outer)


class Names:
    """The reference for singletons: a method that only looks a name up in a dict."""

    def __init__(self, services: dict[str, object]) -> None:
        self._services = services

    def get(self, name: str) -> object:
        """Return the service `name`."""
        return self._services[name]


def direct() -> Outer:
    """Make the outer service with direct calls, the reference for transient services."""
    return Outer(Middle(Inner()))


def singleton() -> Contest:
    """Get a singleton that has been built."""
    container = ServiceContainer()
    container.register("inner", Inner)
    container.get("inner")
    return Contest(
        "singleton `get`",
        (
            calling("a dict", "at.get('inner')", {"at": Names({"inner": Inner()})}),
            calling("**truthgpt**", "at.get('inner')", {"at": container}, reach=2.5),
            *if_installed(
                {
                    "wireup": lambda: _wireup("singleton", Inner),
                    "svcs": _svcs_singleton,
                    "dishka": lambda: _dishka(cache=True, kind=Inner),
                }
            ),
        ),
        TURNS,
    )


def transient() -> Contest:
    """Make a service that needs one that needs one, each made anew."""
    container = ServiceContainer()
    for kind in GRAPH:
        container.register(kind.__name__.lower(), kind, singleton=False)
    assert container.get("outer") is not container.get("outer")
    return Contest(
        "3-deep transient",
        (
            calling("direct calls", "direct()", {"direct": direct}),
            calling("**truthgpt**", "at.get('outer')", {"at": container}, reach=3),
            *if_installed(
                {
                    "wireup": lambda: _wireup("transient", Outer),
                    "dishka": lambda: _dishka(cache=False, kind=Outer),
                }
            ),
        ),
        TURNS,
    )


def _wireup(lifetime: str, kind: type) -> Way:
    import wireup

    marked = [wireup.injectable(each, lifetime=lifetime) for each in GRAPH]
    container = wireup.create_sync_container(injectables=marked)
    at = container if lifetime == "singleton" else container.enter_scope()
    at.get(kind)
    return calling("wireup", "at.get(kind)", {"at": at, "kind": kind})


def _svcs_singleton() -> Way:
    import svcs

    registry = svcs.Registry()
    registry.register_factory(Inner, Inner)
    container = svcs.Container(registry)
    container.get(Inner)
    return calling("svcs", "at.get(kind)", {"at": container, "kind": Inner})


def _dishka(*, cache: bool, kind: type) -> Way:
    import dishka

    provider = dishka.Provider(scope=dishka.Scope.APP)
    for each in GRAPH:
        provider.provide(each, cache=cache)
    container = dishka.make_container(provider, lock_factory=None)
    container.get(kind)
    return calling("dishka", "at.get(kind)", {"at": container, "kind": kind})
