"""Wrong uses of the events: a type checker says what is marked, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from truthgpt_core.event_system import (
    EvaluationFinished,
    Event,
    EventEmitter,
    EventPayload,
    EventType,
    TrainingStep,
    emit_event,
    on_event,
)


def read(event: Event) -> None:
    """Read what is not there, or as what it is not."""
    # error: index, reportIndexIssue
    event.data["step"] = 1
    # error: attr-defined, reportAttributeAccessIssue
    print(event.kind)
    # error: union-attr, reportOptionalMemberAccess
    print(event.payload.event_type)
    if isinstance(event.payload, TrainingStep):
        # error: attr-defined, reportAttributeAccessIssue
        print(event.payload.stepp)
        # error: operator, reportOperatorIssue
        print(event.payload.loss + 1)
        # error: misc, reportAttributeAccessIssue
        event.payload.step = 2


def two(event: Event, other: Event) -> None:
    """A handler is given one event."""


def text(event: str) -> None:
    """A handler is given an event."""


def listen() -> None:
    """Register what is no handler."""
    # error: arg-type, reportArgumentType
    on_event(EventType.TRAINING_STEP, two)
    # error: arg-type, reportArgumentType
    on_event(EventType.TRAINING_STEP, text)
    # error: arg-type, reportArgumentType
    on_event("training_step", read)
    # error: arg-type, reportArgumentType
    on_event(TrainingStep, read)
    # error: attr-defined, reportAttributeAccessIssue
    on_event(EventType.TRAINING_STEPS, read)
    # error: call-arg, reportCallIssue
    on_event(EventType.TRAINING_STEP, read, 10)
    # error: attr-defined, reportAttributeAccessIssue
    on_event(EventType.TRAINING_STEP, read).cancel()


def emit(emitter: EventEmitter) -> None:
    """Emit what is not an event, or one with wrong fields."""
    # error: call-overload, reportArgumentType
    emit_event("training_step", {})
    # error: call-overload, reportCallIssue
    emit_event(EventType.TRAINING_STEP, step=1)
    # error: call-overload, reportArgumentType
    emitter.emit(EventType.TRAINING_STEP, [1])
    # error: call-overload, reportArgumentType
    emitter.emit(TrainingStep(step=1, loss=0.5), {"lr": 0.1})
    # error: call-overload, reportArgumentType, reportCallIssue
    emitter.emit(TrainingStep)
    # error: call-arg, reportCallIssue
    emitter.emit(TrainingStep(step=1))
    # error: arg-type, reportArgumentType
    emitter.emit(TrainingStep(step="1", loss=0.5))
    # error: call-arg, reportCallIssue
    emitter.emit(TrainingStep(step=1, loss=0.5, lr=0.1))
    # error: call-arg, reportCallIssue
    emitter.emit(EvaluationFinished(1, {}))


@dataclass(frozen=True, slots=True, kw_only=True)
# error: arg-type, reportArgumentType, reportGeneralTypeIssues
class SquareReached(EventPayload, event_type="chess.square_reached"):
    """The type of an event is no name."""

    square: str
