"""Events: one-way news between modules that do not know one another.

    def on_training_step(event):
        print(f"Step {event.data['step']}: loss={event.data['loss']}")

    on_event(EventType.TRAINING_STEP, on_training_step)
    emit_event(EventType.TRAINING_STEP, {"step": 100, "loss": 0.5})

What can be relied on:

- Order: higher `priority` first, then registration, handlers of one type and
  handlers of all types in one order.
- One handler's exception does not keep the others from running. It is logged and
  counted; a `critical` handler's is raised again after all have run.
- Handlers run in the thread that emits, before `emit` returns. A handler may emit:
  the inner event is delivered whole before the outer one goes on.
- A handler may add and remove handlers, and so may other threads. One that is added
  gets no event whose `emit` has begun; one that is removed gets no call that has not
  begun.
- Emitting to nobody builds no event. What the data holds is never copied, converted or
  looked at; the mapping itself is copied, so that an event stays as it was emitted.
"""

from truthgpt_core.event_system.emitter import (
    EventEmitter,
    Subscription,
    emit_event,
    get_event_emitter,
    on_event,
)
from truthgpt_core.event_system.events import (
    CheckpointEvent,
    EvaluationFinished,
    Event,
    EventError,
    EventField,
    EventType,
    EventTypeError,
    EventView,
    EventViewError,
    InferenceFinished,
    ModelEvent,
    OptimizationEvent,
    PluginEvent,
    TrainingNoted,
    TrainingStep,
)
from truthgpt_core.event_system.handlers import EventHandlerError
from truthgpt_core.event_system.stream import EventStream

__all__ = [
    "CheckpointEvent",
    "EvaluationFinished",
    "Event",
    "EventEmitter",
    "EventError",
    "EventField",
    "EventHandlerError",
    "EventStream",
    "EventType",
    "EventTypeError",
    "EventView",
    "EventViewError",
    "InferenceFinished",
    "ModelEvent",
    "OptimizationEvent",
    "PluginEvent",
    "Subscription",
    "TrainingNoted",
    "TrainingStep",
    "emit_event",
    "get_event_emitter",
    "on_event",
]
