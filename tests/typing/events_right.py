"""Right uses of the events: a type checker finds nothing, and knows what is in them."""

# pyright: strict

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, SupportsFloat, assert_type

from truthgpt_core.event_system import (
    EvaluationFinished,
    Event,
    EventEmitter,
    EventPayload,
    EventType,
    ModelSaved,
    Subscription,
    TrainingStarted,
    TrainingStep,
    emit_event,
    get_event_emitter,
    on_event,
)

LOST = EventType("chess.lost")


@dataclass(frozen=True, slots=True, kw_only=True)
class SquareReached(EventPayload, event_type=EventType("chess.square_reached")):
    """What an event of one's own holds."""

    square: str
    moves: int | None = None


def read(event: Event) -> None:
    """Read events by keys, or by the fields of their dataclass."""
    assert_type(event.type, EventType)
    assert_type(event.data["anything"], Any)
    assert_type(event.payload, EventPayload | None)
    match event.payload:
        case TrainingStep() as step:
            assert_type(step.step, int)
            assert_type(step.loss, SupportsFloat)
            assert_type(step.flops, int | None)
        case EvaluationFinished(metrics=metrics):
            assert_type(metrics, Mapping[str, float])
        case SquareReached(square=square):
            assert_type(square, str)
        case _:
            pass


def listen() -> None:
    """Listen to events."""
    assert_type(on_event(EventType.TRAINING_STEP, read, priority=1), Subscription)
    with get_event_emitter().on(None, print, critical=True) as subscription:
        assert_type(subscription, Subscription)
    on_event(SquareReached.event_type, read)


def emit(emitter: EventEmitter) -> None:
    """Emit a dataclass, or a type and any mapping."""
    emit_event(TrainingStep(step=1, loss=0.5))
    emit_event(ModelSaved(name="gpt2", path="out"))
    emit_event(SquareReached(square="e4"))
    emit_event(EventType.TRAINING_STARTED)
    emit_event(EventType.TRAINING_STARTED, {})
    emitter.emit(LOST, {"moves": [1]})
    emitter.emit(TrainingStarted(step=0, epoch=0, config={"training": {}}))
    assert_type(Event(TrainingStep(step=1, loss=0.5)).data, Mapping[str, Any])
