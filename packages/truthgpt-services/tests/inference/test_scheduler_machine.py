"""Requests of any kind, in any order: each ends once, with the text that it would have alone."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import dataclass
from functools import cache
from time import monotonic

from exact_engine import ExactEngine
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from truthgpt_core.decoding import Capabilities
from truthgpt_core.event_system import EventEmitter, EventType
from truthgpt_core.plugin_system import PluginManager
from truthgpt_services import InferenceService
from truthgpt_services.inference.scheduler import QueueFullError
from truthgpt_services.inference.text import TextStream

ROWS, WAITING, KEPT = 3, 6, 80
PROMPTS = st.builds(
    lambda begin, end: begin + end,
    st.sampled_from(["", "a system prompt that many share, ", "a system prompt that few share: "]),
    st.text(alphabet="xyz", min_size=1, max_size=40),
)
OPTIONS = st.fixed_dictionaries(
    {"max_new_tokens": st.integers(1, 40)},
    optional={
        "temperature": st.sampled_from([0.5, 1.0]),
        "seed": st.integers(0, 3),
        "stop": st.sampled_from(["\N{CJK UNIFIED IDEOGRAPH-4E10}"]),
        "prompt_lookup_num_tokens": st.integers(1, 8),
        "prompt_logprobs": st.just(0),
    },
)
ABLE = st.sampled_from(
    [
        Capabilities(fork=True, continuous_batching=True),
        Capabilities(continuous_batching=True),
        Capabilities(fork=True, continuous_batching=True, rows=1),
    ]
)


@cache
def text_alone(prompt, options):
    service = InferenceService(PluginManager())
    service.configure(ExactEngine())
    return service.generate(prompt, dict(options))


@dataclass(eq=False)
class Asked:
    """A text that was asked for, and what was read of it."""

    stream: TextStream
    alone: str
    engine: ExactEngine
    text: str = ""


class Requests(RuleBasedStateMachine):
    """One service, and what callers do with it."""

    streams = Bundle("streams")

    def __init__(self):
        super().__init__()
        self.engine = None
        self.events = EventEmitter()
        self.ended = Counter()
        self.events.on(EventType.REQUEST_ENDED, lambda event: self.ended.update(["ended"]))
        self.service = InferenceService(PluginManager(events=self.events))
        self.configure(Capabilities(fork=True, continuous_batching=True))

    def configure(self, able):
        self.engine = ExactEngine(able)
        self.service.configure(
            self.engine,
            None,
            {"max_batch_size": ROWS, "max_waiting": WAITING, "prefix_cache_tokens": KEPT},
        )
        self.submitted = 0
        self.ended.clear()

    @rule(target=streams, prompt=PROMPTS, options=OPTIONS, priority=st.integers(-1, 1))
    def ask(self, prompt, options, priority):
        try:
            stream = self.service.stream(prompt, options, priority=priority)
        except QueueFullError:
            assert self.service.statistics.waiting >= WAITING
            return None
        self.submitted += 1
        return Asked(stream, text_alone(prompt, tuple(options.items())), self.engine)

    @rule(asked=streams, pieces=st.integers(1, 10))
    def read(self, asked, pieces):
        if asked is not None:
            for _ in range(pieces):
                asked.text += next(asked.stream, "")
            assert asked.alone.startswith(asked.text)

    @rule(asked=consumes(streams))
    def read_all(self, asked):
        if asked is not None and asked.stream.finish_reason is None:
            asked.text += "".join(asked.stream)
            if asked.engine is self.engine:
                assert asked.text == asked.alone
            else:
                assert asked.alone.startswith(asked.text)

    @rule(asked=consumes(streams))
    def close(self, asked):
        if asked is not None:
            asked.stream.close()

    @rule(asked=consumes(streams))
    def run_out_of_time(self, asked):
        if asked is not None and asked.stream.finish_reason is None:
            asked.stream._request.deadline = monotonic()
            asked.text += "".join(asked.stream)
            assert asked.alone.startswith(asked.text)
            whole = asked.stream.finish_reason not in ("timeout", "cancelled")
            assert not whole or asked.text == asked.alone

    @rule(asked=consumes(streams))
    def forget(self, asked):
        del asked
        gc.collect()

    @rule(prompts=st.lists(PROMPTS, max_size=5), options=OPTIONS)
    def ask_for_several(self, prompts, options):
        before = self.service.statistics
        if before.waiting + ROWS <= WAITING:
            texts = self.service.generate(prompts, options)
            assert texts == [text_alone(each, tuple(options.items())) for each in prompts]
            self.submitted += len(set(prompts))

    @rule(able=ABLE)
    def configure_again(self, able):
        before = self.engine
        self.configure(able)
        assert before.held == []
        assert before.sessions == 0

    @invariant()
    def nothing_is_held_for_nobody(self):
        done = self.service.statistics
        assert done.running <= ROWS
        assert done.waiting <= WAITING
        assert done.kept_tokens <= KEPT
        assert sum(len(each.tokens) for each in self.engine.held if each.tokens) >= done.kept_tokens
        assert self.engine.sessions == (1 if done.running else 0)
        over = done.finished + done.cancelled + done.timed_out + done.failed
        assert done.failed == 0
        assert done.submitted == self.submitted == over + done.waiting + done.running
        assert self.ended["ended"] == over


TestRequests = Requests.TestCase
TestRequests.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, phases=[Phase.generate]
)
