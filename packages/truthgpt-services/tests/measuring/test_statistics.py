"""Medians and their intervals."""

from __future__ import annotations

import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_services.measuring.statistics import interval_of_median, paired_ratio

rates = st.floats(1e-6, 1e6)
samples = st.lists(rates, min_size=1, max_size=12)
pairs = st.lists(st.tuples(rates, rates), min_size=1, max_size=9)


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


@given(pairs, st.integers(-20, 20), st.integers(0, 9))
def test_a_machine_that_is_slower_for_both_changes_no_ratio(measured, power, seed):
    """Common scaling cancels, each round on its own; by powers of two even to the last bit."""
    candidate, reference = zip(*measured, strict=True)
    scales = [2.0 ** (power + turn % 3) for turn in range(len(measured))]
    slowed = [
        [value * scale for value, scale in zip(values, scales, strict=True)]
        for values in (candidate, reference)
    ]
    assert paired_ratio(*slowed, seed=seed) == paired_ratio(candidate, reference, seed=seed)


@given(pairs, st.integers(1, 10))
def test_a_candidate_twice_as_fast_has_twice_the_ratio(measured, power):
    """The ratio is candidate / reference, and not the other way round."""
    candidate, reference = zip(*measured, strict=True)
    factor = 2.0**power
    faster = paired_ratio([value * factor for value in candidate], reference)
    assert faster == tuple(value * factor for value in paired_ratio(candidate, reference))


@pytest.mark.parametrize(("one", "other"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [])])
def test_unpaired_measurements_are_refused(one, other):
    """A ratio of rounds that were not measured together would mean nothing."""
    with pytest.raises(ValueError, match=r"no pairs|shorter|longer"):
        paired_ratio(one, other)
