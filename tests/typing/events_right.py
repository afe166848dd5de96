"""Right uses of the events: a type checker finds nothing, and knows what is in them."""

# pyright: strict

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat, assert_type

from truthgpt_core.event_system import (
    EvaluationFinished,
    Event,
    EventEmitter,
    EventField,
    EventStream,
    EventType,
    EventView,
    OptimizationEvent,
    Subscription,
    TrainingStep,
    emit_event,
    get_event_emitter,
    on_event,
)

REACHED = EventType.custom("chess.reached")


class Reached(EventView):
    """A view of an event of one's own."""

    event_types = (REACHED,)

    square = EventField[str]()
    moves = EventField[list[int]]()


def read(event: Event) -> None:
    """Read events through views."""
    step = event.view(TrainingStep)
    assert_type(step, TrainingStep)
    assert_type(step.step, int)
    assert_type(step.loss, SupportsFloat)
    assert_type(event.view(EvaluationFinished).metrics, Mapping[str, float])
    assert_type(event.view(OptimizationEvent).optimization, str)
    assert_type(Reached(event).moves, list[int])
    assert_type(Reached.square, EventField[str])
    assert_type(event.data["anything"], Any)
    assert_type(event.type, EventType)


def listen() -> None:
    """Listen to events and send them."""
    assert_type(on_event(EventType.TRAINING_STEP, read, priority=1, every=10), Subscription)
    with get_event_emitter().on(None, print, filter=lambda event: event.type is REACHED) as sub:
        assert_type(sub, Subscription)
    emit_event(REACHED, {"square": "e4", "moves": [1]})
    emit_event(EventType.TRAINING_STARTED)
    assert_type(EventEmitter().has_handlers(REACHED), bool)


@on_event(EventType.TRAINING_FINISHED, once=True)
def finished(event: Event) -> str:
    """Stay what it is though it was registered."""
    return str(event)


def a_registered_function_keeps_its_type(event: Event) -> None:
    """What is decorated can be called as before."""
    assert_type(finished(event), str)
    handler: Callable[[Event], str] = finished
    assert_type(handler(event), str)


async def stream(emitter: EventEmitter) -> None:
    """Read events in an event loop."""
    async with emitter.stream(EventType.TRAINING_STEP, maxsize=10) as steps:
        assert_type(steps, EventStream)
        async for event in steps:
            assert_type(event, Event)
