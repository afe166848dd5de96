"""What a user can rely on in what is named as a cost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truthgpt_services.report.costs import costs, find_costs
from truthgpt_services.results.schema import Ratio

SAME = Ratio(median=1.0, low=0.98, high=1.02)
SLOWER = Ratio(median=0.8, low=0.78, high=0.83)
FASTER = Ratio(median=10.3, low=9.7, high=11.0)
MB = 1_000_000


@pytest.fixture
def found(samples):
    """Return the costs of a candidate that is like the baseline but for what is given."""

    def of(before=None, decode=SAME, prefill=SAME, file_bytes=98_400_000, closely=True, **changes):
        return costs(
            samples.measurements(**({"saved_bytes": 98_400_000} | changes)),
            samples.measurements(**(before or {})),
            decode=decode,
            prefill=prefill,
            file_bytes=file_bytes,
            closely=closely,
        )

    return of


def test_what_is_no_worse_costs_nothing(found):
    """The same figures, and faster ones, name no cost."""
    assert found() == []
    assert found(decode=FASTER, prefill=FASTER, weights_bytes=151 * MB) == []


def test_slower_prompts_are_named_with_the_first_token_that_waits_for_them(samples, found):
    """A step that decodes faster and reads prompts slower says both figures of it."""
    assert found(
        before={"first_token_seconds": samples.samples(0.161)},
        decode=FASTER,
        prefill=SLOWER,
        first_token_seconds=samples.samples(0.197),
    ) == ["reads prompts 0.80× as fast (0.78 to 0.83×)", "first token 161 ms → 197 ms"]


def test_slower_decoding_is_named(found):
    """A model that only got smaller says that it got slower."""
    assert found(decode=SLOWER) == ["decodes 0.80× as fast (0.78 to 0.83×)"]


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.0), (0.5, 1.01), (float("nan"), float("nan"))])
def test_what_noise_explains_is_no_cost(low, high, samples, found):
    """As long as the interval reaches 1, neither prompts nor the first token got slower."""
    noisy = Ratio(median=0.95, low=low, high=high)
    later = samples.samples(0.7)
    assert found(decode=noisy, prefill=noisy, first_token_seconds=later) == []


def test_files_larger_than_the_source_are_named(found):
    """The int8 model of a 4-bit source takes more of the disk, though less memory."""
    assert found(saved_bytes=151 * MB) == ["saved files 151 MB, source file 98.4 MB"]


def test_files_are_named_by_the_step_that_made_them_larger(found):
    """A later step, which saves as much as the one before, is not blamed for it."""
    assert found(before={"saved_bytes": 151 * MB}, saved_bytes=151 * MB) == []
    again = found(before={"saved_bytes": 151 * MB}, saved_bytes=200 * MB)
    assert again == ["saved files 200 MB, source file 98.4 MB"]


def test_more_memory_is_named(found):
    """At its peak beyond what processes differ by, and in weights."""
    before = {"peak_memory_bytes": 1_400 * MB, "weights_bytes": 538 * MB}
    assert found(before, peak_memory_bytes=1_460 * MB, weights_bytes=538 * MB + 4096) == []
    assert found(before, peak_memory_bytes=1_900 * MB, weights_bytes=600 * MB) == [
        "weights in memory 600 MB, before 538 MB",
        "peak memory 1.90 GB, before 1.40 GB",
    ]


@pytest.mark.parametrize(
    ("before", "after", "named"), [(0.5, 4.0, False), (20.0, 39.0, False), (1.3, 74.2, True)]
)
def test_a_slow_start_is_named_if_nobody_would_overlook_it(before, after, named, found):
    """Beyond twice the time and five seconds more: both are measured only once."""
    for field, name in (("load_seconds", "load"), ("warmup_seconds", "warm-up")):
        said = found(before={field: before}, **{field: after})
        assert said == ([f"{name} 1.30 s → 74.2 s"] if named else [])


def test_speed_that_was_not_measured_closely_is_no_cost_either(found):
    """A quick run claims no gain in speed and no loss; sizes are exact all the same."""
    assert found(decode=SLOWER, prefill=SLOWER, closely=False, saved_bytes=151 * MB) == [
        "saved files 151 MB, source file 98.4 MB"
    ]


@settings(deadline=None)
@given(
    decode=st.floats(0.1, 10),
    prefill=st.floats(0.1, 10),
    saved=st.integers(0, 10**12),
    memory=st.integers(1, 10**12),
    start=st.floats(0, 1e4),
)
def test_every_cost_is_a_clause_with_a_figure(samples, decode, prefill, saved, memory, start):
    """Whatever was measured, nothing is named without saying how much, and nothing twice."""
    found = find_costs(
        samples.measurements(
            saved_bytes=saved,
            weights_bytes=memory,
            peak_memory_bytes=memory,
            warmup_seconds=start,
        ),
        samples.measurements(),
        decode=Ratio(median=decode, low=decode * 0.9, high=decode * 1.1),
        prefill=Ratio(median=prefill, low=prefill * 0.9, high=prefill * 1.1),
        file_bytes=269_060_552,
    )
    for cost in found:
        assert any(character.isdigit() for character in cost.figure)
        assert cost.figure
        assert cost.detail
        assert any(character.isdigit() for character in cost.clause)
    assert len({cost.name for cost in found}) == len(found)
