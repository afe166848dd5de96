"""The registration side of services: `ServiceRegistry`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from truthgpt_core.errors import did_you_mean
from truthgpt_core.service_registry.errors import (
    DuplicateServiceError,
    InvalidServiceError,
    ServiceError,
    UnknownServiceError,
)
from truthgpt_core.service_registry.graph import ServiceGraph, ServiceInfo
from truthgpt_core.service_registry.spec import Lifetime, ServiceSpec, check_name, read_spec
from truthgpt_core.transaction import record_undo

_OnChange = Callable[[str, ServiceSpec | None, set[str], bool], Callable[[], None]]


@dataclass(eq=False)
class _Layer:
    """One registration or removal of a name, lying on what it replaced.

    Plugins are deactivated in any order, so a layer may be withdrawn while another
    lies on it. It then keeps what it replaced, for the one above it to fall back on;
    a layer that is never withdrawn keeps nothing alive.
    """

    spec: ServiceSpec | None
    withdrawn: bool = False
    beneath: _Layer | None = None


class ServiceRegistry:
    """What can be built, and from what: the services that are registered, by name.

    A `ServiceContainer` owns one and builds from it; alone, a registry builds nothing.
    It may change at any time, also while services are in use. Inside a `Transaction`
    every change is taken back when the transaction is, restoring what it replaced.

    Attributes:
        lock: guards what is registered and what is being built from it, as one.
    """

    def __init__(self) -> None:
        self.lock = self._lock = threading.RLock()
        self._graph = ServiceGraph()
        self._layers: dict[str, _Layer] = {}
        self._overriding: dict[str, ServiceSpec] = {}
        self._on_change: _OnChange | None = None

    def register(
        self,
        name: str,
        service: Any,
        singleton: bool = True,
        *,
        lifetime: Lifetime | None = None,
        replace: bool = False,
    ) -> None:
        """Let `name` stand for `service`.

        A class or function is called to make the service. Each parameter gets the one
        service that provides the class it is annotated with; failing that, the service
        that has its name; failing that, it keeps its default. Annotated `Provider[T]`, it
        gets a function that gets the service when called. Builtin types such as `str`, and `Any`,
        tell no service from another and are ignored, as are annotations that cannot be evaluated.

        Registering the very same object under the same name and lifetime again changes
        nothing; it is there until both registrations are taken back. Otherwise, replacing
        closes what was built on the service that is replaced.

        Args:
            name: the key, a string that is not empty.
            service: a class; a function, the code after whose `yield` is run on closing
                if it is a generator function; or an instance, which is anything else,
                also an object that can be called.
            singleton: whether one instance is shared; if not, every `get` makes a new one.
            lifetime: "singleton", "scoped" (one instance in each scope) or "transient"
                (the same as `singleton=False`).
            replace: whether to take the place of the service that has the name.

        Raises:
            InvalidServiceError: if `service` can never be made, or an argument will not do.
            DuplicateServiceError: if `name` is taken and `replace` is False.
            UnknownServiceError: if `name` is not taken and `replace` is True.
            ServiceError: if a service that depends on `name` is being built by this thread.
            ServiceCloseError: if what was built on the replaced service fails to close;
                the new registration is in force nevertheless.
        """
        if lifetime == "singleton" and not singleton:
            raise InvalidServiceError(
                f'Service "{name}" cannot have singleton=False and lifetime="singleton"'
            )
        spec = read_spec(name, service, lifetime or ("singleton" if singleton else "transient"))
        with self._lock:
            present = self._registered(name)
            if present is not None:
                if present.source is spec.source and present.lifetime == spec.lifetime:
                    spec = present
                elif not replace:
                    raise DuplicateServiceError(
                        f"Service {present.named} is registered already, as {present.source!r}",
                        hint="Give replace=True to replace it.",
                    )
            elif replace:
                raise self._nothing_to_replace(spec)
            finish = self._push(name, _Layer(spec))
        finish()

    def unregister(self, name: str) -> None:
        """Let `name` stand for nothing, and close what was built on it.

        Raises:
            UnknownServiceError: if nothing is registered under `name`.
            ServiceError: if a service that depends on `name` is being built by this thread.
            ServiceCloseError: if something fails to close; `name` is gone nevertheless.
        """
        check_name(name)
        with self._lock:
            if self._registered(name) is None:
                raise UnknownServiceError(
                    f'There is no service "{name}" to unregister',
                    hint=did_you_mean(name, self.names()),
                )
            finish = self._push(name, _Layer(None))
        finish()

    def names(self) -> tuple[str, ...]:
        """Return the names of all services, sorted."""
        with self._lock:
            return tuple(sorted(name for name, layer in self._layers.items() if layer.spec))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._registered(name) is not None

    def validate(self) -> None:
        """Judge the graph of services, as is also done before the first `get`.

        Only what changed since the last time, and what depends on it, is judged again.

        Raises:
            MissingDependencyError: if a parameter gets nothing and has no default.
            AmbiguousDependencyError: if several services provide the class of a parameter.
            ServiceCycleError: if services need one another in a circle without a `Provider`.
            LifetimeError: if a singleton needs a scoped service, directly or not.
        """
        with self._lock:
            self._graph.validate()

    def graph(self) -> str:
        """Return who needs whom as a Mermaid flowchart; the graph need not be valid.

        Singletons are rectangles, scoped services round, transient ones stadiums; a
        dotted arrow is a `Provider`.
        """
        with self._lock:
            return self._graph.mermaid()

    def describe(self) -> tuple[ServiceInfo, ...]:
        """Return what every service needs, by name; the graph need not be valid."""
        with self._lock:
            return tuple(self._graph.describe(name) for name in self._graph.names())

    def _nothing_to_replace(self, spec: ServiceSpec) -> UnknownServiceError:
        hint = did_you_mean(spec.name, self.names()) or "Leave out replace=True."
        if spec.owner is not None:
            hint += (
                " If another plugin registers it, require the distribution of that one, so that "
                "it is activated first."
            )
        return UnknownServiceError(
            f'There is no service "{spec.name}" to replace, and replace=True was given', hint=hint
        )

    def _registered(self, name: str) -> ServiceSpec | None:
        layer = self._layers.get(name)
        return layer.spec if layer else None

    def _push(self, name: str, layer: _Layer) -> Callable[[], None]:
        beneath = self._layers.get(name)
        finish = self._change(name, layer)

        def undo() -> None:
            with self._lock:
                layer.withdrawn = True
                layer.beneath = beneath
                if self._layers.get(name) is not layer:
                    return
                top = beneath
                while top is not None and top.withdrawn:
                    top = top.beneath
                finish_undo = self._change(name, top, undoing=True)
            finish_undo()

        record_undo(undo)
        return finish

    def _change(
        self, name: str, layer: _Layer | None, *, undoing: bool = False
    ) -> Callable[[], None]:
        """Make `layer` the top of `name`; return what closes the services that this outdates."""
        before = self._registered(name)
        spec = layer.spec if layer else None
        finish = _nothing if spec is before else self._replace(name, before, spec, undoing)
        if layer is None:
            self._layers.pop(name, None)
        else:
            self._layers[name] = layer
        return finish

    def _replace(
        self, name: str, before: ServiceSpec | None, spec: ServiceSpec | None, undoing: bool
    ) -> Callable[[], None]:
        affected = set() if name in self._overriding else self._graph.put(name, spec)
        if self._on_change is not None:
            try:
                return self._on_change(name, spec, affected, undoing)
            except ServiceError:
                if name not in self._overriding:
                    self._graph.put(name, before)
                raise
        return _nothing

    def _override(self, name: str, spec: ServiceSpec | None) -> set[str]:
        """Let the graph show `spec`, or the registration again, under `name`."""
        if spec is None:
            self._overriding.pop(name, None)
            return self._graph.put(name, self._registered(name))
        if self._overriding.get(name) is spec:
            return set()
        self._overriding[name] = spec
        return self._graph.put(name, spec)

    def _attach(self, on_change: _OnChange) -> None:
        with self._lock:
            if self._on_change is not None:
                raise ServiceError("The registry belongs to another container already")
            self._on_change = on_change


def _nothing() -> None:
    pass
