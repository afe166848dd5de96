"""What an event holds: a dataclass, or a caller's mapping."""

from __future__ import annotations

import collections
import copy
import dataclasses
import inspect
import logging
import pickle
import types
from collections.abc import Mapping

import pytest

from truthgpt_core import event_system
from truthgpt_core.event_system import (
    EvaluationFinished,
    EventError,
    EventPayload,
    EventType,
    OptimizationNoted,
    TrainingStep,
)

STEP = EventType.TRAINING_STEP
TYPES = {name: getattr(EventType, name) for name in vars(EventType) if name.isupper()}
PAYLOADS = [
    each
    for each in vars(event_system).values()
    if inspect.isclass(each) and issubclass(each, EventPayload) and each is not EventPayload
]


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
def seen(emitter):
    """The events of any type that `emitter` emits."""
    events = []
    emitter.on(None, events.append)
    return events


# A caller's mapping


@pytest.mark.parametrize("arguments", [(), ({},), ({"step": 1},), ({"any": None},)])
def test_a_mapping_is_data_as_it_is(emitter, seen, arguments):
    """Partial, empty or left out, the data has the keys that were given and no others."""
    emitter.emit(STEP, *arguments)
    assert dict(seen[0].data) == (arguments[0] if arguments else {})
    assert (seen[0].type, seen[0].payload) == (STEP, None)


def test_an_event_stays_as_it_was_emitted(emitter, seen):
    """A loop that uses one dict for all its events leaves those it emitted as they were."""
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
def test_any_mapping_is_data(emitter, seen, data):
    """Whatever mapping is emitted, asking for what it lacks adds nothing, to it or to the event."""
    emitter.emit(STEP, data)
    with pytest.raises(KeyError):
        seen[0].data["absent"]
    assert dict(seen[0].data) == dict(data) == {"step": 1}


@pytest.mark.parametrize("data", [None, 3, [("step", 1)], "step"])
def test_data_that_is_not_a_mapping_is_refused(emitter, seen, data):
    """The error names the event and what was given, whatever the handlers do."""
    named = f"training_step must be a mapping, not {type(data).__name__}"
    with pytest.raises(EventError, match=named):
        emitter.emit(STEP, data)


# A dataclass


def test_data_is_the_fields_that_are_set(emitter, seen):
    """Handlers read a dataclass by keys too; an optional field that is not set is not a key."""
    step = TrainingStep(step=3, loss=0.5, flops=None, refused=False)
    emitter.emit(step)
    assert seen[0].payload is step
    assert seen[0].type is STEP
    assert dict(seen[0].data) == {"step": 3, "loss": 0.5, "refused": False}


def test_a_dataclass_has_its_data_in_itself(emitter, seen):
    """Data beside a dataclass is a mistake, which an error names."""
    with pytest.raises(EventError, match="TrainingStep has its data in its fields"):
        emitter.emit(TrainingStep(step=1, loss=0.5), {"lr": 0.1})


def test_fields_are_keywords_and_cannot_be_changed():
    """A dataclass is made with keywords, has no other attributes, and stays what it is."""
    noted = OptimizationNoted(optimization="quantize", note="Six layers.")
    assert noted.about is None
    with pytest.raises(TypeError):
        OptimizationNoted("quantize", "Six layers.")
    with pytest.raises(TypeError, match="note"):
        OptimizationNoted(optimization="quantize")
    with pytest.raises(dataclasses.FrozenInstanceError):
        noted.about = "layers"
    assert not hasattr(noted, "__dict__")


def test_every_type_has_its_dataclass():
    """Of each type of TruthGPT's own there is one dataclass, named after it."""
    names = {"".join(map(str.capitalize, name.split("_"))): of for name, of in TYPES.items()}
    assert {each.__name__: each.event_type for each in PAYLOADS} == names


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.__name__)
def test_every_field_is_documented(payload):
    """The docstring of a dataclass names each field, and optional fields are None if not given."""
    for field in dataclasses.fields(payload):
        assert f"`{field.name}`" in payload.__doc__ or f"{field.name}: " in payload.__doc__
        assert field.default in (dataclasses.MISSING, None)
        assert ("None" in field.type) == (field.default is None)


def test_an_event_cannot_be_changed(emitter, seen):
    """Neither attributes nor data of an event can be set or deleted."""
    emitter.emit(STEP, {"step": 1})
    emitter.emit(TrainingStep(step=1, loss=0.5))
    for event in seen:
        for name in ("type", "data", "payload", "timestamp"):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(event, name, {})
            with pytest.raises(dataclasses.FrozenInstanceError):
                delattr(event, name)
        assert isinstance(event.data, Mapping)
        with pytest.raises(TypeError):
            event.data["step"] = 2
        assert not hasattr(event.data, "update")


# Never looked at


def test_emitting_never_synchronizes_a_device(emitter, seen, caplog):
    """No way of listening, failing or showing looks at a value before the handler does."""
    tensor = Tensor()

    def failing(event):
        raise ValueError

    emitter.on(STEP, failing)
    with caplog.at_level(logging.DEBUG):
        emitter.emit(STEP, {"loss": tensor})
        emitter.emit(TrainingStep(step=1, loss=tensor))
        emitter.emit(EvaluationFinished(step=1, metrics=tensor))
    assert all(event.data["loss"] is tensor for event in seen[:2])
    assert seen[2].payload.metrics is tensor
    assert [repr(event) for event in seen] == [
        "Event(training_step: loss)",
        "Event(training_step: step, loss)",
        "Event(evaluation_finished: step, metrics)",
    ]
    assert "training_step" in caplog.text


def test_emitting_to_nobody_does_not_even_look_at_the_mapping(emitter):
    """Data that nobody gets is not read, whatever other events are listened to."""
    emitter.on(EventType.MODEL_LOADED, print)
    emitter.emit(STEP, Tensor())


# Types


def test_a_type_is_found_by_its_name():
    """A known name gives the one object, an unknown one a suggestion."""
    assert EventType("training_step") is EventType.TRAINING_STEP
    assert (STEP.name, str(STEP)) == ("training_step", "training_step")
    with pytest.raises(EventError, match='Did you mean "training_step"'):
        EventType("trainin_step")


@pytest.mark.parametrize("name", ["thing", ".thing", "a b.c", "", 3, None])
def test_a_type_of_a_plugin_needs_the_name_of_the_plugin(name):
    """A new name without a plugin's is refused, with what to write instead."""
    with pytest.raises(EventError, match=r"myplugin\.reached"):
        EventType(name)


def test_types_are_one_object_per_name():
    """Two modules that name the same type mean the same, also in copies and other processes."""
    made = EventType("testplugin.thing")
    assert EventType("testplugin.thing") is made
    for each in (made, STEP):
        assert pickle.loads(pickle.dumps(each)) is each
        assert copy.deepcopy(each) is each


@pytest.mark.parametrize("wrong", ["training_step", {"step": 1}, ["training_step"], TrainingStep])
def test_what_is_not_a_type_is_refused(emitter, wrong):
    """A name, or anything else where a type belongs, is an error, even if nobody listens."""
    with pytest.raises(EventError, match="is not an event type"):
        emitter.emit(wrong)
    with pytest.raises(EventError, match="is not an event type"):
        emitter.on(wrong, print)


def test_a_name_is_told_how_to_become_a_type(emitter):
    """The error about a string says how a type is found by its name."""
    with pytest.raises(EventError, match=r'EventType\("training_step"\)'):
        emitter.emit("training_step")


# Events of plugins


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SquareReached(EventPayload, event_type=EventType("chess.square_reached")):
    square: str
    moves: int | None = None


def test_a_plugin_emits_a_dataclass_of_its_own(emitter):
    """A plugin's dataclass is an event like ours, of the type that it names."""
    heard = []
    emitter.on(EventType("chess.square_reached"), heard.append)
    emitter.emit(SquareReached(square="e4"))
    assert heard[0].payload.square == "e4"
    assert dict(heard[0].data) == {"square": "e4"}


def test_a_plugin_emits_a_name_and_a_mapping(emitter):
    """Without a dataclass, a plugin's type and any mapping do."""
    heard = []
    emitter.on(EventType("chess.lost"), heard.append)
    emitter.emit(EventType("chess.lost"), {"moves": 40})
    assert dict(heard[0].data) == {"moves": 40}


def test_a_dataclass_without_a_type_is_refused():
    """A class that does not say its type is refused where it is written."""
    with pytest.raises(EventError, match="Lost does not say of which type"):

        class Lost(EventPayload):
            pass


def test_a_dataclass_that_could_change_is_refused():
    """A payload must be frozen, since all handlers get the same one."""
    with pytest.raises(TypeError, match="non-frozen"):

        @dataclasses.dataclass
        class Lost(EventPayload, event_type=EventType("chess.lost")):
            moves: int
