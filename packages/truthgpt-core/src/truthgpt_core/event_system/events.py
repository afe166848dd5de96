"""What events are: their types, the events themselves, and typed views of their data.

Import these names from `truthgpt_core.event_system`; they stand here so that the
emitter and the stream can both use them.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError
from os import PathLike
from time import time
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NoReturn, SupportsFloat, TypeVar, final, overload

from truthgpt_core.errors import TruthGPTError, did_you_mean

V = TypeVar("V")
ViewT = TypeVar("ViewT", bound="EventView")

NO_DATA: Mapping[str, Any] = MappingProxyType({})
"""The data of an event that was emitted without any."""

_NAMESPACED = re.compile(r"[A-Za-z][\w-]*(\.[A-Za-z][\w-]*)+", re.ASCII)


class EventError(TruthGPTError):
    """Base class of the errors about events."""


class EventTypeError(EventError):
    """An event type is unknown, or a new one has an unsuitable name."""


class EventViewError(EventError):
    """A view was asked of an event of another type, or for a field the event lacks."""


@final
class EventType:
    """What kind of news an event is.

    There is one object per name, so types compare by identity. `EventType("training_step")`
    looks a known type up, `EventType.custom("myplugin.thing")` adds one.

    Args:
        name: the name of a known type.

    Raises:
        EventTypeError: no type has that name.
    """

    __slots__ = ("_name",)

    _known: ClassVar[dict[str, EventType]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()
    _name: str

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
    PLUGIN_REGISTERED: ClassVar[EventType]
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
        _require_name(name)
        known = cls._known.get(name)
        if known is None:
            hint = did_you_mean(name, cls._known) or "EventType.known() lists the known types."
            raise EventTypeError(f'There is no event type "{name}"', hint=hint)
        return known

    @classmethod
    def custom(cls, name: str) -> EventType:
        """Return the event type `name` of a third party, adding it if it is new.

        A type is never taken back, not even with the plugin that added it: the
        plugin's module stays imported and keeps using the object it got.

        Args:
            name: parts of letters, digits, `_` and `-`, joined by dots; the first is
                the plugin's name, as in `"myplugin.thing"`.

        Raises:
            EventTypeError: the name has no dot or holds other characters.
        """
        _require_name(name)
        if not _NAMESPACED.fullmatch(name):
            if name in cls._known:
                hint = f"That type is TruthGPT's own: use EventType.{name.upper()}."
            else:
                suggestion = did_you_mean(name, cls._known)
                hint = 'Put your plugin\'s name before it, as in "myplugin.thing".'
                hint = f"{suggestion} {hint}" if suggestion else hint
            raise EventTypeError(f'"{name}" cannot name a custom event type', hint=hint)
        return cls._define(name)

    @classmethod
    def known(cls) -> tuple[EventType, ...]:
        """Return every type: TruthGPT's own, then the custom ones in the order they were added."""
        with cls._lock:
            return tuple(cls._known.values())

    @classmethod
    def _define(cls, name: str) -> EventType:
        with cls._lock:
            event_type = cls._known.get(name)
            if event_type is None:
                event_type = object.__new__(cls)
                event_type._name = name
                cls._known[name] = event_type
            return event_type

    @property
    def name(self) -> str:
        """`"training_step"` for `TRAINING_STEP`; a custom type's own name."""
        return self._name

    def __repr__(self) -> str:
        if "." in self._name:
            return f"EventType.custom({self._name!r})"
        return f"EventType.{self._name.upper()}"

    def __str__(self) -> str:
        return self._name

    def __reduce__(self) -> tuple[Callable[[str], EventType], tuple[str]]:
        # Copies and unpickled types must be the one object that handlers are kept under.
        return (EventType.custom if "." in self._name else EventType), (self._name,)


def _require_name(name: object) -> None:
    if not isinstance(name, str):
        raise EventTypeError(f"The name of an event type is a string, and {name!r} is none")


for _constant in [name for name in EventType.__annotations__ if name.isupper()]:
    setattr(EventType, _constant, EventType._define(_constant.lower()))


@final
class Event:
    """One piece of news. It cannot be changed.

    Args:
        event_type: what kind of news it is.
        data: what there is to tell. The mapping is copied, so that nobody can change it;
            its values are the very same, and are not looked at, so a tensor among them
            costs no synchronization. A value that can be changed still can: whoever
            emits it leaves them unchanged afterwards.
        timestamp: seconds since the epoch; now, if None.

    Attributes:
        type: what kind of news it is.
        data: an immutable mapping, `event.data["step"]`.
        timestamp: when it was emitted, in seconds since the epoch.

    Raises:
        EventError: `data` is no mapping.
    """

    __slots__ = ("data", "timestamp", "type")

    type: EventType
    data: Mapping[str, Any]
    timestamp: float

    def __init__(
        self,
        event_type: EventType,
        data: Mapping[str, Any] = NO_DATA,
        timestamp: float | None = None,
    ) -> None:
        if data is not NO_DATA:
            if not isinstance(data, dict) and not isinstance(data, Mapping):
                raise EventError(
                    f"The data of {event_type} must be a mapping, not {type(data).__name__}"
                )
            # A plain dict: one with default values would take in each key that is asked for.
            data = MappingProxyType(dict(data))
        _set(self, "type", event_type)
        _set(self, "data", data)
        _set(self, "timestamp", time() if timestamp is None else timestamp)

    def view(self, view: Callable[[Event], ViewT]) -> ViewT:
        """Return the data as an `EventView` whose fields have types a type checker knows.

        Args:
            view: a subclass of `EventView`, such as `TrainingStep`.

        Raises:
            EventViewError: the view is not one of this type of event.
        """
        return view(self)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"an event cannot be changed: {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"an event cannot be changed: {name}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Event, (self.type, dict(self.data), self.timestamp)

    def __repr__(self) -> str:
        # The values are left out: showing a tensor synchronizes its device.
        return f"Event({self.type}: {', '.join(map(str, self.data)) or 'no data'})"


_set = object.__setattr__


class EventField(Generic[V]):
    """A field of an `EventView`: `step = EventField[int]()`."""

    _name: str

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, view: None, owner: type) -> EventField[V]: ...
    @overload
    def __get__(self, view: EventView, owner: type) -> V: ...
    def __get__(self, view: EventView | None, owner: type) -> EventField[V] | V:
        if view is None:
            return self
        event = view.event
        try:
            value: V = event.data[self._name]
        except KeyError:
            has = ", ".join(map(str, event.data)) or "no data"
            raise EventViewError(
                f'The event {event.type} was emitted without "{self._name}"',
                hint=f"It has: {has}.",
            ) from None
        return value


class EventView:
    """Typed access to the data of an event; a field that is missing is an error when it is read.

    Subclass it, name the types of event it reads in `event_types` (none: any), and
    declare the fields with `EventField`.

    Args:
        event: the event to read.

    Raises:
        EventViewError: the view is not one of this type of event.
    """

    __slots__ = ("event",)

    event_types: ClassVar[tuple[EventType, ...]] = ()

    def __init__(self, event: Event) -> None:
        if self.event_types and event.type not in self.event_types:
            meant = " or ".join(map(str, self.event_types))
            raise EventViewError(
                f"{type(self).__name__} is a view of {meant}, and the event is {event.type}"
            )
        self.event = event


class TrainingStep(EventView):
    """One optimizer step. `loss` may be a tensor: `float(view.loss)` waits for the device.

    `tokens` are those of this step, padding left out; `grad_norm` is of before clipping. `flops`
    are the operations that the model's own arithmetic takes in it, None if that is not known.
    """

    __slots__ = ()
    event_types = (EventType.TRAINING_STEP,)

    step = EventField[int]()
    epoch = EventField[int]()
    loss = EventField[SupportsFloat]()
    learning_rate = EventField[float]()
    grad_norm = EventField[float]()
    tokens = EventField[int]()
    tokens_per_second = EventField[float]()
    flops = EventField[int | None]()


class TrainingNoted(EventView):
    """Something a run found out: a step left out, a spike of the loss, a return to a checkpoint.

    `about` is a word for it, such as `spike`; `note` is a sentence.
    """

    __slots__ = ()
    event_types = (EventType.TRAINING_NOTED,)

    step = EventField[int]()
    about = EventField[str]()
    note = EventField[str]()


class EvaluationFinished(EventView):
    """The metrics of one evaluation, by name."""

    __slots__ = ()
    event_types = (EventType.EVALUATION_FINISHED,)

    step = EventField[int]()
    metrics = EventField[Mapping[str, float]]()


class CheckpointEvent(EventView):
    """A checkpoint was saved or loaded."""

    __slots__ = ()
    event_types = (EventType.CHECKPOINT_SAVED, EventType.CHECKPOINT_LOADED)

    path = EventField[str | PathLike[str]]()
    step = EventField[int]()


class ModelEvent(EventView):
    """A model was loaded or saved."""

    __slots__ = ()
    event_types = (EventType.MODEL_LOADED, EventType.MODEL_SAVED)

    name = EventField[str]()
    path = EventField[str | PathLike[str]]()


class InferenceFinished(EventView):
    """Texts were generated; `cached` says that they came from the cache."""

    __slots__ = ()
    event_types = (EventType.INFERENCE_FINISHED,)

    tokens = EventField[int]()
    seconds = EventField[float]()
    cached = EventField[bool]()


class PluginEvent(EventView):
    """Something happened to a plugin; `reason` says why it failed."""

    __slots__ = ()
    event_types = (
        EventType.PLUGIN_REGISTERED,
        EventType.PLUGIN_ACTIVATED,
        EventType.PLUGIN_DEACTIVATED,
        EventType.PLUGIN_FAILED,
    )

    plugin = EventField[str]()
    version = EventField[str]()
    reason = EventField[str]()


class OptimizationEvent(EventView):
    """A step of an optimization; `reason` says why it was skipped, reverted or failed.

    An optimization emits `OPTIMIZATION_NOTED` for what it finds out only when the model
    runs, such as what could not be compiled: a sentence in `note`, for the report. A later
    note with the same `about` takes the place of an earlier one.
    """

    __slots__ = ()
    event_types = (
        EventType.OPTIMIZATION_STARTED,
        EventType.OPTIMIZATION_APPLIED,
        EventType.OPTIMIZATION_NOTED,
        EventType.OPTIMIZATION_SKIPPED,
        EventType.OPTIMIZATION_REVERTED,
        EventType.OPTIMIZATION_FAILED,
        EventType.OPTIMIZATION_FINISHED,
    )

    optimization = EventField[str]()
    reason = EventField[str]()
    note = EventField[str]()
    about = EventField[str]()
