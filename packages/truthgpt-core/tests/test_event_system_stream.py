"""What asynchronous consumers of events rely on."""

from __future__ import annotations

import asyncio
import threading

import pytest

from truthgpt_core.event_system import EventEmitter, EventError, EventType
from truthgpt_core.transaction import Transaction

STEP = EventType.TRAINING_STEP


def run(coroutine):
    async def limited():
        async with asyncio.timeout(10):
            return await coroutine

    # With debug, asyncio refuses what another thread may not do.
    return asyncio.run(limited(), debug=True)


async def steps_of(stream):
    return [event.data["step"] async for event in stream]


def test_a_stream_has_events_from_its_making_on():
    """Nothing emitted between making a stream and reading it is lost."""

    async def consume():
        emitter = EventEmitter()
        emitter.emit(STEP, {"step": 0})
        async with emitter.stream(STEP) as stream:
            emitter.emit(STEP, {"step": 1})
            emitter.emit(EventType.MODEL_LOADED)
            emitter.emit(STEP, {"step": 2})
            stream.close()
            return await steps_of(stream)

    assert run(consume()) == [1, 2]


def test_a_slow_consumer_loses_the_oldest_and_knows_how_many():
    """A full stream drops its oldest event, counts it, and never holds the emitter up."""

    async def consume():
        emitter = EventEmitter()
        stream = emitter.stream(STEP, maxsize=3)
        for step in range(10):
            emitter.emit(STEP, {"step": step})
        assert len(stream) == 3
        stream.close()
        return await steps_of(stream), stream.dropped

    assert run(consume()) == ([7, 8, 9], 7)


def test_events_may_come_from_another_thread():
    """A consumer that waits is woken by a thread that trains, and gets all in order."""

    async def consume():
        emitter = EventEmitter()
        stream = emitter.stream(STEP)

        def train():
            for step in range(200):
                emitter.emit(STEP, {"step": step})
            stream.close()

        thread = threading.Thread(target=train, daemon=True)
        waiting = asyncio.create_task(steps_of(stream))
        await asyncio.sleep(0)
        thread.start()
        steps = await waiting
        thread.join(timeout=10)
        assert not thread.is_alive()
        return steps

    assert run(consume()) == list(range(200))


def test_leaving_the_block_unregisters_the_stream():
    """After async with, the emitter has nobody to deliver to."""

    async def consume():
        emitter = EventEmitter()
        async with emitter.stream() as stream:
            assert emitter.has_handlers(STEP)
        assert stream.closed
        return emitter.has_handlers(STEP)

    assert run(consume()) is False


def test_closing_ends_a_consumer_that_waits():
    """A consumer does not wait for ever on a stream that another task closes."""

    async def consume():
        stream = EventEmitter().stream()
        waiting = asyncio.create_task(steps_of(stream))
        await asyncio.sleep(0)
        stream.close()
        return await waiting

    assert run(consume()) == []


def test_a_rollback_ends_the_stream():
    """A stream made in a transaction ends with it, for its consumer too."""

    async def consume():
        emitter, transaction = EventEmitter(), Transaction()
        with transaction:
            stream = emitter.stream()
        waiting = asyncio.create_task(steps_of(stream))
        await asyncio.sleep(0)
        transaction.rollback()
        assert await waiting == []
        return emitter.has_handlers(STEP)

    assert run(consume()) is False


def test_a_consumer_that_was_cancelled_can_read_on():
    """Giving up waiting loses neither the stream nor what comes next."""

    async def consume():
        emitter = EventEmitter()
        stream = emitter.stream()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(stream)
        waiting = asyncio.create_task(steps_of(stream))
        await asyncio.sleep(0)
        emitter.emit(STEP, {"step": 1})
        stream.close()
        return await waiting

    assert run(consume()) == [1]


def test_two_tasks_cannot_wait_on_one_stream():
    """A second consumer is told to take its own stream."""

    async def consume():
        stream = EventEmitter().stream()
        first = asyncio.create_task(steps_of(stream))
        await asyncio.sleep(0)
        with pytest.raises(EventError, match="Two tasks"):
            await anext(stream)
        stream.close()
        await first

    run(consume())


def test_a_closed_loop_is_no_failure_of_the_emitter():
    """Emitting after the consumer's loop has ended raises nothing and counts nothing."""
    emitter = EventEmitter()
    stream = emitter.stream()
    loop = asyncio.new_event_loop()
    reading = loop.create_task(anext(stream))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    emitter.emit(STEP)
    assert (emitter.errors, stream.closed) == (0, True)
    assert not emitter.has_handlers(STEP)
    # The task was abandoned on purpose; asyncio would report that when it is collected.
    reading._log_destroy_pending = False
    with pytest.raises(RuntimeError):
        reading.get_coro().throw(RuntimeError("abandoned"))


@pytest.mark.parametrize("maxsize", [0, -1, 1.5, "many"])
def test_a_stream_holds_at_least_one_event(maxsize):
    """A stream that could hold nothing is refused, and leaves nothing registered."""
    emitter = EventEmitter()
    with pytest.raises(EventError, match=f"maxsize is {maxsize!r}"):
        emitter.stream(maxsize=maxsize)
    assert not emitter.has_handlers(STEP)


def test_every_event_of_all_threads_is_read_or_counted_as_dropped():
    """What four threads emit faster than a consumer reads is either read, in order, or dropped."""

    async def consume():
        emitter = EventEmitter()
        stream = emitter.stream(STEP, maxsize=10)
        start = threading.Barrier(4)

        def train(which):
            start.wait(10)
            for step in range(500):
                emitter.emit(STEP, {"step": (which, step)})

        threads = [threading.Thread(target=train, args=(n,), daemon=True) for n in range(4)]
        reading = asyncio.create_task(steps_of(stream))
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0)
        stream.close()
        return await reading, stream.dropped

    steps, dropped = run(consume())
    assert len(steps) + dropped == 2000
    for which in range(4):
        mine = [step for thread, step in steps if thread == which]
        assert mine == sorted(set(mine))


def test_closing_in_another_thread_wakes_a_consumer_that_waits():
    """A consumer that waits for an event ends when any thread closes its stream."""

    async def consume():
        stream = EventEmitter().stream()
        waiting = asyncio.create_task(steps_of(stream))
        await asyncio.sleep(0)
        thread = threading.Thread(target=stream.close, daemon=True)
        thread.start()
        result = await waiting
        thread.join(10)
        return result

    assert run(consume()) == []


def test_closing_twice_is_closing():
    """A stream may be closed again, by anybody, also inside its block."""

    async def consume():
        emitter = EventEmitter()
        async with emitter.stream() as stream:
            stream.close()
            stream.close()
            emitter.emit(STEP)
        return len(stream)

    assert run(consume()) == 0


def test_a_stream_filters_and_counts_as_a_handler_does():
    """A stream with a filter and every=2 has every second event that passes."""

    async def consume():
        emitter = EventEmitter()
        stream = emitter.stream(STEP, every=2, filter=lambda event: event.data["step"] % 3 == 0)
        for step in range(1, 16):
            emitter.emit(STEP, {"step": step})
        stream.close()
        return await steps_of(stream)

    assert run(consume()) == [6, 12]
