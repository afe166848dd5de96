"""Events: one-way news between modules that do not know one another.

    def on_training_step(event):
        print(f"Step {event.data['step']}: loss={event.data['loss']}")

    on_event(EventType.TRAINING_STEP, on_training_step)
    emit_event(TrainingStep(step=100, loss=0.5))
    emit_event(EventType.TRAINING_STEP, {"step": 100, "loss": 0.5})

Each type of TruthGPT's own has a frozen dataclass, which is all that is emitted of it; a caller
may emit a type and any mapping instead. What can be relied on:

- Order: higher `priority` first, then registration, handlers of one type and
  handlers of all types in one order.
- One handler's exception does not keep the others from running. It is logged and
  counted; a `critical` handler's is raised again after all have run.
- Handlers run in the thread that emits, before `emit` returns. A handler may emit:
  the inner event is delivered whole before the outer one goes on.
- A handler may add and remove handlers, and so may other threads. One that is added
  gets no event whose `emit` has begun; one that is removed gets no call that has not
  begun. A transaction that rolls back undoes both.
- Emitting without handlers builds no event. The values in an event are never copied, converted
  or looked at; the mapping itself is copied, so that an event stays as it was emitted.
"""

from truthgpt_core.event_system.emitter import (
    Event,
    EventEmitter,
    Subscription,
    emit_event,
    get_event_emitter,
    on_event,
)
from truthgpt_core.event_system.events import (
    CheckpointLoaded,
    CheckpointSaved,
    EvaluationFinished,
    EvaluationStarted,
    EventError,
    EventPayload,
    EventType,
    InferenceFailed,
    InferenceFinished,
    InferenceStarted,
    ModelLoaded,
    ModelSaved,
    OptimizationApplied,
    OptimizationFailed,
    OptimizationFinished,
    OptimizationNoted,
    OptimizationReverted,
    OptimizationSkipped,
    OptimizationStarted,
    PluginActivated,
    PluginDeactivated,
    PluginFailed,
    RequestEnded,
    RequestStarted,
    TrainingEpochFinished,
    TrainingEpochStarted,
    TrainingFailed,
    TrainingFinished,
    TrainingNoted,
    TrainingStarted,
    TrainingStep,
)

__all__ = [
    "CheckpointLoaded",
    "CheckpointSaved",
    "EvaluationFinished",
    "EvaluationStarted",
    "Event",
    "EventEmitter",
    "EventError",
    "EventPayload",
    "EventType",
    "InferenceFailed",
    "InferenceFinished",
    "InferenceStarted",
    "ModelLoaded",
    "ModelSaved",
    "OptimizationApplied",
    "OptimizationFailed",
    "OptimizationFinished",
    "OptimizationNoted",
    "OptimizationReverted",
    "OptimizationSkipped",
    "OptimizationStarted",
    "PluginActivated",
    "PluginDeactivated",
    "PluginFailed",
    "RequestEnded",
    "RequestStarted",
    "Subscription",
    "TrainingEpochFinished",
    "TrainingEpochStarted",
    "TrainingFailed",
    "TrainingFinished",
    "TrainingNoted",
    "TrainingStarted",
    "TrainingStep",
    "emit_event",
    "get_event_emitter",
    "on_event",
]
