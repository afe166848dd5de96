"""Which handlers are called, in which order, and what becomes of their errors."""

from __future__ import annotations

import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.event_system import (
    Event,
    EventEmitter,
    EventError,
    EventType,
    TrainingStep,
    emit_event,
    get_event_emitter,
    on_event,
)
from truthgpt_core.plugin_system import Plugin, PluginError
from truthgpt_core.transaction import Transaction

STEP = EventType.TRAINING_STEP


def test_the_module_functions_share_one_emitter(shared, capsys):
    """The seed's example prints the step that is emitted."""

    def on_training_step(event):
        print(f"Step {event.data['step']}: loss={event.data['loss']}")

    on_event(EventType.TRAINING_STEP, on_training_step)
    emit_event(EventType.TRAINING_STEP, {"step": 100, "loss": 0.5})
    emit_event(TrainingStep(step=101, loss=0.25))
    assert capsys.readouterr().out == "Step 100: loss=0.5\nStep 101: loss=0.25\n"


# Order


def test_priority_orders_specific_and_global_handlers_together(emitter):
    """Higher priority goes first, whichever kind of registration it is."""
    order = []
    emitter.on(STEP, lambda event: order.append("specific 0"))
    emitter.on(None, lambda event: order.append("global 5"), priority=5)
    emitter.on(STEP, lambda event: order.append("specific 9"), priority=9)
    emitter.on(None, lambda event: order.append("global 0"))
    emitter.emit(STEP)
    assert order == ["specific 9", "global 5", "specific 0", "global 0"]


@given(
    st.lists(
        st.tuples(st.integers(-2, 2), st.sampled_from([None, STEP, EventType.MODEL_LOADED])),
        max_size=12,
    )
)
def test_the_order_is_by_priority_then_registration(registrations):
    """Whatever is registered, handlers of the event's type and of all run in order."""
    emitter, order = EventEmitter(), []
    for number, (priority, event_type) in enumerate(registrations):
        emitter.on(event_type, lambda event, n=number: order.append(n), priority=priority)
    emitter.emit(STEP)
    expected = [
        (-priority, number)
        for number, (priority, event_type) in enumerate(registrations)
        if event_type in (None, STEP)
    ]
    assert order == [number for _, number in sorted(expected)]


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(-1, 1)), max_size=20),
    st.integers(0, 20),
)
def test_adding_and_removing_follow_a_simple_model(steps, kept):
    """Any sequence of adding and removing delivers as a sorted list would; undone, as before."""
    emitter, heard, model, handles = EventEmitter(), [], {}, {}

    def deliver():
        heard.clear()
        emitter.emit(STEP)
        return list(heard)

    def apply(part, offset):
        for number, (add, which, priority) in enumerate(part, offset):
            if add:
                handles[number] = emitter.on(
                    STEP, lambda event, n=number: heard.append(n), priority=priority
                )
                model[number] = (-priority, number)
            elif model:
                victim = sorted(model)[which % len(model)]
                assert handles[victim].remove()
                del model[victim]
            assert deliver() == sorted(model, key=model.__getitem__)

    apply(steps[:kept], 0)
    before = deliver()
    transaction = Transaction()
    with transaction:
        apply(steps[kept:], kept)
    transaction.rollback()
    assert deliver() == before


# Registering and removing


def test_a_subscription_lasts_as_long_as_its_block(emitter):
    """As a context manager, a registration ends with its block."""
    seen = []
    with emitter.on(STEP, seen.append) as subscription:
        emitter.emit(STEP)
        assert subscription.active
    emitter.emit(STEP)
    assert len(seen) == 1
    assert not subscription.active


def test_removing_twice_says_so(emitter):
    """Only the first removal finds something to remove."""
    subscription = emitter.on(STEP, print)
    assert subscription.remove() is True
    assert subscription.remove() is False


def test_a_handler_added_during_an_emit_waits_for_the_next(emitter):
    """What a handler adds gets no event that is under way."""
    seen = []

    def add(event):
        adding.remove()
        emitter.on(STEP, seen.append)

    adding = emitter.on(STEP, add)
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


async def _coroutine(event):
    pass


async def _async_generator(event):
    yield


def _generator(event):
    yield


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (lambda: None, "too many positional arguments"),
        (lambda event, other: None, "'other'"),
        (lambda *, event: None, "too many positional arguments"),
        ("not a function", "must be callable"),
        (_coroutine, "_coroutine is a coroutine function.*asyncio.run_coroutine_threadsafe"),
        (_async_generator, "is a generator function: a call would not run it"),
        (_generator, "is a generator function: a call would not run it"),
    ],
)
def test_a_handler_that_cannot_take_an_event_is_refused(emitter, handler, reason):
    """Registration says what is wrong with a handler whose call would fail, or not run it."""
    with pytest.raises(EventError, match=reason):
        emitter.on(STEP, handler)
    emitter.emit(STEP)
    assert emitter.errors == 0


def test_priority_must_be_an_integer(emitter):
    """A priority that could not be compared is refused where it is written."""
    with pytest.raises(EventError, match="priority must be an integer, not 'high'"):
        emitter.on(STEP, print, priority="high")


# Errors


def test_a_failing_handler_does_not_silence_the_next(emitter, caplog):
    """A failure is logged with its traceback and counted, and the rest run."""
    seen = []

    def broken(event):
        raise ValueError("broken on purpose")

    subscription = emitter.on(STEP, broken)
    emitter.on(STEP, seen.append)
    with caplog.at_level(logging.ERROR):
        emitter.emit(STEP)
        emitter.emit(STEP)
    assert len(seen) == 2
    assert (subscription.errors, emitter.errors) == (2, 2)
    assert "broken on purpose" in caplog.text
    assert "Traceback" in caplog.text


class Unnameable:
    """A handler that fails, and that cannot even be shown."""

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
@pytest.mark.parametrize("critical", [False, True])
def test_an_interrupt_passes_at_once(emitter, kind, critical):
    """Ctrl-C anywhere in a handler stops the emit there and counts as nobody's failure."""
    seen = []

    def interrupt(event):
        raise kind

    def failing(event):
        raise ValueError("critical")

    emitter.on(STEP, failing, critical=True, priority=1)
    emitter.on(STEP, interrupt, critical=critical)
    emitter.on(STEP, seen.append)
    with pytest.raises(kind):
        emitter.emit(STEP)
    assert (seen, emitter.errors) == ([], 1)


# Transactions


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
    seen = []
    with Transaction() as plugin:
        subscription = emitter.on(STEP, seen.append)
    with Transaction() as other:
        subscription.remove()
    plugin.rollback()
    other.rollback()
    emitter.emit(STEP)
    assert seen == []


def test_a_plugin_whose_initialize_fails_leaves_no_handler(manager):
    """What a plugin registered before it failed hears nothing."""
    ping, heard = EventType("testplugin.failing"), []

    class Failing(Plugin):
        name = "failing"
        version = "1.0"

        def initialize(self, registry):
            on_event(ping, heard.append)
            get_event_emitter().on(None, heard.append)
            raise OSError("no device")

    with pytest.raises(PluginError, match="no device"):
        manager.register_plugin(Failing())
    emit_event(ping)
    assert heard == []


# What an emit costs


@pytest.mark.parametrize("arguments", [(STEP, {"step": 1}), (TrainingStep(step=1, loss=0.5),)])
def test_emitting_to_nobody_builds_nothing(emitter, arguments):
    """An emit without handlers looks up who listens, and calls no code of an event."""
    emitter.emit(STEP)  # who listens is worked out once
    emit, calls = emitter.emit, []

    def note(frame, event, argument):
        if event == "call":
            calls.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        emit(*arguments)
    finally:
        sys.setprofile(None)
    assert calls in (["emit"], ["emit", "_type_of"])


def test_a_handler_can_be_tested_without_an_emitter():
    """An event is made of what is emitted, as the emitter makes it."""
    event = Event(TrainingStep(step=3, loss=0.5))
    assert (event.type, event.data["step"]) == (STEP, 3)
    assert repr(event) == "Event(training_step: step, loss)"
