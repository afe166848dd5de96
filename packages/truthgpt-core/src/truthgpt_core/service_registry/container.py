"""Building services: `ServiceContainer`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, Self

from truthgpt_core.errors import did_you_mean
from truthgpt_core.service_registry.errors import (
    LifetimeError,
    ServiceClosedError,
    ServiceCycleError,
    ServiceError,
    UnknownServiceError,
)
from truthgpt_core.service_registry.graph import Dependency
from truthgpt_core.service_registry.health import ServiceHealth, ask
from truthgpt_core.service_registry.keeping import (
    Building,
    CloseErrors,
    Keeper,
    Kept,
    ServiceScope,
    close_each,
    close_method,
    raise_errors,
)
from truthgpt_core.service_registry.override import Groups, Override, Overrides, holders
from truthgpt_core.service_registry.registration import ServiceRegistry
from truthgpt_core.service_registry.resolver import (
    Call,
    Opened,
    Resolver,
    constant,
    finish,
    opening,
    written_out,
)
from truthgpt_core.service_registry.spec import Lifetime, ServiceSpec, read_spec

_MISSING: Any = object()

_WRITTEN_OUT = 2
"""How many levels of transient services are written out into one that needs them."""


class ServiceContainer(Keeper):
    """Builds the services of a registry, keeps them and closes them.

    A container owns a `ServiceRegistry` rather than being one. The registry says what
    can be built and from what, the container holds what was built: a plugin is handed
    the registry, and so cannot build anything while it is being activated.

    Singletons are built under one lock. That makes them single and rules out deadlock
    between threads that enter the graph from different ends; in return, a constructor
    must not wait for another thread that needs a service which is not built yet.

    The container closes what it built, dependents before what they depend on: the code
    after the `yield` of a generator factory, else the `close()` of the service if it has
    one. It enters no context managers: make a service of one by `with ...: yield it` in
    a generator factory. Instances that it was given, and transient services, belong to
    whoever gave or got them, and are not closed.

    Args:
        registry: the registrations to build from; a new empty registry if left out.

    Raises:
        ServiceError: if `registry` belongs to another container.
    """

    def __init__(self, registry: ServiceRegistry | None = None) -> None:
        super().__init__(self, {}, [])
        self._registry = ServiceRegistry() if registry is None else registry
        self._graph = self._registry._graph
        self._lock = self._registry._lock
        self._finished = itertools.count()
        self._scopes: list[ServiceScope] = []
        self._overrides = Overrides(self._groups)
        self._registry._attach(self._on_change)

    @property
    def registry(self) -> ServiceRegistry:
        """The registrations that this builds from."""
        return self._registry

    def register(
        self,
        name: str,
        service: Any,
        singleton: bool = True,
        *,
        lifetime: Lifetime | None = None,
        replace: bool = False,
    ) -> None:
        """Register a service; the same as `ServiceRegistry.register` on `registry`."""
        self._registry.register(name, service, singleton, lifetime=lifetime, replace=replace)

    @contextmanager
    def scope(self) -> Iterator[ServiceScope]:
        """Open a scope: what is scoped is built once in it, and closed at the end of the block.

        Raises:
            ServiceClosedError: if the container was closed.
            ServiceCloseError: at the end of the block, if closing something failed.
        """
        with self._lock:
            self._refuse_if_closed(self)
            scope = ServiceScope(self, self._entries, self._building)
            self._scopes.append(scope)
        try:
            yield scope
        finally:
            errors: CloseErrors = []
            scope._close_all(errors)
            with self._lock:
                if scope in self._scopes:
                    self._scopes.remove(scope)
            raise_errors(errors)

    @contextmanager
    def override(self, name: str, service: Any) -> Iterator[None]:
        """Let `name` stand for something else in a block, as tests do.

        What was built on the service is set aside and built anew on demand; after the
        block the old instances are back, untouched, and those built in the block are
        closed. The override keeps the lifetime of what it overrides, and is found by
        the same annotations. Overrides nest, and those that overlap end in any order.

        Built on a service is what had it injected, and what got it with `get`, or by
        calling a provider, while it was being constructed. A service that gets another
        one later and keeps it is not known to be built on it: let such a one call
        `get` or its provider whenever it needs the other.

        Args:
            name: a registered service.
            service: an instance, or a class or function to make one, as for `register`.

        Raises:
            UnknownServiceError: if nothing is registered under `name`.
            InvalidServiceError: if `service` cannot be a service.
            ServiceClosedError: if the container was closed.
            ServiceError: if a service that depends on `name` is being built by this thread.
            ServiceCloseError: at the end of the block, if closing something failed.
        """
        with self._lock:
            self._refuse_if_closed(self)
            self._refuse_if_unknown(name)
            before = self._graph.spec(name)
            spec = read_spec(name, service, before.lifetime, stands_for=before)
            self._graph.wire()
            self._refuse_if_building(self._graph.dependents({name}), by_hand=True)
            override = Override(name, spec, self._graph.copy(), next(self._finished))
            override.set_aside = self._take_all(self._registry._override(name, spec))
            self._overrides.begin(override)
        try:
            yield
        finally:
            errors: CloseErrors = []
            self._end(override, errors)
            raise_errors(errors)

    def health(self) -> Mapping[str, ServiceHealth]:
        """Return how every service is, by name; nothing is built to find out.

        A service that is built may have a method `health()`. It says that it is not well
        by raising or by returning False; anything else it returns, other than None and
        True, is its message.
        """
        with self._lock:
            lifetimes = {name: self._graph.spec(name).lifetime for name in self._graph.names()}
            services = dict(self._services)
        return MappingProxyType(
            {
                name: ask(lifetime, services[name])
                if name in services
                else ServiceHealth(lifetime, built=False)
                for name, lifetime in lifetimes.items()
            }
        )

    def graph(self) -> str:
        """Return who needs whom as a Mermaid flowchart; the same as `ServiceRegistry.graph`."""
        return self._registry.graph()

    def close(self) -> None:
        """Close the open scopes and everything that was built; a second call does nothing.

        Raises:
            ServiceCloseError: after everything was closed, if closing something failed.
        """
        with self._lock:
            scopes = self._scopes[::-1]
            self._closed = self._closing = True
            self._entries = {}
        errors: CloseErrors = []
        for scope in scopes:
            scope._close_all(errors)
        self._close_all(errors)
        raise_errors(errors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _refuse_if_closed(self, keeper: Keeper) -> None:
        if keeper._closed or self._closed:
            what = "container" if self._closed else "scope"
            raise ServiceClosedError(f"The {what} of services was closed")

    def _refuse_if_unknown(self, name: str) -> None:
        if not isinstance(name, str):
            raise UnknownServiceError(f"There is no service {name!r}", hint="Names are strings.")
        if name not in self._graph:
            hint = did_you_mean(name, self._graph.names())
            raise UnknownServiceError(f'There is no service "{name}"', hint=hint)

    def _refuse_if_building(self, affected: set[str], *, by_hand: bool) -> None:
        # The lock is held, so whatever is being built is being built by this thread.
        caught = [
            one.name
            for one in self._building
            if one.name in affected or (by_hand and not affected.isdisjoint(one.by_hand))
        ]
        if caught:
            raise ServiceError(
                f'Service "{caught[-1]}" is being built, and cannot be changed, '
                "nor can what it depends on, before it is"
            )

    def _resolve(self, name: str, keeper: Keeper) -> Any:
        """Return a service that has no entry."""
        with self._lock:
            for at in (keeper, self):  # while services are being closed, the others are there
                if keeper._closing and isinstance(name, str) and name in at._services:
                    return at._services[name]
            self._refuse_if_closed(keeper)
            self._refuse_if_unknown(name)
            if name not in self._services:
                # It may be back from an override; a fault elsewhere does not take it away.
                if name in keeper._services:
                    return keeper._services[name]
                self._graph.validate()
            resolve = self._compiled(name)
        return resolve(keeper)

    def _compiled(self, name: str) -> Resolver:
        if name in self._services:
            # It may have been set aside by an override, and be back.
            self._entries[name] = self._services[name], None
            return constant(self._services[name])
        resolver = self._resolver(name)
        if resolver is None:
            resolver = self._compile(self._graph.spec(name))
            self._entries[name] = None, resolver
        return resolver

    def _resolver(self, name: str) -> Resolver | None:
        return self._entries.get(name, (None, None))[1]

    def _compile(self, spec: ServiceSpec) -> Resolver:
        if spec.lifetime == "transient" and spec.making == "call":
            return written_out(self._call(spec, _WRITTEN_OUT))
        make = constant(spec.source) if spec.making == "instance" else self._call(spec, 0)
        return make if spec.lifetime == "transient" else self._keeping(spec, make)

    def _call(self, spec: ServiceSpec, depth: int) -> Call:
        """Return how `spec` is made, with the calls of transient services down to `depth`."""
        factory = spec.source
        if spec.making == "generator":
            factory = opening(spec.name, factory)
        positional: list[Resolver] = []
        keyword: dict[str, Resolver] = {}
        dependencies = iter(self._graph.dependencies(spec.name))
        dependency = next(dependencies, None)
        for parameter in spec.parameters:
            if dependency is None or dependency.parameter != parameter.name:
                break  # it keeps its default, so what follows is passed by keyword
            if dependency.keyword_only:
                break
            positional.append(self._argument(dependency, depth))
            dependency = next(dependencies, None)
        while dependency is not None:
            keyword[dependency.parameter] = self._argument(dependency, depth)
            dependency = next(dependencies, None)
        return Call(spec.name, factory, positional, keyword)

    def _argument(self, dependency: Dependency, depth: int) -> Resolver:
        name = dependency.name
        if dependency.lazy:
            return lambda at: partial(at.get, name)
        spec = self._graph.spec(name)
        if depth and spec.lifetime == "transient" and spec.making == "call":
            return self._call(spec, depth - 1)
        return self._compiled(name)

    def _keeping(self, spec: ServiceSpec, make: Resolver) -> Resolver:
        name = spec.name
        if spec.lifetime == "singleton":
            services = self._services

            def resolve(at: Any) -> Any:
                service = services.get(name, _MISSING)
                return self._build(self, spec, make, resolve) if service is _MISSING else service

        else:

            def resolve(at: Any) -> Any:
                service = at._services.get(name, _MISSING)
                return self._build(at, spec, make, resolve) if service is _MISSING else service

        return resolve

    def _build(self, keeper: Keeper, spec: ServiceSpec, make: Resolver, resolve: Resolver) -> Any:
        name = spec.name
        with self._lock:
            if name in keeper._services:
                return keeper._services[name]
            self._refuse_if_closed(keeper)
            if self._resolver(name) is not resolve:  # replaced while we waited for the lock
                return keeper.get(name)
            if keeper is self and spec.lifetime == "scoped":
                raise LifetimeError(
                    f'Service "{name}" is scoped, and was not asked for in a scope',
                    hint="Get it, and what needs it, from `with container.scope() as scope:`.",
                )
            for place, one in enumerate(self._building):
                if one.keeper is keeper and one.name == name:
                    path = [each.name for each in self._building[place:]]
                    raise ServiceCycleError([*path, name], while_building=True)
            building = Building(keeper, name)
            self._building.append(building)
            try:
                made = make(keeper)
            finally:
                self._building.pop()
            close: Callable[[], object] | None = None
            if isinstance(made, Opened) and spec.making == "generator":
                close = partial(finish, name, made.generator)
                made = made.service
            elif spec.making == "call" and not self._keeps(keeper, made):
                close = close_method(made)
            by_hand = frozenset(building.by_hand)
            reach = self._graph.reach(name, by_hand)
            keeper._keep(name, Kept(made, next(self._finished), reach, close, by_hand))
            if keeper is self:
                self._entries[name] = made, None
            return made

    def _keeps(self, keeper: Keeper, service: Any) -> bool:
        """Whether a factory returned what is a service already, under another name."""
        return any(service is one for at in (self, keeper) for one in at._services.values())

    def _groups(self) -> list[dict[str, Kept]]:
        return [keeper._kept for keeper in (*self._scopes, self)]

    def _take_all(self, names: set[str]) -> Groups:
        """Forget all that is built on `names`, and how it is; return it."""
        known = [item for kept in self._groups() for item in kept.items()]
        names = holders(self._graph, names, known)
        for name in names:
            self._entries.pop(name, None)
        return [(keeper, keeper._take(names)) for keeper in (*self._scopes, self)]

    def _on_change(
        self, changed: str, spec: ServiceSpec | None, affected: set[str], undoing: bool
    ) -> Callable[[], None]:
        """Forget `affected`; return what closes the services that this outdates."""
        # What is taken back is taken back, also from a constructor that got it by hand.
        self._refuse_if_building(affected, by_hand=not undoing)
        outdated = self._overrides.change(changed, spec)
        outdated += [kept for _, kept in self._take_all(affected)]

        def finish() -> None:
            errors: CloseErrors = []
            close_each(outdated, errors)
            raise_errors(errors)

        return finish

    def _end(self, override: Override, errors: CloseErrors) -> None:
        with self._lock:
            outdated = self._overrides.end(override)
            affected = self._registry._override(override.name, self._overrides.spec(override.name))
            for keeper, kept in override.set_aside:
                affected |= kept.keys() & keeper._kept.keys()
            outdated += [kept for _, kept in self._take_all(affected)]
            for keeper, kept in override.set_aside:
                for name, one in kept.items():
                    keeper._keep(name, one)
            # What is built is wired, or a change would not reach it.
            self._graph.wire()
        close_each(outdated, errors)
