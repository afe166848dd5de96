"""What launches say about a difference in speed, and when they say enough."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_services.measuring.speed import (
    DECODE,
    Launch,
    Plan,
    gained,
    log_ratio,
    ratio_of_launches,
    undecided,
)
from truthgpt_services.optimizing.gate import DEFAULT_GATE
from truthgpt_services.results.schema import Ratio

pytestmark = pytest.mark.slow

SAME = Ratio(median=1.0, low=0.99, high=1.01)
seconds = st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=30)


@given(seconds, st.integers(-20, 20))
def test_a_machine_that_is_slower_for_both_changes_no_ratio(turns, power):
    """A pair of turns takes place within a moment, and what slows both is not seen."""
    slowed = [each * 2.0 ** (power + turn % 3) for turn, each in enumerate(turns)]
    assert log_ratio(Launch(slices=slowed), Launch(slices=slowed), DECODE) == 0.0
    half = [each / 2.0 for each in slowed]
    ratio = log_ratio(Launch(slices=half), Launch(slices=slowed), DECODE)
    assert math.exp(ratio) == pytest.approx(2.0)


def test_turns_that_were_not_taken_together_are_refused():
    """A ratio of turns of different rounds would mean nothing."""
    with pytest.raises(ValueError, match="argument 2 is longer"):
        log_ratio(Launch(slices=[1.0]), Launch(slices=[1.0, 2.0]), DECODE)


def test_noise_is_accepted_as_a_gain_no_more_often_than_one_run_in_forty():
    """Two metrics and every look together, with the noise of a busy machine."""
    draw, plan, runs = random.Random(3), Plan(), 3000
    accepted = 0
    for _ in range(runs):
        logs: list[list[float]] = [[], []]
        noise: list[list[float]] = [[], []]
        for number in range(1, plan.looks[-1] + 1):
            for index in range(2):
                logs[index].append(draw.gauss(0, 0.3))
                noise[index].append(draw.gauss(0, 0.3))
            if number in plan.looks:
                ratios = [ratio_of_launches(logs[i], noise[i], plan) for i in range(2)]
                if not undecided(ratios, DEFAULT_GATE, smaller=False):
                    break
        accepted += any(gained(ratio, DEFAULT_GATE) for ratio in ratios)
    assert accepted / runs <= 0.025


@pytest.mark.parametrize(
    ("ratio", "smaller", "more"),
    [
        (SAME, False, False),
        (Ratio(median=1.3, low=1.1, high=1.5), False, False),
        (Ratio(median=0.97, low=0.96, high=0.98), False, False),
        (Ratio(median=1.03, low=1.01, high=1.05), False, True),
        (Ratio(median=1.0, low=0.9, high=1.1), False, True),
        (Ratio(median=1.0, low=0.9, high=1.1), True, False),
        (Ratio(median=0.9, low=0.8, high=1.01), True, True),
        (Ratio(median=0.8, low=0.7, high=0.9), True, False),
    ],
    ids=["same", "faster", "slower", "a little", "noisy", "smaller", "slow?", "slow"],
)
def test_more_launches_are_made_only_while_they_can_decide(ratio, smaller, more):
    """What is decided is not measured again: a gain, a loss, no difference; a size needs none."""
    assert undecided([ratio, SAME], DEFAULT_GATE, smaller=smaller) is more


def test_a_plan_with_few_launches_or_rounds_claims_nothing():
    """Fewer than 3 launches or 5 rounds."""
    assert Plan().closely
    assert Plan(rounds=5, launches=3).closely
    assert not Plan(rounds=4).closely
    assert not Plan(launches=2).closely


@given(st.integers(1, 10_000))
def test_a_plan_after_a_context_times_and_judges_there(context):
    """Prompts have as many tokens, and as many precede the text that is followed."""
    plan, usual = Plan.after(context, rounds=7), Plan.after(None, rounds=7)
    assert (plan.prompt_tokens, plan.decode_prompt) == (context, context)
    assert plan.decode_tokens - context == usual.decode_tokens - usual.decode_prompt
    assert plan.text_tokens >= plan.decode_tokens
    assert plan.rounds == 7
    assert usual == Plan(rounds=7)


@given(st.integers(1, 20), st.integers(1, 40))
def test_there_is_a_look_after_the_first_launches(launches, most):
    """However few launches are allowed at most."""
    looks = Plan(launches=launches, max_launches=most).looks
    assert looks[0] == launches
    assert looks[-1] <= max(launches, most)
    assert Plan().slices == [4, 4, 4]
