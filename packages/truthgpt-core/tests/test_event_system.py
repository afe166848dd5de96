"""What users of the event system rely on."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest

from truthgpt_core.event_system import (
    Event,
    EventEmitter,
    EventHandlerError,
    EventType,
    EventTypeError,
    emit_event,
    get_event_emitter,
    on_event,
)
from truthgpt_core.plugin_system import Plugin, PluginError
from truthgpt_core.transaction import Transaction

STEP = EventType.TRAINING_STEP


@pytest.fixture
def emitter():
    return EventEmitter()


@pytest.fixture
def shared():
    """Take back what a test registers with the emitter of the whole process."""
    transaction = Transaction()
    with transaction:
        yield get_event_emitter()
    transaction.rollback()


def test_the_module_functions_share_one_emitter(shared, capsys):
    """The seed's example prints the step that is emitted."""

    def on_training_step(event):
        print(f"Step {event.data['step']}: loss={event.data['loss']}")

    on_event(EventType.TRAINING_STEP, on_training_step)
    emit_event(EventType.TRAINING_STEP, {"step": 100, "loss": 0.5})
    assert capsys.readouterr().out == "Step 100: loss=0.5\n"


def test_on_event_decorates(shared):
    """As a decorator, on_event registers the function and leaves it what it was."""
    seen = []

    @on_event(STEP)
    def handler(event):
        seen.append(event.type)
        return "called"

    shared.emit(STEP)
    assert seen == [STEP]
    assert handler(Event(STEP)) == "called"


def test_priority_orders_specific_and_global_handlers_together(emitter):
    """Higher priority goes first, whichever kind of registration it is."""
    order = []
    emitter.on(STEP, lambda event: order.append("specific 0"))
    emitter.on(None, lambda event: order.append("global 5"), priority=5)
    emitter.on(STEP, lambda event: order.append("specific 9"), priority=9)
    emitter.on(None, lambda event: order.append("global 0"))
    emitter.emit(STEP)
    assert order == ["specific 9", "global 5", "specific 0", "global 0"]


def test_a_handler_gets_its_own_type_only(emitter):
    """A handler of one type hears nothing of another."""
    seen = []
    emitter.on(EventType.MODEL_LOADED, seen.append)
    emitter.emit(STEP)
    assert seen == []


def test_once_is_called_once(emitter):
    """A handler registered once gets one event, even if it emits another itself."""
    seen = []

    def handler(event):
        seen.append(event)
        emitter.emit(STEP)

    handle = emitter.on(STEP, handler, once=True)
    emitter.emit(STEP)
    emitter.emit(STEP)
    assert len(seen) == 1
    assert not handle.active


def test_every_counts_the_events_that_pass_the_filter(emitter):
    """With every=2 and a filter, every second event that passes is delivered."""
    seen = []
    emitter.on(
        STEP,
        lambda event: seen.append(event.data["step"]),
        every=2,
        filter=lambda event: event.data["step"] % 3 == 0,
    )
    for step in range(1, 16):
        emitter.emit(STEP, {"step": step})
    assert seen == [6, 12]


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_every_must_be_a_positive_whole_number(emitter, every):
    """A meaningless every is refused where it is written."""
    with pytest.raises(EventHandlerError, match="every must be"):
        emitter.on(STEP, print, every=every)


def test_a_handle_lasts_as_long_as_its_block(emitter):
    """As a context manager, a registration ends with its block."""
    seen = []
    with emitter.on(STEP, seen.append) as handle:
        emitter.emit(STEP)
        assert handle.active
    emitter.emit(STEP)
    assert len(seen) == 1


def test_off_takes_out_what_on_registered(emitter):
    """Off removes a bound method for one type and leaves its other registrations."""
    seen = []
    emitter.on(STEP, seen.append)
    emitter.on(None, seen.append)
    assert emitter.off(STEP, seen.append) == 1
    assert emitter.off(STEP, seen.append) == 0
    emitter.emit(STEP)
    assert len(seen) == 1


def test_removing_twice_says_so(emitter):
    """Only the first removal finds something to remove."""
    handle = emitter.on(STEP, print)
    assert handle.remove() is True
    assert handle.remove() is False


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (lambda: None, "too many positional arguments"),
        (lambda event, other: None, "'other'"),
        (lambda *, event: None, "too many positional arguments"),
        ("not a function", "must be callable"),
    ],
)
def test_a_handler_that_cannot_take_an_event_is_refused(emitter, handler, reason):
    """Registration says what is wrong with the handler's arguments."""
    with pytest.raises(EventHandlerError, match=reason):
        emitter.on(STEP, handler)
    assert not emitter.has_handlers(STEP)


async def _coroutine(event):
    pass


async def _async_generator(event):
    yield


def _generator(event):
    yield


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (_coroutine, r"_coroutine is a coroutine function, and nothing would await it.*stream\(\)"),
        (_async_generator, "asynchronous generator function, and nothing would iterate it"),
        (_generator, "a generator function, and nothing would iterate it"),
        (lambda: True, "cannot be called with one event"),
        (3, "must be callable"),
    ],
)
@pytest.mark.parametrize("role", ["handler", "filter"])
def test_what_would_do_nothing_is_refused_at_registration(emitter, function, reason, role):
    """A handler or filter whose call would not run it, or would fail, is refused at once."""
    arguments = {"handler": function} if role == "handler" else {"handler": print, role: function}
    with pytest.raises(EventHandlerError, match=f"(?i){role}.*{reason}"):
        emitter.on(STEP, **arguments)
    assert not emitter.has_handlers(STEP)


def test_priority_must_be_a_whole_number(emitter):
    """A priority that could not be compared is refused where it is written."""
    with pytest.raises(EventHandlerError, match="priority must be a whole number, not 'high'"):
        emitter.on(STEP, print, priority="high")


def test_a_failing_handler_does_not_silence_the_next(emitter, caplog):
    """A failure is logged with its traceback and counted, and the rest run."""
    seen = []

    def broken(event):
        raise ValueError("broken on purpose")

    handle = emitter.on(STEP, broken)
    emitter.on(STEP, seen.append)
    with caplog.at_level(logging.ERROR):
        emitter.emit(STEP)
        emitter.emit(STEP)
    assert len(seen) == 2
    assert (handle.errors, emitter.errors) == (2, 2)
    assert "broken on purpose" in caplog.text
    assert "Traceback" in caplog.text


class Unnameable:
    """A handler that fails, and of which not even the name can be told."""

    def __call__(self, event):
        raise ValueError("broken on purpose")

    def __repr__(self):
        raise RuntimeError("broken, too")


@pytest.mark.parametrize("handler", [Unnameable(), {}.__getitem__, [].remove, [].__iadd__])
def test_any_failing_handler_is_logged(emitter, handler, caplog):
    """A handler that is hard to name fails like any other: logged, counted, the rest run."""
    seen = []
    emitter.on(STEP, handler)
    emitter.on(STEP, seen.append)
    with caplog.at_level(logging.ERROR):
        emitter.emit(STEP)
    assert (len(seen), emitter.errors) == (1, 1)
    assert "Traceback" in caplog.text


def test_a_failing_filter_is_the_handlers_failure(emitter):
    """A filter that raises is counted, and its handler is not called."""
    seen = []
    handle = emitter.on(STEP, seen.append, filter=lambda event: event.data["absent"])
    emitter.emit(STEP)
    assert (seen, handle.errors) == ([], 1)


def test_a_critical_failure_is_raised_after_all_have_run(emitter):
    """A critical handler's exception reaches the one who emits, after the last handler."""
    seen = []
    error = ValueError("critical")

    def critical(event):
        raise error

    emitter.on(STEP, critical, critical=True)
    emitter.on(STEP, seen.append)
    with pytest.raises(ValueError, match="critical") as caught:
        emitter.emit(STEP)
    assert caught.value is error
    assert len(seen) == 1


def test_several_critical_failures_are_raised_together(emitter):
    """Of several critical failures none hides another, and others are not among them."""

    def raising(error):
        def handler(event):
            raise error

        return handler

    emitter.on(STEP, raising(ValueError("first")), critical=True)
    emitter.on(STEP, raising(KeyError("not critical")))
    emitter.on(STEP, raising(TypeError("second")), critical=True)
    with pytest.raises(ExceptionGroup) as caught:
        emitter.emit(STEP)
    assert [type(error) for error in caught.value.exceptions] == [ValueError, TypeError]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("place", ["handler", "critical handler", "filter", "critical's filter"])
def test_an_interrupt_passes_at_once(emitter, kind, place):
    """Ctrl-C anywhere in a handler stops the emit there and counts as nobody's failure."""
    seen = []

    def interrupt(event):
        raise kind

    def critical(event):
        raise ValueError("critical")

    emitter.on(STEP, critical, critical=True, priority=1)
    if "filter" in place:
        emitter.on(STEP, print, filter=interrupt, critical="critical" in place)
    else:
        emitter.on(STEP, interrupt, critical="critical" in place)
    emitter.on(STEP, seen.append)
    with pytest.raises(kind):
        emitter.emit(STEP)
    assert (seen, emitter.errors) == ([], 1)


def test_a_handler_added_during_an_emit_waits_for_the_next(emitter):
    """What a handler adds gets no event that is under way."""
    seen = []

    def add(event):
        emitter.on(STEP, seen.append)

    emitter.on(STEP, add, once=True)
    emitter.emit(STEP)
    assert seen == []
    emitter.emit(STEP)
    assert len(seen) == 1


def test_a_handler_removed_during_an_emit_is_not_called(emitter):
    """What a handler removes gets not even the event that is under way."""
    seen = []
    emitter.on(STEP, lambda event: late.remove(), priority=1)
    late = emitter.on(STEP, seen.append)
    emitter.emit(STEP)
    assert seen == []


def test_an_event_emitted_by_a_handler_is_delivered_first(emitter):
    """The inner event reaches every handler before the outer one goes on."""
    order = []

    def nest(event):
        if event.data["depth"] == 0:
            emitter.emit(STEP, {"depth": 1})

    emitter.on(STEP, nest)
    emitter.on(STEP, lambda event: order.append(event.data["depth"]))
    emitter.emit(STEP, {"depth": 0})
    assert order == [1, 0]


def test_has_handlers_follows_registrations(emitter):
    """A caller can ask whether gathering the data is worth it."""
    assert not emitter.has_handlers(STEP)
    with emitter.on(None, print):
        assert emitter.has_handlers(STEP)
    assert not emitter.has_handlers(STEP)


def test_a_name_is_no_event_type(emitter):
    """A string where a type belongs is an error, even if nobody listens."""
    with pytest.raises(EventTypeError, match=r'EventType\("training_step"\)'):
        emitter.emit("training_step")
    with pytest.raises(EventTypeError, match="is not an event type"):
        emitter.emit({"step": 1})
    with pytest.raises(EventTypeError):
        emitter.has_handlers(["training_step"])
    with pytest.raises(EventTypeError):
        emitter.on("training_step", print)
    with pytest.raises(EventTypeError):
        on_event(print)


def test_a_type_is_found_by_its_name():
    """A known name gives the one object, an unknown one a suggestion."""
    assert EventType("training_step") is EventType.TRAINING_STEP
    with pytest.raises(EventTypeError, match='Did you mean "training_step"'):
        EventType("trainin_step")
    with pytest.raises(EventTypeError, match="is a string"):
        EventType(3)
    with pytest.raises(EventTypeError, match="is a string"):
        EventType.custom(None)


def test_custom_types_are_one_object_per_name():
    """Two modules that name the same custom type mean the same."""
    made = EventType.custom("testplugin.thing")
    assert EventType.custom("testplugin.thing") is made
    assert EventType("testplugin.thing") is made
    assert made in EventType.known()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("thing", "myplugin.thing"),
        ("training_step", "EventType.TRAINING_STEP"),
        ("training_stp", 'Did you mean "training_step"'),
        (".thing", "myplugin.thing"),
        ("a b.c", "myplugin.thing"),
    ],
)
def test_a_custom_type_needs_a_namespace(name, hint):
    """A custom name without its plugin's is refused, with what to write instead."""
    with pytest.raises(EventTypeError) as caught:
        EventType.custom(name)
    assert hint in str(caught.value)


@pytest.mark.parametrize("event_type", [STEP, EventType.custom("testplugin.copied")])
def test_copies_of_a_type_are_the_type(event_type):
    """A type that was pickled or copied still finds its handlers."""
    assert pickle.loads(pickle.dumps(event_type)) is event_type
    assert copy.deepcopy(event_type) is event_type


def test_a_rolled_back_transaction_leaves_no_handler(emitter):
    """What was registered in a transaction goes with it, and what was removed comes back."""
    order = []
    kept = emitter.on(STEP, lambda event: order.append("kept"))
    emitter.on(STEP, lambda event: order.append("last"))
    transaction = Transaction()
    with transaction:
        emitter.on(STEP, lambda event: order.append("new"), priority=1)
        kept.remove()
    emitter.emit(STEP)
    assert order == ["new", "last"]
    order.clear()
    transaction.rollback()
    emitter.emit(STEP)
    assert order == ["kept", "last"]


def test_a_plugin_that_goes_first_does_not_come_back_with_another(emitter):
    """A handler whose plugin is gone stays out, though who removed it is rolled back, too."""
    with Transaction() as plugin:
        handle = emitter.on(STEP, print)
    with Transaction() as other:
        handle.remove()
    plugin.rollback()
    other.rollback()
    assert not emitter.has_handlers(STEP)


def test_a_plugin_whose_initialize_fails_leaves_no_handler(manager):
    """What a plugin registered before it failed hears nothing."""
    ping = EventType.custom("testplugin.failing")

    class Failing(Plugin):
        name = "failing"
        version = "1.0"

        def initialize(self, registry):
            on_event(ping, print)
            get_event_emitter().on(None, print)
            raise OSError("no device")

    with pytest.raises(PluginError, match="no device"):
        manager.register_plugin(Failing())
    assert not get_event_emitter().has_handlers(ping)
