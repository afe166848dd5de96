"""Events with several threads at once."""

from __future__ import annotations

import sys
import threading

import pytest

from truthgpt_core.event_system import EventType

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


@pytest.fixture(autouse=True)
def _threads_change_often():
    """Let threads take turns far more often than they do by themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


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
        for _ in range(1000):
            assert emitter.on(STEP, lambda event: None).remove()

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
