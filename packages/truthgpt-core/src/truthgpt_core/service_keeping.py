"""Keeping instances, and closing them in the right order."""

from __future__ import annotations

import graphlib
import heapq
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from truthgpt_core.service_errors import ServiceCloseError
from truthgpt_core.service_graph import Reach
from truthgpt_core.service_resolver import Resolver, add_building_path

if TYPE_CHECKING:
    from truthgpt_core.service_container import ServiceContainer

CloseErrors = list[tuple[str, Exception]]


@dataclass(frozen=True, eq=False)
class Kept:
    """An instance that is kept, with all it takes to close it at the right moment."""

    service: Any
    finished: int
    reach: Reach
    close: Callable[[], object] | None


class Keeper:
    """What the container and a scope have in common: they keep instances and close them.

    `_services` repeats the instances of `_kept`, to find them in one step. A scope shares
    the `_resolvers` of its container until it is closed; then there are none, so that
    `get` need not ask whether it is closed.
    """

    def __init__(self, container: ServiceContainer, resolvers: dict[str, Resolver]) -> None:
        self._container = container
        self._resolvers = resolvers
        self._services: dict[str, Any] = {}
        self._kept: dict[str, Kept] = {}
        self._closed = False
        self._closing = False

    def get(self, name: str) -> Any:
        """Return the service `name`, building it and what it needs if it is not there yet.

        Errors that a constructor raises pass through as they are, with a note that
        names the path of services that were being built.

        Args:
            name: the name that it is registered under.

        Raises:
            UnknownServiceError: if nothing is registered under `name`.
            ServiceClosedError: if this was closed.
            LifetimeError: if `name` is scoped, or needs something that is, and this is no scope.
            ServiceError: if the graph of services is not valid; see `ServiceRegistry.validate`.
        """
        resolve: Resolver | None
        try:
            resolve = self._resolvers[name]
        except KeyError:
            resolve = None  # so that errors from here on have no KeyError as their context
        if resolve is None:
            resolve = self._container._resolver(name, self)
        try:
            return resolve(self)
        except Exception as error:
            add_building_path(error)
            raise

    def _keep(self, name: str, kept: Kept) -> None:
        self._kept[name] = kept
        self._services[name] = kept.service

    def _take(self, names: set[str]) -> dict[str, Kept]:
        """Stop keeping `names`, without closing them."""
        taken = {name: self._kept.pop(name) for name in names & self._kept.keys()}
        for name in taken:
            del self._services[name]
        return taken

    def _close_all(self, errors: CloseErrors) -> None:
        # While its dependents are being closed, a service can still be got; none is built.
        with self._container._lock:
            self._closed = self._closing = True
            self._resolvers = {}
            kept, self._kept = self._kept, {}
        for name in closing_order(kept):
            _close(name, kept[name], errors)
            self._services.pop(name, None)
        self._closing = False


class ServiceScope(Keeper):
    """One span of work, such as a request: it keeps the scoped services made in it.

    Made by `ServiceContainer.scope`; singletons come from the container.
    """


def closing_order(kept: Mapping[str, Kept]) -> list[str]:
    """Return the names in the order to close them: each before everything it may use.

    Args:
        kept: the instances by name.

    What was finished last is closed first, which is right for everything that was got
    while it was being made, by parameter or by hand. What came later through a provider
    is the exception: it is kept open for the holder of the provider, unless it needs
    that holder in turn.
    """
    now = {name: one.reach.now & kept.keys() for name, one in kept.items()}
    every = {name: now[name] | (one.reach.later & kept.keys()) for name, one in kept.items()}
    before: dict[str, set[str]] = {
        name: {one for one in needs if one in now[name] or not _reaches(every, one, name)}
        for name, needs in every.items()
    }
    sorter = graphlib.TopologicalSorter(before)
    sorter.prepare()
    ready: list[tuple[int, str]] = []
    order: list[str] = []
    while sorter.is_active():
        for name in sorter.get_ready():
            heapq.heappush(ready, (kept[name].finished, name))
        _, name = heapq.heappop(ready)
        order.append(name)
        sorter.done(name)
    return order[::-1]


def _reaches(edges: Mapping[str, Set[str]], start: str, goal: str) -> bool:
    found = {start}
    waiting = [start]
    while waiting:
        new = edges[waiting.pop()] - found
        found |= new
        waiting += new
    return goal in found


def close_method(service: Any) -> Callable[[], object] | None:
    """Return the `close` of a service that was built, or None if it has none."""
    close = None if isinstance(service, type) else getattr(service, "close", None)
    return close if callable(close) else None


def close_each(groups: Iterable[Mapping[str, Kept]], errors: CloseErrors) -> None:
    """Close all of `groups`, one after the other, adding to `errors` what is raised."""
    for kept in groups:
        for name in closing_order(kept):
            _close(name, kept[name], errors)


def raise_errors(errors: CloseErrors) -> None:
    """Raise one `ServiceCloseError` for all of `errors`, if there are any."""
    if errors:
        raise ServiceCloseError(errors) from ExceptionGroup(
            "closing services failed", [error for _, error in errors]
        )


def _close(name: str, kept: Kept, errors: CloseErrors) -> None:
    if kept.close is None:
        return
    try:
        kept.close()
    except Exception as error:  # noqa: BLE001 - one that fails must not keep the others open
        errors.append((name, error))
