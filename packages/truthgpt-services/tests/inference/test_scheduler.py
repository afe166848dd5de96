"""Texts that are generated at once: who begins when, and who shares what."""

from __future__ import annotations

import gc
import threading
from time import monotonic

import pytest
from exact_engine import LONG, ExactEngine, alone

from truthgpt_core.decoding import (
    Capabilities,
    GenerationError,
)
from truthgpt_core.event_system import EventType, on_event
from truthgpt_core.hookspecs import hookimpl
from truthgpt_services.inference.decoder import TokenByToken
from truthgpt_services.inference.scheduler import QueueFullError

SYSTEM = "You are a system prompt that many requests have in common. "


def test_a_text_that_comes_later_joins_the_next_pass(service, engine, make):
    """Nobody waits for those who were first to end, and both texts are as alone."""
    first = service.stream("first", LONG)
    pieces = [next(first) for _ in range(5)]
    second = service.stream("second", LONG)
    texts = ["".join([*pieces, *first]), "".join(second)]
    assert texts == [alone(make, "first", LONG), alone(make, "second", LONG)]
    assert engine.passes[5] == [1, 6]
    assert engine.passes[6] == [1, 1]


def test_a_cancelled_text_frees_its_place_at_once(make, engine):
    """Not at the end of its batch: who waits begins in the next pass."""
    service = make(engine, max_batch_size=1, prefix_cache_tokens=0)
    first, second = service.stream("first", LONG), service.stream("second", LONG)
    next(first)
    first.close()
    assert engine.held == []
    assert next(second)
    assert engine.passes == [[5], [6]]
    assert first.finish_reason == "cancelled"


def test_a_text_that_nobody_holds_any_more_is_cancelled(make, engine):
    """A loop that was left by `break` leaves nothing in the batch."""
    service = make(engine, prefix_cache_tokens=0)
    for _ in service.stream("first", LONG):
        break
    gc.collect()
    assert engine.held == []
    assert engine.sessions == 0
    assert service.statistics.cancelled == 1


def test_a_text_whose_time_is_over_ends_as_it_is(service, make):
    """What was made until then is the beginning of the whole text."""
    text = "".join(stream := service.stream("slow", LONG, timeout=0.0))
    assert (text, stream.finish_reason) == ("", "timeout")
    stream = service.stream("slow", LONG, timeout=3600)
    next(stream)
    stream._request.deadline = monotonic()
    text = "".join(stream)
    assert stream.finish_reason == "timeout"
    assert alone(make, "slow", LONG)[1:].startswith(text)


def test_one_thread_generates_what_others_read_without_waiting(service, engine, make):
    """As a server does: it is told that there is more, and `next` returns at once."""
    stopped, more = threading.Event(), threading.Semaphore(0)
    threads = set()
    engine.before = lambda pieces: threads.add(threading.get_ident())
    driver = threading.Thread(target=service.run, args=(stopped.is_set,))
    driver.start()
    try:
        streams = [
            *service.streams("first", LONG, progressed=more.release),
            *service.streams("second", LONG, progressed=more.release),
        ]
        while any(stream.finish_reason is None for stream in streams):
            assert more.acquire(timeout=60)
            for stream in streams:
                if stream.finish_reason is None and stream.is_ready:
                    next(stream, None)
                    more.release()
    finally:
        stopped.set()
        driver.join(timeout=60)
    assert [stream.text for stream in streams] == [
        alone(make, "first", LONG),
        alone(make, "second", LONG),
    ]
    assert threads == {driver.ident}


def test_a_thread_that_generates_goes_on_when_one_text_goes_as_another_comes(service, make):
    """Between the two nothing is left to do, and a request of another thread may come then."""
    streams = [service.stream("goes", LONG)]

    def stop() -> bool:
        if len(streams) == 1 and service.statistics.running:
            streams[0].close()
        # Asked again right after the pass that ended it, this submits as another thread may.
        if len(streams) == 1 and service.statistics.cancelled:
            streams.append(service.stream("comes", LONG))
        return streams[-1].is_over

    service.run(stop)
    assert "".join(streams[1]) == alone(make, "comes", LONG)


def test_more_than_may_wait_is_an_error_at_once(make, engine):
    """It names the setting, and what waits is generated all the same."""
    service = make(engine, max_batch_size=1, max_waiting=2)
    waiting = [service.stream(name, LONG) for name in ("a", "b")]
    with pytest.raises(QueueFullError, match=r"2 requests wait for the model.*max_waiting"):
        service.stream("c", LONG)
    waiting[0].close()
    waiting[0] = service.stream("c", LONG)
    assert ["".join(each) for each in waiting] == [alone(make, name, LONG) for name in "cb"]


def test_a_list_longer_than_the_queue_is_generated(make, engine):
    """It waits outside for its turn."""
    service = make(engine, max_batch_size=2, max_waiting=2)
    prompts = [f"prompt {number}" for number in range(20)]
    assert service.generate(prompts) == [alone(make, prompt) for prompt in prompts]


def test_lower_numbers_of_priority_begin_first(make, engine):
    """Those of one priority begin as they come."""
    service = make(engine, max_batch_size=1)
    order = []
    streams = [
        service.stream(name, {"max_new_tokens": 1}, priority=p)
        for name, p in [("a" * 3, 5), ("b" * 4, 0), ("c" * 5, 5), ("d" * 6, -1)]
    ]
    for stream in streams:
        order.append("".join(stream))
    assert [each[0] for each in engine.passes] == [6, 4, 3, 5]


def test_a_long_prompt_is_read_in_pieces_while_others_go_on(make, engine, monkeypatch):
    """Each pass gives the texts that are being generated their next token."""
    monkeypatch.setattr("truthgpt_services.inference.pass_times.MOST_PROMPT_TOKENS", 16)
    service = make(engine)
    first = service.stream("first", LONG)
    pieces = [next(first)]
    long = "a prompt that has more tokens than fit into one pass"
    second = service.stream(long, LONG)
    text = "".join(second)
    assert text == alone(make, long, LONG)
    assert "".join([*pieces, *first]) == alone(make, "first", LONG)
    assert engine.passes[1:4] == [[1, 16], [1, 16], [1, 16]]


def test_what_prompts_have_in_common_is_read_once(service, engine, make):
    """Also when they come at once: the others wait until it is there."""
    prompts = [SYSTEM + end for end in ("one", "two", "three")]
    assert service.generate(prompts, LONG) == [alone(make, each, LONG) for each in prompts]
    read = sum(sum(each for each in sizes if each > 1) for sizes in engine.passes)
    assert read == len(prompts[0]) + 3 + 5
    assert service.statistics.reused_tokens == 2 * len(SYSTEM)


def test_a_prompt_that_goes_on_from_a_text_before_reads_what_is_new(service, engine):
    """A conversation's next turn begins where the last one ended."""
    stream = service.stream(SYSTEM, {"max_new_tokens": 8, "logit_bias": {0: -100}})
    list(stream)
    again = service.stream(SYSTEM + "more", LONG)
    list(again)
    assert again.reused_tokens == len(SYSTEM)
    assert engine.passes[8][0] == 4


def test_what_is_kept_has_a_bound(make, engine):
    """The least recently used go first, and none is kept without room."""
    service = make(engine, prefix_cache_tokens=100)
    for number in range(20):
        service.generate(f"{number} {SYSTEM}", {"max_new_tokens": 2})
        assert service.statistics.kept_tokens <= 100
        assert sum(len(each.tokens) for each in engine.held) <= 100
    service = make(engine := ExactEngine(), prefix_cache_tokens=0)
    service.generate(SYSTEM)
    assert engine.held == []


def test_configuring_again_frees_everything(service, engine):
    """Texts that were not read to their end are over, and nothing stays in the engine."""
    service.generate(SYSTEM)
    stream = service.stream("x", LONG)
    next(stream)
    service.configure(ExactEngine())
    assert engine.held == []
    assert engine.sessions == 0
    list(stream)
    assert stream.finish_reason == "cancelled"


def test_n_texts_are_those_of_the_seeds_that_follow(service, engine, make):
    """Text i is what seed + i gives, and the prompt is read once."""
    options = {"temperature": 1.0, "max_new_tokens": 20}
    texts = service.generate(SYSTEM, {**options, "n": 3, "seed": 7})
    assert texts == [alone(make, SYSTEM, {**options, "seed": seed}) for seed in (7, 8, 9)]
    assert len(set(texts)) == 3
    assert service.statistics.reused_tokens == 2 * (len(SYSTEM) - 1)
    assert service.generate([SYSTEM], {**options, "n": 3, "seed": 7}) == [texts]


def test_streams_are_as_many_as_n(service, make):
    """They may be read in any order, and `stream` refuses to be several."""
    options = {"temperature": 1.0, "max_new_tokens": 20, "n": 2}
    first, second = service.streams("x", options)
    texts = ["".join(second), "".join(first)][::-1]
    assert texts == alone(make, "x", options)
    with pytest.raises(GenerationError, match="n is 2, and a stream is one text"):
        service.stream("x", options)


def test_an_engine_of_few_rows_gets_no_more(make):
    """The rest waits."""
    capable = Capabilities(fork=True, continuous_batching=True, rows=2)
    service = make(engine := ExactEngine(capable), max_batch_size=8)
    prompts = [f"prompt {number}" for number in range(6)]
    assert service.generate(prompts) == [alone(make, prompt) for prompt in prompts]
    assert max(map(len, engine.passes)) == 2


def test_threads_share_one_service(service, make, engine):
    """Each of eight gets what it would get alone, and they are generated together."""
    prompts = [f"{number} of eight" for number in range(8)]
    found, barrier = {}, threading.Barrier(8)

    def ask(prompt):
        barrier.wait()
        found[prompt] = service.generate(prompt, LONG)

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {prompt: alone(make, prompt, LONG) for prompt in prompts}
    assert max(map(len, engine.passes)) > 1


def test_a_reader_that_is_slow_holds_up_no_other(service, make):
    """A text that nobody reads is generated by who reads another, and is there when asked for."""
    slow, quick = service.stream("slow", LONG), service.stream("quick", LONG)
    assert "".join(quick) == alone(make, "quick", LONG)
    passes = service.statistics.passes
    assert "".join(slow) == alone(make, "slow", LONG)
    assert service.statistics.passes == passes


def test_log_probabilities_come_with_a_text(service):
    """One for each token, and one for each token of the prompt but the first."""
    options = {"max_new_tokens": 5, "logprobs": 2, "prompt_logprobs": 0, "logit_bias": {0: -100}}
    text = service.stream("prompt", options)
    list(text)
    assert [each.token for each in text.logprobs] == text.tokens
    assert [each.token for each in text.prompt_logprobs] == list(text.prompt.tokens)
    assert text.prompt_logprobs[0].logprob is None
    assert all(each.logprob < 0 for each in [*text.logprobs, *text.prompt_logprobs[1:]])
    assert all(len(each.top) == 2 for each in text.logprobs)


@pytest.mark.parametrize("size", [1, 7, 512])
def test_a_prompt_s_log_probabilities_do_not_depend_on_its_pieces(make, monkeypatch, size):
    """Read whole or in pieces of any size, they are the same."""
    options = {"max_new_tokens": 1, "prompt_logprobs": 1}
    whole = make(ExactEngine()).stream(SYSTEM, options)
    list(whole)
    monkeypatch.setattr("truthgpt_services.inference.pass_times.MOST_PROMPT_TOKENS", size)
    parts = make(ExactEngine()).stream(SYSTEM, options)
    list(parts)
    assert parts.prompt_logprobs == whole.prompt_logprobs


def test_each_text_is_told_of_as_events(service):
    """When it leaves the queue, with what it shares, and when and why it is over."""
    heard = []

    def hear(event):
        heard.append(event.payload)

    with on_event(EventType.REQUEST_STARTED, hear), on_event(EventType.REQUEST_ENDED, hear):
        service.generate(SYSTEM, {"max_new_tokens": 2, "logit_bias": {0: -100}})
        service.generate(SYSTEM + "x", {"max_new_tokens": 3, "logit_bias": {0: -100}})
    started, ended, again, over = heard
    assert (started.prompt_tokens, started.reused_tokens) == (len(SYSTEM), 0)
    assert (again.prompt_tokens, again.reused_tokens) == (len(SYSTEM) + 1, len(SYSTEM))
    assert (ended.reason, ended.tokens, over.tokens) == ("length", 2, 3)
    assert 0 <= started.waited <= ended.first_token_seconds <= ended.seconds


def test_a_text_is_cancelled_without_a_search_for_garbage(make, engine):
    """Its place is free as soon as nobody holds it, and not when Python looks for cycles."""
    service = make(engine, prefix_cache_tokens=0)
    gc.disable()
    try:
        for _ in service.stream("first", LONG):
            break
        assert engine.held == []
    finally:
        gc.enable()


def test_a_list_of_more_than_may_wait_is_generated(make, engine):
    """Also where more could be generated at once than may wait."""
    service = make(engine, max_batch_size=8, max_waiting=2)
    prompts = [f"prompt {number}" for number in range(10)]
    assert service.generate(prompts) == [alone(make, prompt) for prompt in prompts]


def test_what_is_too_late_takes_no_place_among_those_that_wait(make, engine):
    """Also before a pass ends it."""
    service = make(engine, max_waiting=2)
    late = [service.stream(name, LONG, timeout=0.0) for name in ("a", "b")]
    assert "".join(service.stream("c", LONG)) == alone(make, "c", LONG)
    assert ["".join(each) for each in late] == ["", ""]


class Counts(TokenByToken):
    """Decodes token by token, and counts texts."""

    name = "counts"
    texts = 0

    def decode(self, engine, state, prompt, choose):
        Counts.texts += 1
        return super().decode(engine, state, prompt, choose)


def test_a_decoder_that_is_derived_from_token_by_token_is_used(make, bare_plugins, engine):
    """It is a plugin's own, whatever it is derived from."""

    class Counting:
        @hookimpl
        def make_decoder(self, options):
            return Counts() if options.pop("count", False) else None

    bare_plugins.register_plugin(Counting(), "counting")
    assert make(engine).generate("x", {**LONG, "count": True}) == alone(make, "x", LONG)
    assert Counts.texts == 1


@pytest.mark.parametrize("wrong", [{"priority": None}, {"priority": 1.5}, {"timeout": "soon"}])
def test_a_wrong_priority_or_timeout_is_refused_by_name(service, wrong):
    """Nothing is submitted, and the next request is served."""
    with pytest.raises(GenerationError, match=f"{next(iter(wrong))} is "):
        service.stream("x", LONG, **wrong)
    assert service.statistics.submitted == 0
