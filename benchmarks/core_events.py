"""Emitting events: what an emitter costs on top of a loop.

pyee and blinker pass on what they are given and build no event, and the first handler
that raises ends their round. blinker holds its receivers strongly here: looking through
its weak references takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from core_timing import TURNS, Contest, Way, calling, if_installed

from truthgpt_core.event_system import Event, EventEmitter, EventType

DATA = {"step": 100, "loss": 0.5}

Handler = Callable[..., None]


def loop(handlers: tuple[Handler, ...]) -> Callable[[EventType, Mapping[str, Any]], None]:
    """Return the reference: it builds the same event, loops over a tuple and guards each call."""

    def emit(event_type: EventType, data: Mapping[str, Any]) -> None:
        event = Event(event_type, data)
        for handler in handlers:
            try:
                handler(event)
            except Exception as error:  # noqa: BLE001 - as the emitter does
                print(error)

    return emit


def emitting(count: int) -> Contest:
    """Emit to a number of handlers that do nothing."""
    handlers = tuple(_handler() for _ in range(count))
    emitter = EventEmitter()
    for handler in handlers:
        emitter.on(EventType.TRAINING_STEP, handler)
    names = {"step": EventType.TRAINING_STEP, "data": DATA}
    return Contest(
        f"emit, {count} handler{'s' * (count != 1)}",
        (
            calling("a loop", "emit(step, data)", names | {"emit": loop(handlers)}),
            calling("**truthgpt**", "at.emit(step, data)", names | {"at": emitter}, reach=1.5),
            *if_installed({"pyee": lambda: _pyee(handlers), "blinker": lambda: _blinker(count)}),
        ),
        TURNS,
    )


def _handler() -> Handler:
    def handler(event: object) -> None:
        pass

    return handler


def _pyee(handlers: tuple[Handler, ...]) -> Way:
    from pyee import EventEmitter as Emitter

    emitter = Emitter()
    for handler in handlers:
        emitter.add_listener("training_step", handler)
    return calling("pyee", "at.emit('training_step', data)", {"at": emitter, "data": DATA})


def _receiver() -> Handler:
    def receiver(sender: object, data: object) -> None:
        pass

    return receiver


def _blinker(count: int) -> Way:
    import blinker

    signal = blinker.Signal()
    for _ in range(count):
        signal.connect(_receiver(), weak=False)
    return calling("blinker", "at.send(None, data=data)", {"at": signal, "data": DATA})
