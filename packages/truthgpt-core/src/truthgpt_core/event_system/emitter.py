"""The emitter: which handlers get an event, in which order, and what becomes of their errors."""

from __future__ import annotations

import inspect
import logging
import threading
from bisect import insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from itertools import count
from time import time
from types import MappingProxyType
from typing import Any, Self, final, overload

from truthgpt_core.event_system.events import EventError, EventPayload, EventType
from truthgpt_core.transaction import record_undo

logger = logging.getLogger(__name__)

_NO_DATA: Mapping[str, Any] = MappingProxyType({})


@final
@dataclass(frozen=True, slots=True, init=False, eq=False, repr=False)
class Event:
    """What a handler gets. It cannot be changed.

    Args:
        event: the dataclass of an event, or the type of one.
        data: with a type, what there is to tell. The mapping is copied; its values are the very
            same and are not looked at, so that a tensor among them waits for no device.

    Attributes:
        type: the type of the event.
        data: the fields of the dataclass that are set, or what was given as data; read-only.
        payload: the dataclass; None if it is an event of a type and a mapping.
        timestamp: when it was emitted, in seconds since the epoch.

    Raises:
        EventError: the data is not a mapping, or was given beside a dataclass.
    """

    type: EventType
    data: Mapping[str, Any]
    payload: EventPayload | None
    timestamp: float

    def __init__(self, event: EventPayload | EventType, data: Mapping[str, Any] = _NO_DATA) -> None:
        if isinstance(event, EventPayload):
            if data is not _NO_DATA:
                raise EventError(f"{type(event).__name__} has its data in its fields")
            _set(self, "type", event.event_type)
            _set(self, "payload", event)
            every = ((field.name, getattr(event, field.name)) for field in fields(event))
            data = {name: value for name, value in every if value is not None}
        else:
            if not isinstance(data, dict) and not isinstance(data, Mapping):
                raise EventError(f"Data of {event} must be a mapping, not {type(data).__name__}")
            _set(self, "type", event)
            _set(self, "payload", None)
            # A plain dict: one with default values would take in each key that is asked for.
            data = dict(data)
        _set(self, "data", MappingProxyType(data))
        _set(self, "timestamp", time())

    def __repr__(self) -> str:
        # The values are left out: showing a tensor waits for its device.
        return f"Event({self.type}: {', '.join(map(str, self.data)) or 'no data'})"


_set = object.__setattr__

Handler = Callable[[Event], object]


def _removed(_event: Event) -> None:
    """Stand in for the handler of a registration that was removed."""


@final
@dataclass(slots=True, eq=False, repr=False)
class Subscription:
    """The registration of a handler, made by `EventEmitter.on`.

    As a context manager it lasts as long as the block.

    Attributes:
        event_type: the type of event that the handler gets; None for all.
        handler: the function that was registered.
        priority: higher goes first.
        critical: whether the handler's exceptions are raised again.
        errors: how many of the handler's calls raised.
    """

    event_type: EventType | None
    handler: Handler
    priority: int
    critical: bool
    _emitter: EventEmitter
    _order: int
    errors: int = 0
    # What emit calls. A removal swaps it, so that it reaches emits that are under way.
    _call: Handler = _removed
    _gone: bool = False

    @property
    def active(self) -> bool:
        """Whether the handler is registered."""
        return self._call is not _removed

    def remove(self) -> bool:
        """Take the handler out; a transaction that is under way puts it back if it rolls back.

        Returns:
            Whether it was registered.
        """
        removed = self._emitter._detach(self)
        if removed:
            record_undo(lambda: self._emitter._attach(self))
        return removed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<{_name_of(self.handler)} on {self.event_type or 'all events'}>"


class EventEmitter:
    """Delivers events to the handlers registered with it. Safe to share between threads.

    Attributes:
        errors: how many calls of handlers raised, those of removed handlers included.
    """

    def __init__(self) -> None:
        self.errors = 0
        # Reentrant, because a finalizer may use the emitter while this thread holds it.
        self._lock = threading.RLock()
        self._registered = count()
        self._subscriptions: tuple[Subscription, ...] = ()
        # Who gets events of a type, worked out when the first one is emitted. Tuples and the
        # dict are replaced, never changed by a registration, so emit reads without the lock.
        self._routes: dict[EventType, tuple[Subscription, ...]] = {}

    def on(
        self,
        event_type: EventType | None,
        handler: Handler,
        *,
        priority: int = 0,
        critical: bool = False,
    ) -> Subscription:
        """Register a handler.

        Args:
            event_type: the type of event that it gets; None for all.
            handler: a function of one argument, the event. What it returns is ignored.
            priority: higher goes first; equal ones go in the order of registration.
            critical: raise its exceptions again, after all handlers have run.

        Returns:
            The registration, to be removed or used as a context manager.

        Raises:
            EventError: `event_type` is not an event type, `priority` is not an integer, or
                the handler cannot be called with one event or would do nothing when it is.
        """
        if event_type is not None:
            event_type = _type_of(event_type)
        if not isinstance(priority, int):
            raise EventError(f"priority must be an integer, not {priority!r}")
        _check(handler)
        order = next(self._registered)
        subscription = Subscription(event_type, handler, priority, critical, self, order)
        self._attach(subscription)
        record_undo(partial(self._detach, subscription, for_good=True))
        return subscription

    @overload
    def emit(self, event: EventPayload) -> None: ...
    @overload
    def emit(self, event: EventType, data: Mapping[str, Any] = ...) -> None: ...
    def emit(self, event: EventPayload | EventType, data: Mapping[str, Any] = _NO_DATA) -> None:
        """Call every handler of the event's type and of all events.

        Args:
            event: the dataclass of an event, or the type of one.
            data: with a type, what there is to tell; leave the values unchanged afterwards.

        Raises:
            EventError: there is no such type; or, if there are handlers, as for `Event`.
            Exception: what a critical handler raised; an ExceptionGroup if several did.
        """
        event_type = event if type(event) is EventType else _type_of(event)
        subscriptions = self._routes.get(event_type)
        if not subscriptions:
            if subscriptions is None:
                subscriptions = self._route(event_type)
            if not subscriptions:
                return
        delivered = Event(event, data)
        critical: list[Exception] | None = None
        for subscription in subscriptions:
            try:
                subscription._call(delivered)
            except Exception as error:  # noqa: BLE001 - the next handler runs all the same
                self._count_failure(subscription, event_type, error)
                if subscription.critical:
                    critical = [*(critical or ()), error]
        if critical:
            if len(critical) == 1:
                raise critical[0]
            raise ExceptionGroup(f"Critical handlers of {event_type} failed", critical)

    def _attach(self, subscription: Subscription) -> None:
        with self._lock:
            if subscription.active or subscription._gone:
                return
            subscriptions = list(self._subscriptions)
            insort(subscriptions, subscription, key=_position)
            subscription._call = subscription.handler
            self._subscriptions = tuple(subscriptions)
            self._routes = {}

    def _detach(self, subscription: Subscription, *, for_good: bool = False) -> bool:
        with self._lock:
            # Its plugin is gone: no other one that is undone later puts it back.
            subscription._gone = subscription._gone or for_good
            if not subscription.active:
                return False
            subscription._call = _removed
            self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)
            self._routes = {}
            return True

    def _route(self, event_type: EventType) -> tuple[Subscription, ...]:
        with self._lock:
            route = tuple(
                subscription
                for subscription in self._subscriptions
                if subscription.event_type in (None, event_type)
            )
            self._routes[event_type] = route
            return route

    def _count_failure(
        self, subscription: Subscription, event_type: EventType, error: Exception
    ) -> None:
        with self._lock:
            subscription.errors += 1
            self.errors += 1
        name = _name_of(subscription.handler)
        logger.error("The handler %s failed on %s", name, event_type, exc_info=error)


def _position(subscription: Subscription) -> tuple[int, int]:
    return -subscription.priority, subscription._order


def _type_of(event: object) -> EventType:
    if isinstance(event, EventType):
        return event
    if isinstance(event, EventPayload):
        return event.event_type
    hint = "Use a constant such as EventType.TRAINING_STEP."
    if isinstance(event, str):
        hint = f'EventType("{event}") looks up a type by its name.'
    raise EventError(f"{event!r:.80} is not an event type", hint=hint)


def _check(handler: Handler) -> None:
    """Refuse what cannot be called with one event, or would do nothing when it is."""
    if not callable(handler):
        raise EventError(f"A handler must be callable, and {handler!r:.80} is not")
    name = _name_of(handler)
    for each in (handler, getattr(handler, "__call__", None)):  # noqa: B004 - to be inspected
        if inspect.iscoroutinefunction(each):
            raise EventError(
                f"The handler {name} is a coroutine function: a call would not run it",
                hint="Register a function that hands it to asyncio.run_coroutine_threadsafe.",
            )
        if inspect.isgeneratorfunction(each) or inspect.isasyncgenfunction(each):
            raise EventError(f"The handler {name} is a generator function: a call would not run it")
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # some functions written in C have none
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise EventError(
            f"The handler {name}{signature} cannot be called with one event: {error}",
            hint="It must accept exactly one positional argument.",
        ) from None


def _name_of(handler: object) -> str:
    module, name = (getattr(handler, each, None) for each in ("__module__", "__qualname__"))
    # Not by its own repr, which may raise, or show a tensor that it holds.
    return f"{module}.{name}" if name else object.__repr__(handler)


_default_emitter = EventEmitter()

# Bound methods rather than functions around them: emitting is the hot path.
on_event = _default_emitter.on
"""`EventEmitter.on` of the emitter that the whole process shares."""

emit_event = _default_emitter.emit
"""`EventEmitter.emit` of the emitter that the whole process shares."""


def get_event_emitter() -> EventEmitter:
    """Return the emitter that the whole process shares."""
    return _default_emitter
