"""The emitter: who is told of an event, in which order, and what a failing handler does."""

from __future__ import annotations

import logging
import threading
from bisect import insort
from collections.abc import Callable, Mapping
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeVar, final, overload

from truthgpt_core.event_system.events import (
    NO_DATA,
    Event,
    EventType,
    EventTypeError,
)
from truthgpt_core.event_system.handlers import EventHandlerError, Handler, check_handler, name_of
from truthgpt_core.event_system.stream import EventStream
from truthgpt_core.transaction import record_undo

logger = logging.getLogger(__name__)

HandlerT = TypeVar("HandlerT", bound=Handler)


def _nothing(_event: Event) -> None:
    """Stand in for the handler of a subscription that was removed."""


@final
class Subscription:
    """One handler's registration, returned by `EventEmitter.on`.

    As a context manager it lasts as long as the block.

    Attributes:
        event_type: the type of event the handler gets; None for all.
        handler: the function that was registered.
        priority: higher goes first.
        critical: whether the handler's exceptions are raised again.
        errors: how many of the handler's calls raised.
    """

    __slots__ = (
        "_call",
        "_emitter",
        "_guarded",
        "_order",
        "critical",
        "errors",
        "event_type",
        "handler",
        "priority",
    )

    def __init__(
        self,
        emitter: EventEmitter,
        event_type: EventType | None,
        handler: Handler,
        *,
        priority: int,
        order: int,
        critical: bool,
    ) -> None:
        self.event_type = event_type
        self.handler = handler
        self.priority = priority
        self.critical = critical
        self.errors = 0
        self._emitter = emitter
        self._order = order
        self._guarded: Handler = handler
        # What emit calls. Removal swaps it, so that it reaches emits under way.
        self._call: Handler = _nothing

    @property
    def active(self) -> bool:
        """Whether the handler is registered."""
        return self._call is not _nothing

    def remove(self) -> bool:
        """Take the handler out; a transaction that is under way puts it back if it rolls back.

        Returns:
            Whether it was registered.
        """
        removed = self._emitter._detach(self)
        if removed:
            record_undo(lambda: self._emitter._attach(self))
        return removed

    def close(self) -> None:
        """Take the handler out for good: no transaction that rolls back puts it back."""
        self._emitter._detach(self, for_good=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        listened = "all events" if self.event_type is None else self.event_type
        return f"<{name_of(self.handler)} on {listened}>"


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
        # Who gets events of a type, worked out when the first one is emitted. Tuples
        # are replaced, never changed, so emit reads them without the lock.
        self._routes: dict[EventType, tuple[Subscription, ...]] = {}

    @overload
    def on(
        self,
        event_type: EventType | None,
        handler: Handler,
        *,
        priority: int = 0,
        once: bool = False,
        every: int = 1,
        filter: Callable[[Event], object] | None = None,
        critical: bool = False,
    ) -> Subscription: ...
    @overload
    def on(
        self,
        event_type: EventType | None,
        handler: None = None,
        *,
        priority: int = 0,
        once: bool = False,
        every: int = 1,
        filter: Callable[[Event], object] | None = None,
        critical: bool = False,
    ) -> Callable[[HandlerT], HandlerT]: ...
    def on(
        self,
        event_type: EventType | None,
        handler: Handler | None = None,
        *,
        priority: int = 0,
        once: bool = False,
        every: int = 1,
        filter: Callable[[Event], object] | None = None,  # noqa: A002 - the word for it
        critical: bool = False,
    ) -> Subscription | Callable[[HandlerT], HandlerT]:
        """Register `handler`, or, without one, return a decorator that registers.

        Args:
            event_type: the type of event it gets; None for all.
            handler: a function of one argument, the event. What it returns is ignored.
            priority: higher goes first; equal ones go in the order of registration.
            once: remove it before its first call.
            every: call it for the N-th event, the 2N-th and so on, of those that pass `filter`.
            filter: call it only for events for which this is true. If it raises, that
                counts as the handler's failure.
            critical: raise its exceptions again, after all handlers have run.

        Returns:
            The registration, to be removed or used as a context manager; for the
            decorator, the function unchanged.

        Raises:
            EventHandlerError: the handler or the filter cannot be called with one event,
                or is a coroutine function or a generator function; `every` is not a
                positive whole number, or `priority` is no whole number.
            EventTypeError: `event_type` is not an event type.
        """
        if event_type is not None:
            _require_event_type(event_type)
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise EventHandlerError(f"every must be a whole number of at least 1, not {every!r}")
        if not isinstance(priority, int):
            raise EventHandlerError(f"priority must be a whole number, not {priority!r}")
        if filter is not None:
            check_handler(filter, "filter")

        def register(handler: Handler) -> Subscription:
            check_handler(handler)
            subscription = Subscription(
                self,
                event_type,
                handler,
                priority=priority,
                order=next(self._registered),
                critical=critical,
            )
            subscription._guarded = _guard(subscription, once, every, filter)
            self._attach(subscription)
            record_undo(subscription.close)
            return subscription

        def decorate(handler: HandlerT) -> HandlerT:
            register(handler)
            return handler

        return decorate if handler is None else register(handler)

    def off(self, event_type: EventType | None, handler: Handler) -> int:
        """Take out what `on(event_type, handler)` registered.

        Args:
            event_type: the type it was registered for; None if that was all of them,
                which leaves registrations for single types in place.
            handler: the function that was registered.

        Returns:
            How many registrations that were.
        """
        return sum(
            subscription.remove()
            for subscription in self._subscriptions
            if subscription.event_type is event_type and subscription.handler == handler
        )

    def emit(self, event_type: EventType, data: Mapping[str, Any] = NO_DATA) -> None:
        """Tell every handler of `event_type` and of all events.

        Args:
            event_type: what kind of news it is.
            data: what there is to tell; leave the values unchanged afterwards.

        Raises:
            EventTypeError: `event_type` is not an event type.
            EventError: `data` is no mapping, and somebody listens.
            Exception: what a critical handler raised; an ExceptionGroup if several did.
        """
        try:
            subscriptions = self._routes.get(event_type)
        except TypeError:  # it has no hash, so it is no event type, as _route will say
            subscriptions = None
        if not subscriptions:
            if subscriptions is None:
                subscriptions = self._route(event_type)
            if not subscriptions:
                return
        event = Event(event_type, data)
        critical: list[Exception] | None = None
        for subscription in subscriptions:
            call = subscription._call
            try:
                call(event)
            except Exception as error:  # noqa: BLE001 - the next handler runs whatever this one raised
                self._count_failure(subscription, event_type, error)
                if subscription.critical:
                    critical = [*(critical or ()), error]
        if critical:
            try:
                if len(critical) == 1:
                    raise critical[0]
                raise ExceptionGroup(f"Critical handlers of {event_type} failed", critical)
            finally:
                # An exception refers to this frame; the frame must not refer back.
                del critical

    def has_handlers(self, event_type: EventType) -> bool:
        """Return whether anybody listens: for callers whose data is dear to gather.

        Args:
            event_type: the type that would be emitted.

        Raises:
            EventTypeError: `event_type` is not an event type.
        """
        _require_event_type(event_type)
        subscriptions = self._routes.get(event_type)
        return bool(self._route(event_type) if subscriptions is None else subscriptions)

    def stream(
        self,
        event_type: EventType | None = None,
        *,
        maxsize: int = 1024,
        priority: int = 0,
        every: int = 1,
        filter: Callable[[Event], object] | None = None,  # noqa: A002 - the word for it
    ) -> EventStream:
        """Return an asynchronous iterator over the events emitted from now on, in any thread.

            async with emitter.stream(EventType.TRAINING_STEP) as steps:
                async for event in steps: ...

        Args:
            event_type: the type of event it gets; None for all.
            maxsize: how many events wait for the consumer; beyond that the oldest is dropped.
            priority: as for `on`.
            every: as for `on`.
            filter: as for `on`; it runs in the thread that emits.

        Raises:
            EventError: `maxsize` is less than 1, or as for `on`.
        """

        def subscribe(stream: EventStream) -> Subscription:
            return self.on(event_type, stream.put, priority=priority, every=every, filter=filter)

        stream = EventStream(maxsize, subscribe)
        # A consumer whose registration is rolled back must not wait for ever.
        record_undo(stream.close)
        return stream

    def _attach(self, subscription: Subscription) -> None:
        with self._lock:
            if subscription.active or subscription._guarded is _nothing:
                return
            subscriptions = list(self._subscriptions)
            insort(subscriptions, subscription, key=_position)
            subscription._call = subscription._guarded
            self._subscriptions = tuple(subscriptions)
            self._routes = {}

    def _detach(self, subscription: Subscription, *, for_good: bool = False) -> bool:
        with self._lock:
            if for_good:
                subscription._guarded = _nothing
            if not subscription.active:
                return False
            subscription._call = _nothing
            self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)
            self._routes = {}
            return True

    def _route(self, event_type: EventType) -> tuple[Subscription, ...]:
        _require_event_type(event_type)
        with self._lock:
            route = tuple(
                subscription
                for subscription in self._subscriptions
                if subscription.event_type is None or subscription.event_type is event_type
            )
            self._routes[event_type] = route
            return route

    def _count_failure(
        self, subscription: Subscription, event_type: EventType, error: Exception
    ) -> None:
        with self._lock:
            subscription.errors += 1
            self.errors += 1
        logger.error(
            "The handler %s failed on %s",
            name_of(subscription.handler),
            event_type,
            exc_info=error,
        )


def _position(subscription: Subscription) -> tuple[int, int]:
    return -subscription.priority, subscription._order


def _guard(
    subscription: Subscription,
    once: bool,
    every: int,
    wanted: Callable[[Event], object] | None,
) -> Handler:
    """Return the handler with its conditions around it: a handler without any pays for none."""
    handler = subscription.handler
    if not once and every == 1 and wanted is None:
        return handler
    numbers = count(1)

    def guarded(event: Event) -> None:
        if wanted is not None and not wanted(event):
            return
        if next(numbers) % every:
            return
        # Removing first settles which of several threads, or nested emits, has the one call.
        if once and not subscription._emitter._detach(subscription):
            return
        handler(event)

    return guarded


def _require_event_type(event_type: object) -> None:
    if isinstance(event_type, EventType):
        return
    hint = "Use a constant such as EventType.TRAINING_STEP."
    if isinstance(event_type, str):
        hint = f'EventType("{event_type}") looks up a type by its name.'
    raise EventTypeError(f"{event_type!r} is not an event type", hint=hint)


_default_emitter = EventEmitter()

# Bound methods rather than functions around them: emitting is the hot path.
on_event = _default_emitter.on
"""`EventEmitter.on` of the emitter that the whole process shares."""

emit_event = _default_emitter.emit
"""`EventEmitter.emit` of the emitter that the whole process shares."""


def get_event_emitter() -> EventEmitter:
    """Return the emitter that the whole process shares."""
    return _default_emitter
