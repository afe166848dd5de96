"""Events with several threads at once."""

from __future__ import annotations

import sys
import threading

import pytest

from truthgpt_core.event_system import EventEmitter, EventType

STEP = EventType.TRAINING_STEP
TIMEOUT = 20


def at_once(*calls):
    """Run functions in threads that start together; raise what one of them raises."""
    start = threading.Barrier(len(calls))
    errors = []

    def run(call):
        try:
            start.wait(TIMEOUT)
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


@pytest.fixture
def emitter():
    return EventEmitter()


@pytest.fixture(autouse=True)
def _threads_change_often():
    """Let threads take turns far more often than they do by themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_once_is_called_once_by_racing_threads(emitter):
    """Of eight threads that emit at once, one has the handler's one call."""
    for _ in range(20):
        calls = []
        emitter.on(STEP, calls.append, once=True)
        at_once(*[lambda: emitter.emit(STEP)] * 8)
        assert len(calls) == 1
    assert not emitter.has_handlers(STEP)


def test_once_is_called_once_though_it_fails_or_emits(emitter):
    """A handler registered once that raises, or emits its own event, is not called again."""
    calls = []

    def handler(event):
        calls.append(event)
        emitter.emit(STEP)
        raise ValueError

    emitter.on(STEP, handler, once=True)
    at_once(*[lambda: emitter.emit(STEP)] * 4)
    assert (len(calls), emitter.errors) == (1, 1)


def test_every_counts_the_events_of_all_threads(emitter):
    """With every=10, four threads with 100 events each make 40 calls."""
    calls = []
    emitter.on(STEP, calls.append, every=10)
    at_once(*[lambda: [emitter.emit(STEP) for _ in range(100)]] * 4)
    assert len(calls) == 40


def test_failures_in_all_threads_are_counted(emitter, caplog):
    """No failure is lost, however many threads have one at the same time."""
    caplog.set_level("CRITICAL")
    handle = emitter.on(STEP, lambda event: 1 / 0)
    at_once(*[lambda: [emitter.emit(STEP) for _ in range(100)]] * 4)
    assert (handle.errors, emitter.errors) == (400, 400)


def test_handlers_that_come_and_go_disturb_nobody(emitter):
    """While threads add and remove handlers, those that stay get each event once, in order."""
    first, last = [], []
    emitter.on(STEP, lambda event: first.append(event.data["number"]), priority=1)
    emitter.on(None, lambda event: last.append(event.data["number"]), priority=-1)

    def emit(start):
        for number in range(start, start + 200):
            emitter.emit(STEP, {"number": number})

    def come_and_go():
        for number in range(1000):
            handle = emitter.on(STEP, lambda event: None, once=number % 2 == 0)
            assert handle.remove() or number % 2 == 0

    at_once(lambda: emit(0), lambda: emit(200), come_and_go, come_and_go)
    assert sorted(first) == sorted(last) == list(range(400))
    for start in (0, 200):
        part = range(start, start + 200)
        assert [number for number in first if number in part] == list(part)
    emitter.emit(STEP, {"number": 400})
    assert (first[-1], last[-1]) == (400, 400)


def test_of_threads_that_remove_a_handler_one_did(emitter):
    """Exactly one of racing removals reports that it removed."""
    for _ in range(20):
        handle = emitter.on(STEP, print)
        removed = []
        at_once(*[lambda handle=handle, removed=removed: removed.append(handle.remove())] * 4)
        assert sorted(removed) == [False, False, False, True]


def test_registering_from_many_threads_loses_nothing(emitter):
    """Handlers added while others emit are all there in the end."""
    start = threading.Barrier(5, timeout=10)

    def register():
        start.wait()
        for _ in range(50):
            emitter.on(STEP, calls.append)

    calls = []
    threads = [threading.Thread(target=register, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    for _ in range(20):
        emitter.emit(EventType.MODEL_LOADED)
    for thread in threads:
        thread.join(timeout=10)
        assert not thread.is_alive()
    emitter.emit(STEP)
    assert len(calls) == 200
