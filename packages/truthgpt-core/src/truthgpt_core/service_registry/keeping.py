"""Keeping instances, and closing them in the right order."""

from __future__ import annotations

import graphlib
import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from functools import partial
from threading import RLock, get_ident
from typing import TYPE_CHECKING, Any

from truthgpt_core.service_registry.errors import ServiceCloseError
from truthgpt_core.service_registry.graph import Reach
from truthgpt_core.service_registry.resolver import Entry, add_building_path

if TYPE_CHECKING:
    from truthgpt_core.service_registry.container import ServiceContainer

CloseErrors = list[tuple[str, BaseException]]


@dataclass(frozen=True, eq=False)
class Kept:
    """An instance that is kept, with all it takes to close it at the right moment.

    `by_hand` names what was got from a container or a scope while it was being made,
    rather than injected: dependencies that the graph does not show.
    """

    service: Any
    finished: int
    reach: Reach
    close: Callable[[], object] | None
    by_hand: frozenset[str]


@dataclass(eq=False)
class Building:
    """A service that is being built, by the thread that holds the container's lock."""

    keeper: Keeper
    name: str
    thread: int = field(default_factory=get_ident)
    by_hand: set[str] = field(default_factory=set)


class Keeper:
    """What the container and a scope have in common: they keep instances and close them.

    `_services` repeats the instances of `_kept`, to find them in one step. A scope shares
    the `_entries` of its container until it is closed; then there are none, so that
    `get` need not ask whether it is closed.
    """

    def __init__(
        self,
        container: ServiceContainer,
        entries: dict[str, Entry],
        building: list[Building],
    ) -> None:
        self._container = container
        self._entries = entries
        self._building = building
        self._services: dict[str, Any] = {}
        self._kept: dict[str, Kept] = {}
        self._closed = False
        self._closing = False
        self._being_closed = RLock()  # a service may close what it is in

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
        if self._building:
            _note_by_hand(self._building, name)
        try:
            service, resolve = self._entries[name]
        except (KeyError, TypeError):
            # Called below, so that its errors do not have this one as their context.
            resolve = partial(self._container._resolve, name)
        if resolve is None:
            return service
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
        # A second thread that closes this, or the container, waits until it is closed.
        with self._being_closed:
            # While its dependents are being closed, a service can still be got; none is built.
            with self._container._lock:
                self._closed = self._closing = True
                self._entries = {}
                kept, self._kept = self._kept, {}
                groups = [kept, *self._container._overrides.take(self)]
            for name, one in closing_order(groups):
                _close(name, one, errors)
                if kept.get(name) is one:
                    self._services.pop(name, None)
            self._closing = False


class ServiceScope(Keeper):
    """One span of work, such as a request: it keeps the scoped services made in it.

    Made by `ServiceContainer.scope`; singletons come from the container.
    """


def closing_order(groups: Iterable[Mapping[str, Kept]]) -> list[tuple[str, Kept]]:
    """Return instances in the order to close them: each before everything it may use.

    Args:
        groups: the instances by name. Several groups may have a name, because overrides
            set instances aside.

    What was finished last is closed first, which is right for everything that was got
    while it was being made, by parameter or by hand. What came later through a provider
    is the exception: it is kept open for the holder of the provider, unless it needs
    that holder in turn.
    """
    # Instances go by when they were finished, which no two have in common.
    kept = {one.finished: (name, one) for group in groups for name, one in group.items()}
    by_name: defaultdict[str, set[int]] = defaultdict(set)
    for finished, (name, _) in kept.items():
        by_name[name].add(finished)
    now = {
        # What it asked for by hand, but did not get, may be finished later, and need it.
        finished: {each for need in one.reach.now for each in by_name[need] if each < finished}
        for finished, (_, one) in kept.items()
    }
    every = {
        finished: now[finished].union(*[by_name[need] for need in one.reach.later])
        for finished, (_, one) in kept.items()
    }
    before = {
        finished: {
            one for one in needs if one in now[finished] or not _reaches(every, one, finished)
        }
        for finished, needs in every.items()
    }
    sorter = graphlib.TopologicalSorter(before)
    sorter.prepare()
    ready: list[int] = []
    order: list[int] = []
    while sorter.is_active():
        for finished in sorter.get_ready():
            heapq.heappush(ready, finished)
        order.append(heapq.heappop(ready))
        sorter.done(order[-1])
    return [kept[finished] for finished in reversed(order)]


def _reaches(edges: Mapping[int, Set[int]], start: int, goal: int) -> bool:
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
    """Close all of `groups` in one order, adding to `errors` what is raised."""
    for name, one in closing_order(groups):
        _close(name, one, errors)


def raise_errors(errors: CloseErrors) -> None:
    """Raise one `ServiceCloseError` for all of `errors`, if there are any.

    What is no `Exception`, such as KeyboardInterrupt, is raised as it is.
    """
    failures = [(name, error) for name, error in errors if isinstance(error, Exception)]
    failed = ServiceCloseError(failures) if failures else None
    if failed is not None:
        failed.__cause__ = ExceptionGroup(
            "closing services failed", [error for _, error in failures]
        )
    for _, error in errors:
        if not isinstance(error, Exception):
            raise error from failed
    if failed is not None:
        raise failed


def _close(name: str, kept: Kept, errors: CloseErrors) -> None:
    if kept.close is None:
        return
    try:
        kept.close()
    except BaseException as error:  # noqa: BLE001 - one that fails must not keep the others open
        errors.append((name, error))


def _note_by_hand(building: list[Building], name: str) -> None:
    innermost = building[-1:]  # empty if another thread has just finished
    if innermost and innermost[0].thread == get_ident() and isinstance(name, str):
        innermost[0].by_hand.add(name)
