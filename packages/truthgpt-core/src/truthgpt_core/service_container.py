"""Building services: `ServiceContainer`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, Self

from truthgpt_core.errors import did_you_mean
from truthgpt_core.service_errors import (
    LifetimeError,
    ServiceClosedError,
    ServiceCycleError,
    ServiceError,
    UnknownServiceError,
)
from truthgpt_core.service_graph import Dependency
from truthgpt_core.service_health import ServiceHealth, ask
from truthgpt_core.service_keeping import (
    CloseErrors,
    Keeper,
    Kept,
    ServiceScope,
    close_each,
    close_method,
    raise_errors,
)
from truthgpt_core.service_registration import ServiceRegistry
from truthgpt_core.service_resolver import Opened, Resolver, compile_call, constant, finish, opening
from truthgpt_core.service_spec import Lifetime, ServiceSpec, read_spec

_MISSING: Any = object()


@dataclass(eq=False)
class _Override:
    name: str
    beneath: ServiceSpec | None  # the override of the same name that this one covers
    dependencies: tuple[Dependency, ...]
    requirements: frozenset[str]
    set_aside: list[tuple[Keeper, dict[str, Kept]]] = field(default_factory=list)
    ended: bool = False


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
        super().__init__(self, {})
        self._registry = ServiceRegistry() if registry is None else registry
        self._graph = self._registry._graph
        self._lock = self._registry._lock
        self._finished = itertools.count()
        self._building: list[tuple[Keeper, str]] = []
        self._scopes: list[ServiceScope] = []
        self._overrides: list[_Override] = []
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
            scope = ServiceScope(self, self._resolvers)
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
        the same annotations. Overrides nest; one that ends while a later one has not
        stays in force until that one ends too.

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
            requirements = frozenset(self._graph.requirements(name))
            self._refuse_if_building(self._graph.dependents({name}))
            override = _Override(
                name,
                self._registry._overriding.get(name),
                self._graph.dependencies(name),
                requirements,
            )
            affected = self._registry._override(name, spec)
            override.set_aside = self._take_all(affected)
            self._overrides.append(override)
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
            self._resolvers = {}
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
        if name not in self._graph:
            known = self._graph.names()
            hint = did_you_mean(name, known) if isinstance(name, str) else "Names are strings."
            raise UnknownServiceError(f"There is no service {name!r}", hint=hint)

    def _refuse_if_building(self, affected: set[str]) -> None:
        # The lock is held, so whatever is being built is being built by this thread.
        if caught := [name for _, name in self._building if name in affected]:
            raise ServiceError(
                f'Service "{caught[-1]}" is being built, and cannot be changed, '
                "nor can what it depends on, before it is"
            )

    def _resolver(self, name: str, keeper: Keeper) -> Resolver:
        with self._lock:
            for at in (keeper, self):  # while services are being closed, the others are there
                if keeper._closing and name in at._services:
                    return constant(at._services[name])
            self._refuse_if_closed(keeper)
            self._refuse_if_unknown(name)
            self._graph.validate()
            return self._compiled(name)

    def _compiled(self, name: str) -> Resolver:
        if (resolver := self._resolvers.get(name)) is None:
            if name in self._services:  # it was set aside by an override, and is back
                resolver = constant(self._services[name])
            else:
                resolver = self._compile(self._graph.spec(name))
            self._resolvers[name] = resolver
        return resolver

    def _compile(self, spec: ServiceSpec) -> Resolver:
        if spec.making == "instance":
            make = constant(spec.source)
        else:
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
                positional.append(self._argument(dependency))
                dependency = next(dependencies, None)
            while dependency is not None:
                keyword[dependency.parameter] = self._argument(dependency)
                dependency = next(dependencies, None)
            make = compile_call(spec.name, factory, positional, keyword)
        return make if spec.lifetime == "transient" else self._keeping(spec, make)

    def _argument(self, dependency: Dependency) -> Resolver:
        name = dependency.name
        if dependency.lazy:
            return lambda at: partial(at.get, name)
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
            if self._resolvers.get(name) is not resolve:  # replaced while we waited for the lock
                return keeper.get(name)
            if keeper is self and spec.lifetime == "scoped":
                raise LifetimeError(
                    f'Service "{name}" is scoped, and was not asked for in a scope',
                    hint="Get it, and what needs it, from `with container.scope() as scope:`.",
                )
            if (keeper, name) in self._building:
                start = self._building.index((keeper, name))
                path = [one for _, one in self._building[start:]]
                raise ServiceCycleError([*path, name], while_building=True)
            self._building.append((keeper, name))
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
            reach = self._graph.reach(name)
            keeper._keep(name, Kept(made, next(self._finished), reach, close))
            if keeper is self:
                self._resolvers[name] = constant(made)
            return made

    def _keeps(self, keeper: Keeper, service: Any) -> bool:
        """Whether a factory returned what is a service already, under another name."""
        return any(service is one for at in (self, keeper) for one in at._services.values())

    def _take_all(self, affected: set[str]) -> list[tuple[Keeper, dict[str, Kept]]]:
        """Drop what was compiled from `affected`, and stop keeping what was built on it."""
        for name in affected:
            self._resolvers.pop(name, None)
        return [(keeper, keeper._take(affected)) for keeper in [*self._scopes[::-1], self]]

    def _on_change(self, changed: str, affected: set[str]) -> Callable[[], None]:
        """Forget `affected`; return what closes the services that this outdates."""
        self._refuse_if_building(affected)
        outdated = [kept for _, kept in self._take_all(affected)]
        for override in self._overrides:
            # The graph shows what overrides a service, not what the service itself needs.
            everything = override.name == changed or not affected.isdisjoint(override.requirements)
            for _, kept in override.set_aside:
                names = kept.keys() if everything else kept.keys() & affected
                outdated.append({name: kept.pop(name) for name in list(names)})

        def finish() -> None:
            errors: CloseErrors = []
            close_each(outdated, errors)
            raise_errors(errors)

        return finish

    def _end(self, override: _Override, errors: CloseErrors) -> None:
        outdated: list[dict[str, Kept]] = []
        with self._lock:
            override.ended = True
            while self._overrides and self._overrides[-1].ended:
                last = self._overrides.pop()
                affected = self._registry._override(last.name, last.beneath)
                outdated += [kept for _, kept in self._take_all(affected)]
                same = self._graph.wire(last.name) == last.dependencies
                for keeper, kept in last.set_aside:
                    if keeper._closed or not same:
                        outdated.append(kept)
                        continue
                    for name, one in kept.items():
                        keeper._keep(name, one)
        close_each(outdated, errors)
