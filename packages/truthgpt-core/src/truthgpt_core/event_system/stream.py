"""Events for asynchronous consumers: a bounded queue between an emitter and an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from truthgpt_core.event_system.events import Event, EventError

if TYPE_CHECKING:
    from truthgpt_core.event_system.emitter import Subscription


class EventStream:
    """An asynchronous iterator over events, made by `EventEmitter.stream`.

    Events are kept from the moment the stream is made, in the thread that emits
    them, and read by one consumer in its event loop. The emitter never waits: when
    the queue is full its oldest event is dropped and counted.

    Closing it, which leaving `async with` does, ends the iteration after what is
    already queued.

    Attributes:
        dropped: how many events the consumer was too slow for.
    """

    def __init__(self, maxsize: int, subscribe: Callable[[EventStream], Subscription]) -> None:
        if not isinstance(maxsize, int) or maxsize < 1:
            raise EventError(f"A stream must hold at least one event, and maxsize is {maxsize!r}")
        self.dropped = 0
        self._events: deque[Event] = deque()
        self._maxsize = maxsize
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        # Reentrant, because a finalizer that emits can run while this thread holds it.
        self._lock = threading.RLock()
        self._subscription = subscribe(self)

    @property
    def closed(self) -> bool:
        """Whether the stream takes no more events."""
        return self._closed

    def close(self) -> None:
        """Take no more events. Any thread may call it, any number of times."""
        self._subscription.close()
        with self._lock:
            self._closed = True
            self._wake()

    def put(self, event: Event) -> None:
        """Queue `event`; the emitter calls it, in any thread."""
        with self._lock:
            if self._closed:
                return
            if len(self._events) == self._maxsize:
                self._events.popleft()
                self.dropped += 1
            self._events.append(event)
            self._wake()
        if self.closed:  # only now: the emitter's lock is never taken under this one
            self._subscription.close()

    def __len__(self) -> int:
        return len(self._events)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            with self._lock:
                if self._events:
                    return self._events.popleft()
                if self._closed:
                    raise StopAsyncIteration
                if self._waiter is not None:
                    raise EventError(
                        "Two tasks wait on one event stream",
                        hint="Give each its own stream: each stream gets every event.",
                    )
                waiter = self._waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            finally:
                with self._lock:
                    if self._waiter is waiter:
                        self._waiter = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None:
            return
        try:
            waiter.get_loop().call_soon_threadsafe(_resolve, waiter)
        except RuntimeError:
            # The consumer's loop is closed: nobody is left to wake, and to the
            # emitter that is no failure.
            self._closed = True


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
