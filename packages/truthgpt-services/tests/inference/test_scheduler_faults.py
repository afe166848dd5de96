"""Faults among texts that are generated at once: who pays for them, and who goes on."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from time import sleep
from typing import ClassVar

import pytest
from exact_engine import LONG, ExactEngine, alone

from truthgpt_core.decoding import (
    Capabilities,
    Decoder,
    Engine,
    GenerationError,
    LogitsProcessor,
)
from truthgpt_core.event_system import EventType, on_event
from truthgpt_core.hookspecs import hookimpl


def test_an_engine_that_fails_fails_those_in_the_pass(service, engine, make):
    """Each caller gets the error, and the next request is served."""
    streams = [service.stream(name, LONG) for name in ("a", "b")]
    next(streams[0])

    def fail(pieces):
        raise MemoryError("no memory")

    engine.before = fail
    for stream in streams:
        with pytest.raises(MemoryError, match="no memory"):
            list(stream)
    engine.before = lambda pieces: None
    assert service.generate("c", LONG) == alone(make, "c", LONG)
    assert engine.sessions == 0
    assert service.statistics.failed == 2


class Fails(LogitsProcessor):
    """Raises at the third token."""

    options: ClassVar = {"fails": "whether it fails"}

    def __init__(self, fails):
        self.count = 0

    def __call__(self, logits, tokens):
        self.count += 1
        if self.count == 3:
            raise ValueError("a processor is broken")
        return logits


def test_a_processor_that_fails_fails_its_own_text(service, engine, make, bare_plugins):
    """Its neighbors in the pass have theirs whole."""
    bare_plugins.factories["logits_processor_factory"].register("fails", Fails)
    good, bad = service.stream("good", LONG), service.stream("bad", {**LONG, "fails": True})
    text = next(good)
    with pytest.raises(ValueError, match="a processor is broken"):
        list(bad)
    assert text + "".join(good) == alone(make, "good", LONG)


def test_an_interrupt_ends_what_was_running_and_nothing_else(service, engine, make):
    """Ctrl-C in a pass reaches who took it; nobody waits for what will not come."""
    streams = [service.stream(name, LONG) for name in ("a", "b")]
    next(streams[0])

    def interrupt(pieces):
        engine.before = lambda pieces: None
        raise KeyboardInterrupt

    engine.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        list(streams[0])
    with pytest.raises(GenerationError, match="ended by KeyboardInterrupt"):
        list(streams[1])
    assert engine.sessions == 0
    assert service.generate("c", LONG) == alone(make, "c", LONG)


def test_a_critical_listener_that_raises_fails_the_text_it_heard_of(service, make):
    """Its error reaches the caller, and nobody else's text."""

    def refuse(event):
        if event.data["prompt_tokens"] == 3:
            raise RuntimeError("not this one")

    good, bad = service.stream("good", LONG), service.stream("bad", LONG)
    with on_event(EventType.REQUEST_STARTED, refuse, critical=True):
        with pytest.raises(RuntimeError, match="not this one"):
            list(bad)
        assert "".join(good) == alone(make, "good", LONG)


@pytest.mark.parametrize("event", [EventType.REQUEST_STARTED, EventType.REQUEST_ENDED])
@pytest.mark.parametrize("what", ["generate", "configure"])
def test_a_listener_that_waits_for_its_own_pass_gets_an_error(service, make, engine, event, what):
    """The pass would have to end first, so it would wait forever."""
    errors = []

    def call(event):
        try:
            service.generate("y") if what == "generate" else service.configure(ExactEngine())
        except GenerationError as error:
            errors.append(str(error))

    with on_event(event, call):
        assert service.generate("x", LONG) == alone(make, "x", LONG)
    assert "waits for text of the service that called it" in errors[0]
    assert service.generate("x", LONG) == alone(make, "x", LONG)


class Refuses(Decoder):
    """Raises before its first step."""

    name = "refuses"

    def decode(self, engine, state, prompt, choose):
        raise ValueError("not this text")


class Refusing:
    """A plugin with that decoder."""

    @hookimpl
    def make_decoder(self, options):
        return Refuses() if options.pop("refuse", False) else None


def test_a_decoder_that_refuses_fails_its_own_text(make, bare_plugins):
    """What it took is freed, and its neighbors go on."""
    bare_plugins.register_plugin(Refusing(), "refusing")
    service = make(engine := ExactEngine(), prefix_cache_tokens=0)
    good, bad = service.stream("good", LONG), service.stream("bad", {"refuse": True})
    with pytest.raises(ValueError, match="not this text"):
        list(bad)
    assert "".join(good) == alone(make, "good", LONG)
    assert engine.held == []


def test_an_engine_that_cannot_close_fails_the_text_that_ended(make, engine, monkeypatch):
    """Others go on, and nobody waits for a text that is in no row."""
    service = make(engine, prefix_cache_tokens=0)
    long, short = service.stream("long", LONG), service.stream("short", {"max_new_tokens": 1})

    def fail(states):
        monkeypatch.undo()
        raise ValueError("it cannot be closed")

    monkeypatch.setattr(engine, "close", fail)
    with pytest.raises(ValueError, match="it cannot be closed"):
        list(short)
    assert "".join(long) == alone(make, "long", LONG)
    assert service.statistics.failed == 1


def test_a_session_that_cannot_begin_fails_those_who_wait(service, engine, make, monkeypatch):
    """Each gets the error itself, and no session is left that was never entered."""

    @contextmanager
    def session():
        raise FileNotFoundError
        yield

    monkeypatch.setattr(engine, "session", session)
    for stream in [service.stream(name, LONG) for name in ("a", "b")]:
        with pytest.raises(FileNotFoundError):
            list(stream)
    monkeypatch.undo()
    assert service.generate("c", LONG) == alone(make, "c", LONG)


def test_a_text_that_an_interrupt_ends_ends_once(service, engine):
    """Not again with the next interrupt, though it had just begun."""
    reasons = []

    def interrupt(event):
        raise KeyboardInterrupt

    with (
        on_event(EventType.REQUEST_ENDED, lambda event: reasons.append(event.data["reason"])),
        on_event(EventType.REQUEST_STARTED, interrupt),
    ):
        for name in ("a", "b"):
            with pytest.raises(KeyboardInterrupt):
                service.generate(name)
    assert reasons == ["error", "error"]
    assert service.statistics.failed == 2


def test_a_text_can_be_closed_while_another_thread_reads_it(service, engine):
    """Its reader gets the end of what there is."""
    within, go_on, found = threading.Event(), threading.Event(), []

    def hold(pieces):
        within.set()
        go_on.wait(60)

    engine.before = hold
    stream = service.stream("x", LONG)
    reader = threading.Thread(target=lambda: found.append("".join(stream)))
    reader.start()
    within.wait(60)
    stream.close()
    go_on.set()
    reader.join(60)
    assert len(found[0]) < 60
    assert stream.finish_reason == "cancelled"


class Chooses(Engine):
    """An engine without a scheduler."""

    name = "chooses"
    capabilities = Capabilities(logits=False)


@pytest.mark.parametrize("begun", [True, False])
def test_a_text_of_before_ends_whatever_was_configured_since(service, begun):
    """Also with an engine that has no scheduler, and whether or not it was read before."""
    stream = service.stream("x", LONG)
    if begun:
        next(stream)
    service.configure(Chooses())
    list(stream)
    assert stream.finish_reason == "cancelled"


def test_generating_while_another_thread_configures_is_an_error(make, engine):
    """A list of texts that were cut off would look whole."""
    service = make(engine, max_batch_size=1)

    def configure(pieces):
        engine.before = lambda pieces: None
        other = threading.Thread(target=service.configure, args=(ExactEngine(),))
        other.start()
        while not scheduler._closed:
            sleep(0.001)

    scheduler = service._setup.scheduler
    engine.before = configure
    with pytest.raises(GenerationError, match="another thread called configure"):
        service.generate(["a", "b"], LONG)


def test_counting_and_cancelling_may_be_one_thread_s(service):
    """Memory that is collected while statistics are read cancels a text."""
    stream = service.stream("x", LONG)
    next(stream)
    with service._setup.scheduler._counters._lock:
        stream.close()
    assert service.statistics.cancelled == 1
