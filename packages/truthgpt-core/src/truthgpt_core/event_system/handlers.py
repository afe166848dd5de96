"""What a handler of events is, and the check of one when it is registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from truthgpt_core.event_system.events import Event, EventError

Handler = Callable[[Event], object]


class EventHandlerError(EventError):
    """A handler cannot be registered as it was asked for."""


def check_handler(handler: Handler, role: str = "handler") -> None:
    """Refuse what cannot be called with one event, or would do nothing when it is.

    Args:
        handler: what was given as one.
        role: what messages call it: "handler" or "filter".

    Raises:
        EventHandlerError: it is not callable, is a coroutine function or a generator
            function, or takes other arguments.
    """
    name = name_of(handler)
    if not callable(handler):
        raise EventHandlerError(f"A {role} must be callable, and {name} is not")
    functions = (handler, getattr(handler, "__call__", None))  # noqa: B004 - to be inspected
    for is_kind, kind, fate in _NEVER_RUN:
        if any(map(is_kind, functions)):
            raise EventHandlerError(
                f"The {role} {name} is {kind}, and nothing would {fate} it",
                hint="To await, read the events with emitter.stream() in a task of your own.",
            )
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # some functions written in C have none
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise EventHandlerError(
            f"The {role} {name}{signature} cannot be called with one event: {error}",
            hint="It must accept exactly one positional argument.",
        ) from None


def name_of(handler: object) -> str:
    """Return what messages call a handler."""
    try:
        name = getattr(handler, "__qualname__", None)
        module = getattr(handler, "__module__", None)
        if name is None:
            return repr(handler)
        return f"{module}.{name}" if module else str(name)
    except Exception:  # noqa: BLE001 - naming a handler that failed must not fail, too
        return object.__repr__(handler)


_NEVER_RUN = (
    (inspect.iscoroutinefunction, "a coroutine function", "await"),
    (inspect.isasyncgenfunction, "an asynchronous generator function", "iterate"),
    (inspect.isgeneratorfunction, "a generator function", "iterate"),
)
