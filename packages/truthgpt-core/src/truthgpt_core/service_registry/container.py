"""Building services, keeping the singletons, and closing them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

from truthgpt_core.errors import did_you_mean
from truthgpt_core.service_registry.errors import (
    ServiceClosedError,
    ServiceCloseError,
    ServiceError,
    UnknownServiceError,
)
from truthgpt_core.service_registry.registry import ServiceRegistry
from truthgpt_core.service_registry.wiring import Lifetime, Need, Registration, Wiring

_Maker = Callable[[], Any]
"""What `get` calls: it returns the singleton, or builds the transient service."""


@dataclass(frozen=True)
class ServiceHealth:
    """What `ServiceContainer.health` returns for one service.

    Attributes:
        lifetime: "singleton" or "transient".
        built: whether the container holds an instance.
        ok: False only if the `health()` of the instance returns False or raises.
        message: what it returned or raised.
    """

    lifetime: Lifetime
    built: bool
    ok: bool = True
    message: str = ""


class _Kept(NamedTuple):
    service: Any
    owned: bool  # whether the container closes it


class ServiceContainer:
    """Builds the services of a registry, keeps the singletons and closes them.

    Before anything is built, the graph of all services is judged. Singletons are built under
    one lock, so that there is one of each, and so that threads cannot deadlock. In return,
    a constructor must not wait for another thread that needs a service that is not built yet.

    The container calls `close()` of the singletons that it built, if they have that method,
    each before what it was built on. It does not close instances that were registered, nor
    transient services: these belong to the caller.

    Args:
        registry: what can be built; a new empty registry if left out.

    Raises:
        ServiceError: if `registry` belongs to another container.
    """

    def __init__(self, registry: ServiceRegistry | None = None) -> None:
        self._registry = ServiceRegistry() if registry is None else registry
        self._lock = self._registry.lock
        self._makers: dict[str, _Maker] = {}
        self._kept: dict[str, _Kept] = {}  # in the order in which they were finished
        # What the thread that holds the lock is building, and whether that is still up to date.
        self._building: dict[str, bool] = {}
        self._closed = False
        self._registry._attach(self._on_change)

    @property
    def registry(self) -> ServiceRegistry:
        """What can be built."""
        return self._registry

    def register(
        self, name: str, service: Any, singleton: bool = True, *, replace: bool = False
    ) -> None:
        """Register a service; the same as `ServiceRegistry.register` on `registry`."""
        self._registry.register(name, service, singleton, replace=replace)

    def __contains__(self, name: object) -> bool:
        return name in self._registry

    def get(self, name: str) -> Any:
        """Return the service `name`, after building what is not built yet.

        What a constructor raises is raised as it is, with a note for each service that was
        being built.

        Args:
            name: the name that it is registered under.

        Raises:
            UnknownServiceError: if nothing is registered under `name`.
            ServiceClosedError: if the container is closed.
            ServiceError: if not every service can be built; see `ServiceRegistry.validate`.
        """
        try:
            make = self._makers[name]
        except (KeyError, TypeError):
            make = partial(self._first, name)  # called below, so that its errors have no context
        return make()

    def health(self) -> Mapping[str, ServiceHealth]:
        """Return the health of every service, by name; nothing is built to find out.

        A service may have a method `health()`. It reports a problem by raising or by returning
        False; anything else that it returns, except None and True, is its message.
        """
        with self._lock:
            registrations = sorted(self._registry._wiring.registrations.items())
            kept = dict(self._kept)
        return {name: _health(one.lifetime, kept.get(name)) for name, one in registrations}

    def graph(self) -> str:
        """Return who needs whom as a Mermaid flowchart; the same as `ServiceRegistry.graph`."""
        return self._registry.graph()

    def close(self) -> None:
        """Close what was built, dependents first; a second call does nothing.

        Raises:
            ServiceCloseError: after everything was closed, if closing something failed.
        """
        with self._lock:
            self._closed = True
            self._makers = {}
            kept, self._kept = self._kept, {}
        _close(reversed(kept.items()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _first(self, name: str) -> Any:
        if not isinstance(name, str):
            raise UnknownServiceError(f"There is no service {name!r}", hint="Names are strings.")
        with self._lock:
            make = self._maker(name)
        return make()

    def _maker(self, name: str) -> _Maker:
        """Return what gets a service, after building it if it is a singleton."""
        if (make := self._makers.get(name)) is not None:
            return make
        if self._closed:
            raise ServiceClosedError("The container of services is closed")
        wiring = self._registry._wiring
        if name not in wiring.registrations:
            hint = did_you_mean(name, wiring.registrations)
            raise UnknownServiceError(f'There is no service "{name}"', hint=hint)
        wiring.judge()
        if name in (path := list(self._building)):  # a constructor got it from the container
            raise wiring.cycle_error([*path[path.index(name) :], name])
        self._building[name] = True
        try:
            make = self._build(wiring.registrations[name], wiring.needs[name])
        except Exception as error:
            _add_note(error, name)
            raise
        finally:
            del self._building[name]
        self._makers[name] = make
        return make

    def _build(self, one: Registration, needs: Iterable[Need]) -> _Maker:
        parts = [(need, self._maker(need.services[0])) for need in needs]
        make = _calling(one, parts)
        kept: dict[str, _Kept] = {}
        if one.singleton:
            service = make()
            # A function may return what is a service already, under another name.
            known = any(service is other.service for other in self._kept.values())
            kept[one.name] = _Kept(service, owned=one.signature is not None and not known)
            make = lambda: service  # noqa: E731 - a plain closure is the fastest
        if self._closed or not self._building[one.name]:
            _close(kept.items())
            raise ServiceError(
                f"Service {one.quoted} was changed while it was being built",
                hint="Its constructor must not change what it is built on, nor close it.",
            )
        self._kept |= kept
        return make

    def _on_change(self, name: str, after: Wiring) -> Callable[[], None]:
        """Forget what is built on `name`; return what closes it."""
        outdated: set[str] = set()
        if self._makers or self._building:  # if not, nothing is built on it
            before = self._registry._wiring.needs
            changed = {one for one, needs in after.needs.items() if needs != before.get(one)}
            outdated = after.dependents({name, *changed})
        for one in outdated:
            self._makers.pop(one, None)
            if one in self._building:
                self._building[one] = False
        newest_first = list(reversed(self._kept))
        closing = {one: self._kept.pop(one) for one in newest_first if one in outdated}
        return partial(_close, closing.items())


def _calling(one: Registration, parts: Sequence[tuple[Need, _Maker]]) -> _Maker:
    """Return a function that builds a service from what the makers of its parts return."""
    source = call = one.source
    if one.signature is None:
        return lambda: source
    positional = [make for need, make in parts if not need.by_keyword]
    by_keyword = {need.parameter: make for need, make in parts if need.by_keyword}
    if len(positional) == 1 and not by_keyword:
        (only,) = positional
        call = lambda: source(only())  # noqa: E731 - twice as fast, and most have one
    elif positional or by_keyword:
        call = lambda: source(  # noqa: E731
            *map(operator.call, positional), **{key: make() for key, make in by_keyword.items()}
        )

    def make() -> Any:
        try:
            return call()
        except Exception as error:
            _add_note(error, one.name)
            raise

    return make


def _add_note(error: Exception, name: str) -> None:
    note = f'While building service "{name}"'
    # The same exception may be raised again, and need not say it twice.
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _health(lifetime: Lifetime, kept: _Kept | None) -> ServiceHealth:
    if kept is None:
        return ServiceHealth(lifetime, built=False)
    try:
        method = None if isinstance(kept.service, type) else getattr(kept.service, "health", None)
        answer = method() if callable(method) else None
    except Exception as error:  # noqa: BLE001 - a service reports a problem by raising anything
        return ServiceHealth(lifetime, True, False, f"{type(error).__name__}: {error}")
    message = "" if answer is None or isinstance(answer, bool) else str(answer)
    return ServiceHealth(lifetime, True, answer is not False, message)


def _close(closing: Iterable[tuple[str, _Kept]]) -> None:
    """Close services in this order, all of them even if some fail.

    Raises:
        ServiceCloseError: for all that failed. What is not an `Exception`, such as
            KeyboardInterrupt, is raised as it is.
    """
    errors: dict[str, Exception] = {}
    interruption: BaseException | None = None
    for name, kept in closing:
        try:
            method = (
                None if isinstance(kept.service, type) else getattr(kept.service, "close", None)
            )
            if kept.owned and callable(method):
                method()
        except Exception as error:  # noqa: BLE001 - one that fails must not keep the others open
            errors[name] = error
        except BaseException as error:  # noqa: BLE001 - raised when everything is closed
            interruption = interruption or error
    failed = ServiceCloseError(errors) if errors else None
    if failed is not None:
        failed.__cause__ = ExceptionGroup("closing services failed", list(errors.values()))
    if interruption is not None:
        raise interruption from failed
    if failed is not None:
        raise failed
