"""What a handler of events is, and the check of one when it is registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from truthgpt_core.event_types import Event, EventError

Handler = Callable[[Event], object]


class EventHandlerError(EventError):
    """A handler cannot be registered as it was asked for."""


def check_handler(handler: Handler) -> None:
    """Refuse a handler that cannot be called with one event.

    Args:
        handler: what was given as one.

    Raises:
        EventHandlerError: it is not callable, is a coroutine function, or takes
            other arguments.
    """
    if not callable(handler):
        raise EventHandlerError(f"A handler must be callable, and {handler!r} is not")
    name = name_of(handler)
    call = getattr(handler, "__call__", None)  # noqa: B004 - it is the method that is inspected
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call):
        raise EventHandlerError(
            f"The handler {name} is a coroutine function, and nothing would await it",
            hint="Read the events with emitter.stream() in a task of your own.",
        )
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # some functions written in C have none
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise EventHandlerError(
            f"The handler {name}{signature} cannot be called with one event: {error}",
            hint="It must accept exactly one positional argument.",
        ) from None


def name_of(handler: object) -> str:
    """Return what messages call a handler."""
    name = getattr(handler, "__qualname__", None)
    return f"{handler.__module__}.{name}" if name else repr(handler)
