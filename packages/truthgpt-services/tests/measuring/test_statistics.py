"""Medians and their intervals."""

from __future__ import annotations

import math
import random
from statistics import fmean, median, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_services.results.statistics import (
    blocks,
    interval_of_median,
    interval_of_speeds,
    interval_over_launches,
    mean_with_error,
    percentile_with_error,
    student_t,
    trimmed_mean,
    unpaired_ratio,
)

pytestmark = pytest.mark.slow

rates = st.floats(1e-6, 1e6)
samples = st.lists(rates, min_size=1, max_size=12)


@given(samples, st.integers(0, 9))
def test_the_interval_contains_the_median_and_stays_within_the_values(values, seed):
    """A report never shows a median outside its own interval."""
    middle, low, high = interval_of_median(values, seed=seed)
    assert middle == median(values)
    assert min(values) <= low <= middle <= high <= max(values)


@given(samples, st.integers(0, 9))
def test_the_same_seed_gives_the_same_interval(values, seed):
    """A report can be computed again from its values."""
    assert interval_of_median(values, seed=seed) == interval_of_median(values, seed=seed)


@given(samples)
def test_more_confidence_never_narrows_the_interval(values):
    """99 % holds all that 50 % does."""
    _, low, high = interval_of_median(values, confidence=0.5)
    _, lower, higher = interval_of_median(values, confidence=0.99)
    assert lower <= low
    assert high <= higher


def test_one_value_is_its_own_interval():
    """With one round there is nothing to tell a spread from."""
    assert interval_of_median([3.0]) == (3.0, 3.0, 3.0)


def test_the_interval_covers_the_true_median_as_often_as_it_says():
    """Of 200 samples from a known distribution, about 95 % of the intervals hold its median."""
    generator = random.Random(0)
    covered = 0
    for seed in range(200):
        _, low, high = interval_of_median([generator.gauss(5, 1) for _ in range(15)], seed=seed)
        covered += low <= 5 <= high
    # Percentile intervals of small samples are a little short or long of it.
    assert 180 <= covered <= 199


def test_the_quantiles_of_t_are_those_of_the_tables():
    """Odd and even degrees of freedom, to the digits that are printed."""
    table = {(0.975, 1): 12.706, (0.95, 2): 2.920, (0.995, 3): 5.841, (0.975, 10): 2.228}
    for (probability, freedom), expected in table.items():
        assert student_t(probability, freedom) == pytest.approx(expected, abs=5e-4)


def test_the_interval_over_launches_covers_the_truth_as_often_as_it_says():
    """Of 2,000 runs of four launches, about 5 % are beyond an interval of 95 %, and never fewer."""
    generator = random.Random(1)
    beyond = 0
    for _ in range(2000):
        _, low, high = interval_over_launches([generator.gauss(3, 1) for _ in range(4)], 0.025)
        beyond += not low <= 3 <= high
    assert 70 <= beyond <= 130


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.lists(st.floats(-1, 1), max_size=8))
def test_an_interval_is_never_narrower_than_one_of_noise_alone(values, noise):
    """Few launches can agree by chance; the baseline against itself says how far they may."""
    middle, low, high = interval_over_launches(values, 0.025, spread_of=noise)
    _, alone, _ = interval_over_launches(values, 0.025)
    assert low <= alone <= middle <= high
    if len(noise) == len(values):
        center, lowest, _ = interval_over_launches(noise, 0.025)
        assert middle - low >= center - lowest - 1e-9


def test_one_launch_tells_nothing_of_the_others():
    """However often it took turns: the interval has no ends."""
    assert interval_over_launches([0.3], 0.025) == (0.3, -math.inf, math.inf)


@given(st.lists(st.floats(0.9, 1.1), min_size=10, max_size=30))
def test_a_trimmed_mean_is_not_moved_by_an_interruption(values):
    """One turn that took a thousand times as long changes it by no more than the others differ."""
    assert trimmed_mean([*values, 1000.0]) <= max(values)
    assert min(values) <= trimmed_mean(values) <= max(values)


def test_the_speed_of_several_launches_is_between_them():
    """Each launch counts once, however many rounds it had; one launch is its rounds."""
    middle, low, high = interval_of_speeds([[8.0, 8.0, 8.0], [2.0]])
    assert middle == pytest.approx(4.0)
    assert low < 2.0 < 8.0 < high
    assert interval_of_speeds([[1.0, 2.0, 3.0]])[0] == 2.0


@given(st.lists(st.lists(rates, max_size=300), min_size=1, max_size=4).filter(any))
def test_blocks_hold_every_token_once_and_none_spans_two_windows(windows):
    """In order, 32 tokens at most, and of a short text still enough to tell a spread from."""
    cut = blocks(windows)
    assert [value for block in cut for value in block] == [v for each in windows for v in each]
    assert all(1 <= len(block) <= 32 for block in cut)
    tokens = sum(map(len, windows))
    assert len(cut) >= min(tokens, 8)


def correlated(generator, tokens=510):
    """A window of a text whose neighboring tokens are hard or easy together."""
    level, values = 0.0, []
    for _ in range(tokens):
        level = 0.8 * level + generator.gauss(0, 0.6)
        values.append(3.0 + level)
    return values


def test_the_error_is_how_far_means_of_correlated_tokens_scatter():
    """Taking each token for itself would claim an error less than half of it."""
    generator = random.Random(1)
    texts = [[correlated(generator) for _ in range(4)] for _ in range(60)]
    found = [mean_with_error(blocks(text)) for text in texts]
    scatter = stdev(mean for mean, _ in found)
    error = fmean(error for _, error in found)
    assert 0.75 * scatter < error < 1.25 * scatter
    single = fmean(mean_with_error([[v] for each in text for v in each])[1] for text in texts)
    assert single < 0.5 * scatter


def test_the_error_of_independent_tokens_is_the_usual_one():
    """With nothing in common between neighbors, blocks cost nothing but a little precision."""
    generator = random.Random(2)
    values = [generator.gauss(0, 1) for _ in range(20_000)]
    mean, error = mean_with_error(blocks([values]))
    assert mean == pytest.approx(fmean(values))
    assert error == pytest.approx(stdev(values) / math.sqrt(len(values)), rel=0.15)


def test_the_error_of_a_single_block_is_unknown():
    """And not nothing, which would claim certainty."""
    assert math.isnan(mean_with_error([[1.0, 2.0]])[1])


@given(st.lists(rates, min_size=1, max_size=3000), st.sampled_from([0.5, 0.99, 0.999]))
def test_a_percentile_has_its_share_of_values_below_it(values, share):
    """No more than one in a thousand is above the 99.9th percentile."""
    found, _ = percentile_with_error([values], share)
    assert found in values
    assert sum(value > found for value in values) <= (1 - share) * len(values)


def test_the_error_of_a_percentile_is_how_far_it_scatters():
    """By resampling: there is no formula for it that does not assume a distribution."""
    generator = random.Random(3)
    texts = [[generator.gauss(0, 1) for _ in range(800)] for _ in range(30)]
    found = [percentile_with_error(blocks([text]), 0.9) for text in texts]
    scatter = stdev(value for value, _ in found)
    assert 0.6 * scatter < fmean(error for _, error in found) < 1.6 * scatter


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_a_number_does_not_become_one(value):
    """A broken model has a broken mean and a broken tail, not an error in the statistics."""
    cut = [[1.0, value], [2.0], [3.0]]
    assert not math.isfinite(mean_with_error(cut)[0])
    found, error = percentile_with_error(cut, 0.999)
    assert not math.isfinite(found)
    assert math.isnan(error)


def test_runs_that_were_measured_apart_are_compared_by_their_medians():
    """The interval holds the ratio, and is as wide as both runs are noisy."""
    middle, low, high = unpaired_ratio([20.0, 22.0, 21.0, 19.0], [10.0, 10.0, 10.0])
    assert middle == 2.05
    assert (low, high) == (1.9, 2.2)
