"""What an event holds, and that nobody looks at it before a handler does."""

from __future__ import annotations

import asyncio
import collections
import copy
import dataclasses
import logging
import pickle
import sys
import types
from collections.abc import Mapping

import pytest

from truthgpt_core.event_system import (
    CheckpointEvent,
    EvaluationFinished,
    Event,
    EventEmitter,
    EventError,
    EventField,
    EventType,
    EventView,
    EventViewError,
    InferenceFinished,
    ModelEvent,
    OptimizationEvent,
    PluginEvent,
    TrainingStep,
)

STEP = EventType.TRAINING_STEP


LOOKS = (
    "bool float int index complex len iter next getitem contains hash eq ne lt le gt ge add "
    "repr str format getattr copy deepcopy reduce reduce_ex getstate array call neg abs round"
)


def untouchable(name):
    def touched(self, *args):
        raise AssertionError(f"a value was looked at: {name}")

    return touched


class Tensor:
    """What stands for a tensor on a device: each look at its value would wait for the device."""

    for _name in LOOKS.split():
        vars()[f"__{_name}__"] = untouchable(_name)


@pytest.fixture
def emitter():
    return EventEmitter()


# Immutable


@pytest.mark.parametrize("arguments", [(), ({},), ({"step": 1},)])
def test_data_is_an_immutable_mapping(emitter, arguments):
    """Partial, empty or left out, the data is a mapping that cannot be written to."""
    seen = []
    emitter.on(STEP, seen.append)
    emitter.emit(STEP, *arguments)
    data = seen[0].data
    assert isinstance(data, Mapping)
    assert dict(data) == (arguments[0] if arguments else {})
    with pytest.raises(TypeError):
        data["step"] = 2
    with pytest.raises(TypeError):
        del data["step"]
    for name in ("clear", "pop", "popitem", "setdefault", "update"):
        assert not hasattr(data, name)


def test_an_event_cannot_be_changed():
    """Neither attribute of an event can be set or deleted."""
    event = Event(STEP)
    for name in ("type", "data", "timestamp", "more"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, name, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        del event.type


def test_an_event_stays_as_it_was_emitted(emitter):
    """A loop that uses one dict for all its events leaves those it emitted as they were."""
    seen = []
    emitter.on(STEP, seen.append)
    data = {}
    for step in range(3):
        data["step"] = step
        emitter.emit(STEP, data)
    assert [event.data["step"] for event in seen] == [0, 1, 2]


@pytest.mark.parametrize(
    "data",
    [
        collections.defaultdict(list, step=1),
        collections.OrderedDict(step=1),
        collections.UserDict(step=1),
        collections.ChainMap({"step": 1}),
        types.MappingProxyType({"step": 1}),
    ],
)
def test_any_mapping_is_data(emitter, data):
    """Whatever mapping is emitted, asking for what it lacks adds nothing, to it or to the event."""
    seen = []
    emitter.on(STEP, seen.append)
    emitter.emit(STEP, data)
    with pytest.raises(KeyError):
        seen[0].data["absent"]
    assert dict(seen[0].data) == dict(data) == {"step": 1}


@pytest.mark.parametrize("data", [None, 3, [("step", 1)], "step"])
def test_data_that_is_no_mapping_is_told(emitter, data):
    """The error names the event and what was given, whatever the handlers do."""
    emitter.on(STEP, print)
    with pytest.raises(
        EventError, match=f"training_step must be a mapping, not {type(data).__name__}"
    ):
        emitter.emit(STEP, data)


def test_an_event_can_be_copied_and_pickled():
    """An event can be sent to another process, and is what it was there."""
    event = Event(STEP, {"step": 1}, timestamp=2.0)
    for again in (copy.copy(event), copy.deepcopy(event), pickle.loads(pickle.dumps(event))):
        assert (again.type, dict(again.data), again.timestamp) == (STEP, {"step": 1}, 2.0)


# Never looked at


def test_emitting_never_synchronizes_a_device(emitter, caplog):
    """No way of listening, failing or showing looks at a value before the handler does."""
    seen = []
    tensor = Tensor()

    def failing(event):
        raise ValueError

    emitter.on(STEP, failing)
    emitter.on(STEP, seen.append)
    emitter.on(None, seen.append, priority=1)
    emitter.on(STEP, seen.append, once=True)
    emitter.on(STEP, seen.append, every=1, filter=lambda event: "loss" in event.data)
    stream = emitter.stream(STEP, maxsize=1)
    with caplog.at_level(logging.DEBUG):
        for _ in range(2):
            emitter.emit(STEP, {"loss": tensor})
    assert len(seen) == 7
    assert all(event.data["loss"] is tensor for event in seen)
    assert all(event.view(TrainingStep).loss is tensor for event in seen)
    assert repr(seen[0]) == "Event(training_step: loss)"
    assert "training_step" in caplog.text
    stream.close()
    assert asyncio.run(anext(stream)).data["loss"] is tensor


def test_emitting_to_nobody_does_not_even_look_at_the_mapping(emitter):
    """Data that nobody gets is not read, whatever other events are listened to."""
    emitter.on(EventType.MODEL_LOADED, print)
    emitter.emit(STEP, Tensor())


def test_emitting_to_nobody_calls_nothing(emitter):
    """An emit without handlers is one call and one look-up: no event is built."""
    emitter.emit(STEP)  # who listens is worked out once
    calls = []

    def note(frame, event, argument):
        if event in ("call", "c_call"):
            calls.append(getattr(argument, "__name__", frame.f_code.co_name))

    data = {"step": 1}
    sys.setprofile(note)
    try:
        emitter.emit(STEP, data)
    finally:
        sys.setprofile(None)
    assert calls == ["emit", "get", "setprofile"]


# Types and views

LIFE_CYCLES = {
    "training": "started epoch_started step epoch_finished finished failed",
    "evaluation": "started finished",
    "checkpoint": "saved loaded",
    "model": "loaded saved",
    "inference": "started finished failed",
    "plugin": "registered activated deactivated failed",
    "optimization": "started applied skipped reverted failed finished",
}


@pytest.mark.parametrize("cycle", LIFE_CYCLES)
def test_each_life_cycle_has_its_events(cycle):
    """Training, models, inference, plugins and optimizations tell of each turn they take."""
    for turn in LIFE_CYCLES[cycle].split():
        event_type = getattr(EventType, f"{cycle}_{turn}".upper())
        assert event_type.name == str(event_type) == f"{cycle}_{turn}"
        assert event_type in EventType.known()


@pytest.mark.parametrize(
    ("view", "cycle", "fields"),
    [
        (TrainingStep, "training_step", "step epoch loss learning_rate tokens"),
        (EvaluationFinished, "evaluation_finished", "step metrics"),
        (CheckpointEvent, "checkpoint_saved checkpoint_loaded", "path step"),
        (ModelEvent, "model_loaded model_saved", "name path"),
        (InferenceFinished, "inference_finished", "tokens seconds cached"),
        (PluginEvent, "plugin_registered plugin_failed", "plugin version reason"),
        (OptimizationEvent, "optimization_applied optimization_failed", "optimization reason"),
    ],
)
def test_each_view_reads_its_events(view, cycle, fields):
    """A view of an event has every field of the data under its name."""
    data = {field: object() for field in fields.split()}
    for name in cycle.split():
        seen = Event(EventType(name), data).view(view)
        assert {field: getattr(seen, field) for field in data} == data
    with pytest.raises(EventViewError):
        Event(EventType.TRAINING_FAILED, data).view(view)


def test_a_view_reads_fields_and_misses_them_late():
    """A view gives what is there; what is missing is an error when it is read."""
    step = Event(STEP, {"step": 3}).view(TrainingStep)
    assert step.step == 3
    with pytest.raises(EventViewError, match=r'without "loss".*It has: step'):
        _ = step.loss


def test_a_view_refuses_other_events():
    """Asking for the wrong view names both types."""
    with pytest.raises(EventViewError, match=r"view of training_step.*model_loaded"):
        Event(EventType.MODEL_LOADED).view(TrainingStep)


def test_third_parties_make_views():
    """A view is a class with fields, for an event type of anyone's."""

    class Thing(EventView):
        event_types = (EventType.custom("testplugin.viewed"),)
        size = EventField[int]()

    assert Event(EventType.custom("testplugin.viewed"), {"size": 4}).view(Thing).size == 4
