"""Taking turns, and what is made of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_core.optimization import no_progress
from truthgpt_services.errors import WorkerError
from truthgpt_services.measuring.compare import (
    Contestant,
    compare_layers,
    measure_quality,
    measure_quality_alone,
    ratio,
    take_turns,
    windows,
)
from truthgpt_services.measuring.protocol import (
    BenchRequests,
    Compared,
    LayersCompared,
    Opened,
)
from truthgpt_services.measuring.speed import DECODE, Plan

IDS = list(range(300))
OPENED = Opened(load_seconds=1, parameters=4, dtype="float32", weights_bytes=9)


class FakeWorker(BenchRequests):
    """Answers like a worker process, and notes who was asked when."""

    def __init__(self, name, log, seconds=()):
        self.name, self.log, self.seconds = name, log, iter(seconds)
        self.given = []

    def heard(self, request, **given):
        self.log.append((self.name, request))
        self.given.append(given)

    def peak_memory(self):
        return 7

    def read_prompt(self, ids, new_tokens):
        self.heard("read_prompt", ids=ids, new_tokens=new_tokens)
        return next(self.seconds, 1.0)

    def decode(self, tokens):
        self.heard("decode", tokens=tokens)
        return next(self.seconds, 1.0)

    def write_reference(self, ids, path, prompt=0):
        self.heard("write_reference", ids=ids, path=path)
        return [2.0] * (len(ids) - (prompt or 1))

    def compare(self, ids, path, prompt=0):
        self.heard("compare", ids=ids, path=path)
        count = len(ids) - (prompt or 1)
        if prompt:
            return Compared(*([value] * count for value in (9.0, 0.5, 0.0, 1.0)))
        kl = [0.001] * (count - 1) + [0.1]
        return Compared([3.0] * count, kl, [1.0, 0.0] * (count // 2), [0.25] * count)


@pytest.fixture
def log():
    return []


def contestant(name, log, seconds=()):
    return Contestant(name, FakeWorker(name, log, seconds), OPENED)


def test_who_begins_changes_from_turn_to_turn(log):
    """One that runs after another may find a warm or a busy machine; each does in turn."""
    three = [contestant(name, log) for name in "abc"]
    take_turns(three, IDS, Plan(rounds=2, prompts=1, new_tokens=5), no_progress)
    assert "".join(name for name, _ in log) == "abcbcacababc"
    assert [request for _, request in log[::3]] == ["read_prompt", "decode"] * 2


def test_all_read_the_same_prompt_and_decode_as_much(log):
    """The beginning of the text, as long as the plan says, and then a few tokens a turn."""
    two = [contestant(name, log) for name in "ab"]
    plan = Plan(rounds=1, prompts=1, prompt_tokens=20, new_tokens=8, slice=4)
    take_turns(two, IDS, plan, no_progress)
    for each in two:
        assert each.worker.given == [
            {"ids": IDS[:20], "new_tokens": 8},
            {"tokens": 4},
            {"tokens": 3},
        ]


def test_a_ratio_pairs_the_launches_that_both_took_part_in(log):
    """A baseline that was launched before is compared over the launches of the candidate only."""
    plan = Plan(rounds=1, prompts=1, new_tokens=5)
    baseline = contestant("baseline", log, [1.0, 1.0, 1.0, 10.0, 1.0, 40.0])
    take_turns([baseline], IDS, plan, no_progress)
    candidate = contestant("candidate", log, [1.0, 5.0, 1.0, 20.0])
    for launch in (1, 2):
        take_turns([baseline, candidate], IDS, plan, no_progress, launch=launch)
    found = ratio(candidate, baseline, DECODE, plan)
    assert (found.low, found.median, found.high) == pytest.approx((2.0, 2.0, 2.0))
    assert found.launches == pytest.approx([2.0, 2.0])


def test_a_figure_is_told_for_each_round_of_each_launch(log, tmp_path):
    """What a user would see: tokens of a round over its seconds; a prompt over its median."""
    one = contestant("one", log, [2.0, 4.0, 1.0, 3.0] * 4)
    plan = Plan(rounds=2, prompts=2, new_tokens=9, windows=1)
    measure_quality_alone(one, IDS, plan, no_progress)
    for launch in (0, 1):
        take_turns([one], IDS, plan, no_progress, launch=launch)
    found = one.measurements(plan, prompt_tokens=30, saved_bytes=0, build_peak=0)
    assert found.decode_tokens_per_second.values == [2.0] * 4
    assert found.first_token_seconds.values == [3.0] * 4
    assert found.prefill_tokens_per_second.values == [10.0] * 4
    assert found.decode_tokens_per_second.launches == [2, 2]
    assert found.peak_memory_bytes == 7


@given(st.integers(0, 500), st.integers(1, 9), st.integers(2, 64))
def test_windows_cut_a_text_without_overlap_or_loss(length, count, window):
    """In order from the beginning; only one in which nothing could be predicted is dropped."""
    cut = windows(range(length), Plan(windows=count, window=window))
    flat = [token for each in cut for token in each]
    assert flat == list(range(len(flat)))
    assert len(flat) in (min(length, count * window), min(length, count * window) - 1)
    assert all(len(each) == window for each in cut[:-1])
    assert all(2 <= len(each) <= window for each in cut)


def test_quality_is_put_together_from_all_windows(log, tmp_path):
    """Means over tokens of every window; the tail is not averaged away; decoding stands apart."""
    baseline, candidate = contestant("baseline", log), contestant("candidate", log)
    plan = Plan(windows=2, window=101, decode_prompt=10, decode_tokens=40)
    measure_quality(candidate, baseline, IDS, plan, tmp_path, no_progress)
    quality = candidate.quality
    assert quality.perplexity == pytest.approx(math.exp(3.0))
    assert quality.kl_mean == pytest.approx((99 * 0.001 + 0.1) / 100)
    assert quality.kl_p999 == 0.1
    assert quality.top1_agreement == 0.5
    assert (quality.flips, quality.flips_error) == (0.25, 0.0)
    assert quality.perplexity_ratio == pytest.approx(math.e)
    assert (quality.decode_kl_mean, quality.decode_top1_agreement) == (0.5, 0.0)
    assert (quality.decode_kl_p999, quality.decode_flips) == (0.5, 1.0)
    assert quality.decode_perplexity == pytest.approx(math.exp(9.0))
    assert baseline.quality.perplexity == pytest.approx(math.exp(2.0))
    assert baseline.quality.kl_mean == 0.0
    lengths = [len(each["ids"]) for each in baseline.worker.given]
    assert lengths == [101, 101, 40]
    assert baseline.quality.decode_perplexity == pytest.approx(math.exp(2.0))
    for name in ("kl_mean", "kl_p999", "flips", "perplexity_error", "decode_kl_mean"):
        assert getattr(baseline.quality, name) == 0.0
    assert baseline.quality.top1_agreement == baseline.quality.perplexity_ratio == 1.0


def test_a_model_alone_is_measured_on_the_same_text_and_writes_nothing(log):
    """What `truthgpt eval` says of a model is what a run would say of it as its baseline."""
    one, other = contestant("one", log), contestant("other", log)
    plan = Plan(windows=2, window=101, decode_prompt=10, decode_tokens=40)
    measure_quality_alone(one, IDS, plan, no_progress)
    assert [len(each["ids"]) for each in one.worker.given] == [101, 101, 40]
    assert [each["path"] for each in one.worker.given] == [None] * 3
    measure_quality(other, contestant("base", log), IDS, plan, Path(), no_progress)
    assert one.quality.perplexity == pytest.approx(math.exp(2.0))
    assert one.quality.kl_mean == 0.0


class Layered(FakeWorker):
    """One whose layers can be compared, unless `trouble` keeps them from it."""

    trouble: object = ""

    def write_layers(self, ids, path):
        if isinstance(self.trouble, Exception):
            raise self.trouble
        return self.trouble

    def compare_layers(self, ids, path):
        return LayersCompared([[0.1] * 64, [0.0, 0.4] * 32])


@pytest.mark.parametrize(
    ("trouble", "missing"),
    [
        ("", ""),
        ("it has no output embedding", "it has no output embedding"),
        (WorkerError("It crashed", worker="b"), "It crashed"),
    ],
)
def test_layers_are_compared_or_the_reason_is_told(trouble, missing, tmp_path):
    """What only explains never fails a step that was measured."""
    baseline = Contestant("a", Layered("a", []), OPENED)
    candidate = Contestant("b", Layered("b", []), OPENED)
    candidate.worker.trouble = trouble
    compare_layers(candidate, baseline, IDS, Plan(), tmp_path)
    assert candidate.layers_missing == missing
    if missing:
        assert candidate.layers is None
    else:
        assert [each.layer for each in candidate.layers] == [1, 2]
        assert [each.kl_mean for each in candidate.layers] == pytest.approx([0.1, 0.2])


def test_the_baseline_writes_before_the_candidate_reads(log, tmp_path):
    """Window by window, so that one file is enough."""
    baseline, candidate = contestant("baseline", log), contestant("candidate", log)
    measure_quality(candidate, baseline, IDS, Plan(windows=2, window=100), tmp_path, no_progress)
    assert log == [("baseline", "write_reference"), ("candidate", "compare")] * 3


def test_a_perplexity_beyond_all_numbers_is_infinite(log, tmp_path):
    """A ruined model ends as a row in the report, and not as an overflow."""
    baseline, candidate = contestant("baseline", log), contestant("candidate", log)
    compare = candidate.worker.compare

    def ruined(*given):
        found = compare(*given)
        return replace(found, nll=[1e6] * len(found.nll))

    candidate.worker.compare = ruined
    measure_quality(candidate, baseline, IDS, Plan(), tmp_path, no_progress)
    assert candidate.quality.perplexity == math.inf
