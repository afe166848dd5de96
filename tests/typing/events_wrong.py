"""Wrong uses of the events: a type checker says what is marked, and nothing else."""

from __future__ import annotations

from typing import assert_type

from truthgpt_core.event_system import (
    Event,
    EventEmitter,
    EventField,
    EventType,
    EventView,
    TrainingStep,
    emit_event,
    on_event,
)


def read(event: Event) -> None:
    """Read what is not there, or as what it is not."""
    step = event.view(TrainingStep)
    # error: attr-defined, reportAttributeAccessIssue
    print(step.stepp)
    # error: assert-type, reportAssertTypeFailure
    assert_type(step.step, str)
    # error: operator, reportOperatorIssue
    print(step.loss + 1)
    # error: arg-type, reportArgumentType
    event.view("TrainingStep")
    # error: index, reportIndexIssue
    event.data["step"] = 1
    # error: attr-defined, reportAttributeAccessIssue
    print(event.kind)


def two(event: Event, other: Event) -> None:
    """A handler is given one event."""


def text(event: str) -> None:
    """A handler is given an event."""


def listen(emitter: EventEmitter) -> None:
    """Register what is no handler, and emit what is no event."""
    # error: arg-type, reportArgumentType, reportCallIssue
    on_event(EventType.TRAINING_STEP, two)
    # error: arg-type, reportArgumentType, reportCallIssue
    on_event(EventType.TRAINING_STEP, text)
    # error: call-overload, reportArgumentType, reportCallIssue
    on_event("training_step", read)
    # error: attr-defined, reportAttributeAccessIssue
    on_event(EventType.TRAINING_STEPS, read)
    # error: call-overload, reportCallIssue
    on_event(EventType.TRAINING_STEP, read, 10)
    # error: call-overload, reportArgumentType, reportCallIssue
    on_event(EventType.TRAINING_STEP, read, every="second")
    # error: arg-type, reportArgumentType
    emit_event("training_step", {})
    # error: call-arg, reportCallIssue
    emit_event(EventType.TRAINING_STEP, step=1)
    # error: arg-type, reportArgumentType
    emit_event(EventType.TRAINING_STEP, [1])
    # error: attr-defined, reportAttributeAccessIssue
    emitter.on(EventType.TRAINING_STEP, read).cancel()
    # error: call-arg, reportCallIssue
    emitter.stream(size=10)


# error: type-var, reportArgumentType
@on_event(EventType.TRAINING_STEP)
def no_event() -> None:
    """A handler is given an event."""


class Reached(EventView):
    """A view whose types are no event types."""

    # error: assignment, reportAssignmentType
    event_types = ("chess.reached",)

    # error: assignment, reportAssignmentType
    square: str = EventField[int]()
