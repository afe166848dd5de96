"""The types of events, and one frozen dataclass for each type of TruthGPT's own.

In all of them `step` counts steps of the optimizer from the beginning of the run, resumed or
not; `epoch` counts from 0; `path` is a directory; `reason` and `note` are text for the user.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, SupportsFloat, final

from truthgpt_core.errors import TruthGPTError, did_you_mean

_NAMESPACED = re.compile(r"[A-Za-z][\w-]*(\.[A-Za-z][\w-]*)+", re.ASCII)


class EventError(TruthGPTError):
    """An event, its type or a handler of it is not one."""


@final
class EventType:
    """The type of an event: one object per name, so that types compare by identity.

    `EventType("myplugin.reached")` is a type of a plugin's own, made when it is first named.

    Args:
        name: a type of TruthGPT's own, such as `"training_step"`, or a name that begins with
            the plugin's and a dot; its parts are of letters, digits, `_` and `-`.

    Attributes:
        name: the name.

    Raises:
        EventError: it is neither.
    """

    __slots__ = ("name",)

    _known: ClassVar[dict[str, EventType]] = {}
    name: str

    TRAINING_STARTED: ClassVar[EventType]
    TRAINING_EPOCH_STARTED: ClassVar[EventType]
    TRAINING_STEP: ClassVar[EventType]
    TRAINING_NOTED: ClassVar[EventType]
    TRAINING_EPOCH_FINISHED: ClassVar[EventType]
    TRAINING_FINISHED: ClassVar[EventType]
    TRAINING_FAILED: ClassVar[EventType]
    EVALUATION_STARTED: ClassVar[EventType]
    EVALUATION_FINISHED: ClassVar[EventType]
    CHECKPOINT_SAVED: ClassVar[EventType]
    CHECKPOINT_LOADED: ClassVar[EventType]
    MODEL_LOADED: ClassVar[EventType]
    MODEL_SAVED: ClassVar[EventType]
    INFERENCE_STARTED: ClassVar[EventType]
    INFERENCE_FINISHED: ClassVar[EventType]
    INFERENCE_FAILED: ClassVar[EventType]
    REQUEST_STARTED: ClassVar[EventType]
    REQUEST_ENDED: ClassVar[EventType]
    PLUGIN_ACTIVATED: ClassVar[EventType]
    PLUGIN_DEACTIVATED: ClassVar[EventType]
    PLUGIN_FAILED: ClassVar[EventType]
    OPTIMIZATION_STARTED: ClassVar[EventType]
    OPTIMIZATION_APPLIED: ClassVar[EventType]
    OPTIMIZATION_NOTED: ClassVar[EventType]
    OPTIMIZATION_SKIPPED: ClassVar[EventType]
    OPTIMIZATION_REVERTED: ClassVar[EventType]
    OPTIMIZATION_FAILED: ClassVar[EventType]
    OPTIMIZATION_FINISHED: ClassVar[EventType]

    def __new__(cls, name: str) -> EventType:  # noqa: D102 - the class says it
        known = cls._known.get(name) if isinstance(name, str) else None
        if known is not None:
            return known
        if not isinstance(name, str) or not _NAMESPACED.fullmatch(name):
            hint = 'A plugin\'s own type begins with its name, as in "myplugin.reached".'
            meant = did_you_mean(name, cls._known) if isinstance(name, str) else None
            raise EventError(
                f"There is no event type {name!r}", hint=f"{meant} {hint}" if meant else hint
            )
        return cls._define(name)

    @classmethod
    def _define(cls, name: str) -> EventType:
        made = object.__new__(cls)
        made.name = name
        # Of two threads that name a new type, one defines it.
        return cls._known.setdefault(name, made)

    def __repr__(self) -> str:
        return f"EventType({self.name!r})"

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[type[EventType], tuple[str]]:
        # Copies and unpickled types are the one object that handlers are registered for.
        return EventType, (self.name,)


for _constant in [name for name in EventType.__annotations__ if name.isupper()]:
    setattr(EventType, _constant, EventType._define(_constant.lower()))


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPayload:
    """Base class of what events hold: a frozen dataclass for each type of event.

        @dataclass(frozen=True, slots=True, kw_only=True)
        class SquareReached(EventPayload, event_type=EventType("chess.square_reached")):
            square: str
            moves: int | None = None

    A field that is None is not set: it is left out of the data of the event.

    Attributes:
        event_type: the type of the events.
    """

    event_type: ClassVar[EventType]

    def __init_subclass__(cls, event_type: EventType | None = None) -> None:
        # A dataclass with slots is made twice, the second time without the argument.
        if event_type is not None:
            cls.event_type = event_type
        if not isinstance(getattr(cls, "event_type", None), EventType):
            raise EventError(
                f"{cls.__qualname__} does not say of which type its events are",
                hint=f'Write class {cls.__name__}(EventPayload, event_type=EventType("...")).',
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStarted(EventPayload, event_type=EventType.TRAINING_STARTED):
    """A run of training begins, or goes on from a checkpoint.

    Attributes:
        step: steps that are done, 0 of a new run.
        epoch: the first epoch to train.
        total_steps: steps that the run has at most, if that is known.
        config: the whole configuration as plain JSON, with `output_dir`.
    """

    step: int
    epoch: int
    total_steps: int | None = None
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEpochStarted(EventPayload, event_type=EventType.TRAINING_EPOCH_STARTED):
    """The epoch `epoch` begins or, in a run that is resumed, goes on after `step` steps."""

    epoch: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStep(EventPayload, event_type=EventType.TRAINING_STEP):
    """A step is done.

    Attributes:
        step: its number, from 1.
        loss: mean over its tokens, in nats; `float` of a tensor waits for the device.
        epoch: the epoch that it is in.
        learning_rate: what it was done with.
        grad_norm: L2 norm of the gradient, before clipping.
        tokens: how many it read, padding left out.
        tokens_per_second: `tokens`, divided by the seconds that it took.
        flops: floating-point operations of the model's own arithmetic, if that is known.
        refused: whether it left the weights as they were, as its loss or gradient is not finite.
    """

    step: int
    loss: SupportsFloat
    epoch: int | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    flops: int | None = None
    refused: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingNoted(EventPayload, event_type=EventType.TRAINING_NOTED):
    """A run has found something out: a spike of the loss, a return to a checkpoint.

    Attributes:
        step: steps that are done.
        about: a word for it, such as `spike`; of a tracker's note its name.
        note: a sentence.
    """

    step: int
    about: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEpochFinished(EventPayload, event_type=EventType.TRAINING_EPOCH_FINISHED):
    """An epoch is complete.

    Attributes:
        epoch: its number, from 0.
        step: steps that are done.
        loss: mean over its tokens, in nats; None if no step of it changed the weights.
    """

    epoch: int
    step: int
    loss: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFinished(EventPayload, event_type=EventType.TRAINING_FINISHED):
    """A run ended without an error.

    Attributes:
        step: steps that are done.
        epoch: epochs that are complete.
        tokens: how many were read in all, padding left out.
        interrupted: the signal that ended it early, such as `SIGTERM`.
    """

    step: int
    epoch: int | None = None
    tokens: int | None = None
    interrupted: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFailed(EventPayload, event_type=EventType.TRAINING_FAILED):
    """A run ended after `step` steps with an error, which `reason` names in one line."""

    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationStarted(EventPayload, event_type=EventType.EVALUATION_STARTED):
    """An evaluation on the validation data begins, after `step` steps."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationFinished(EventPayload, event_type=EventType.EVALUATION_FINISHED):
    """An evaluation on the validation data is complete, after `step` steps.

    `metrics` are `loss` in nats per token, `perplexity`, and `tokens` that were predicted.
    """

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved(EventPayload, event_type=EventType.CHECKPOINT_SAVED):
    """A checkpoint of the run after `step` steps is complete in `path`."""

    path: str
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLoaded(EventPayload, event_type=EventType.CHECKPOINT_LOADED):
    """A run goes on from the checkpoint in `path`, after its `step` steps."""

    path: str
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoaded(EventPayload, event_type=EventType.MODEL_LOADED):
    """A model is in memory.

    Attributes:
        name: what was asked for: a directory, a file or a hub id.
        path: where its files are; in the cache if they were converted.
        device: where it is, in torch's notation.
    """

    name: str
    path: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSaved(EventPayload, event_type=EventType.MODEL_SAVED):
    """The model that was made from the one called `name` is saved in `path`."""

    name: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceStarted(EventPayload, event_type=EventType.INFERENCE_STARTED):
    """A call that generates texts begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceFinished(EventPayload, event_type=EventType.INFERENCE_FINISHED):
    """A call that generates texts is complete.

    Attributes:
        tokens: how many were computed, over all texts.
        seconds: how long it took.
        cached: whether all came from the response cache.
    """

    tokens: int
    seconds: float
    cached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceFailed(EventPayload, event_type=EventType.INFERENCE_FAILED):
    """A call that generates texts ended with an error, which `reason` names in one line."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStarted(EventPayload, event_type=EventType.REQUEST_STARTED):
    """One text leaves the queue, and its prompt is read from now on.

    Attributes:
        prompt_tokens: how many tokens the prompt has.
        reused_tokens: how many of them were taken from another text that begins the same way.
        waited: seconds in the queue.
    """

    prompt_tokens: int
    reused_tokens: int
    waited: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnded(EventPayload, event_type=EventType.REQUEST_ENDED):
    """One text is over, with all that was computed of it.

    Attributes:
        reason: `eos_token`, `length`, `stop_sequence`, `cancelled`, `timeout` or `error`.
        tokens: how many tokens it has.
        first_token_seconds: from when it was asked for to its first token; None if it has none.
        seconds: from when it was asked for to its end.
    """

    reason: str
    tokens: int
    first_token_seconds: float | None = None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginActivated(EventPayload, event_type=EventType.PLUGIN_ACTIVATED):
    """The plugin called `plugin` is active; its `version` is empty if it has none."""

    plugin: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginDeactivated(EventPayload, event_type=EventType.PLUGIN_DEACTIVATED):
    """The plugin called `plugin`, of `version`, is not active any more."""

    plugin: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginFailed(EventPayload, event_type=EventType.PLUGIN_FAILED):
    """A plugin cannot be activated.

    Attributes:
        plugin: its name.
        version: its version; empty if it has none.
        reason: why.
    """

    plugin: str
    version: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationStarted(EventPayload, event_type=EventType.OPTIMIZATION_STARTED):
    """The optimization called `optimization` is about to be applied to a model."""

    optimization: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationApplied(EventPayload, event_type=EventType.OPTIMIZATION_APPLIED):
    """`optimization` was applied to a model, to `covered` modules, parameters or buffers."""

    optimization: str
    covered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationNoted(EventPayload, event_type=EventType.OPTIMIZATION_NOTED):
    """An optimization tells, for the report, what only a running model shows.

    Attributes:
        optimization: its name.
        note: a sentence.
        about: a word for it; a later note about the same takes the place of an earlier one.
    """

    optimization: str
    note: str
    about: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationSkipped(EventPayload, event_type=EventType.OPTIMIZATION_SKIPPED):
    """`optimization` cannot be applied on this machine, and `reason` says why."""

    optimization: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationReverted(EventPayload, event_type=EventType.OPTIMIZATION_REVERTED):
    """`optimization` was measured and not accepted, and `reason` says why."""

    optimization: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationFailed(EventPayload, event_type=EventType.OPTIMIZATION_FAILED):
    """Applying or measuring `optimization` ended with an error, which is the `reason`."""

    optimization: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationFinished(EventPayload, event_type=EventType.OPTIMIZATION_FINISHED):
    """`optimization` was measured and accepted, and `reason` says what it gains."""

    optimization: str
    reason: str
