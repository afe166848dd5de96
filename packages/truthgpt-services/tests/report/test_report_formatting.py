"""What a user can rely on in how numbers are written."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truthgpt_services import formatting
from truthgpt_services.results.schema import Ratio, Samples

anything = st.floats(allow_nan=True, allow_infinity=True)
positive = st.floats(min_value=1e-6, max_value=1e8)


def read(text: str) -> float:
    return float(text.replace(",", "").removesuffix(formatting.TIMES))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (31.2449, "31.2"),
        (9.996, "10.0"),
        (1234.5, "1,234"),
        (0.00123, "0.00123"),
        (1.2e-9, "1.20e-9"),
        (3e12, "3.00e12"),
        (math.nan, "NaN"),
        (-math.inf, "-\N{INFINITY}"),
    ],
)
def test_numbers_have_three_digits_and_never_an_empty_exponent(value, text):
    """A number is as long as it has to be and no longer."""
    assert formatting.number(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_600, "1.00 MB"), (538_061_568, "538 MB")],
)
def test_sizes_are_decimal(count, text):
    """1 MB is a million bytes, and rounding carries into the next unit."""
    assert formatting.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0004, "0.400 ms"),
        (0.0381, "38.1 ms"),
        (0.9999, "1.00 s"),
        (74.2, "74.2 s"),
        (125.2, "2 min 5 s"),
        (7320.0, "2 h 2 min"),
    ],
)
def test_durations_take_the_unit_a_person_would(value, text):
    """Milliseconds stay milliseconds and minutes become minutes."""
    assert formatting.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2.3149, "2.31"), (0.9751, "0.98"), (23.14, "23.1"), (0.0361, "0.036")]
)
def test_a_ratio_is_written_with_a_times_sign(value, text):
    """A ratio is candidate / reference, as in 2.31 times."""
    assert formatting.ratio(value) == f"{text}{formatting.TIMES}"


@settings(deadline=None)
@given(positive)
def test_a_number_reads_back_within_its_last_digit(value):
    """What is printed is what was measured, to three digits."""
    assert read(formatting.number(value)) == pytest.approx(value, rel=5.001e-3)


@settings(deadline=None)
@given(anything)
def test_every_float_can_be_written(value):
    """No measurement, however broken, stops a report."""
    for write in (
        formatting.number,
        formatting.ratio,
        formatting.size,
        formatting.seconds,
        formatting.share,
        formatting.bound,
    ):
        assert write(value)
        assert write(value) == write(value).strip()
    assert all(formatting.ratio_interval(Ratio(median=value, low=value, high=value)))
    assert all(formatting.samples(Samples(median=value, low=value, high=value, values=[value])))
    assert formatting.plus_minus(value, value)[0]
    assert formatting.seconds_interval(value, value, value)


@settings(deadline=None)
@given(st.floats(min_value=0, max_value=1))
def test_all_and_none_are_claimed_only_if_true(value):
    """A share of 99.996 % is not written as 100 %."""
    if 1e-9 < value < 1 - 1e-9:
        assert read(formatting.share(value).removesuffix(" %")) not in (0, 100)


@settings(deadline=None)
@given(st.floats(min_value=1.00001, max_value=50), st.floats(min_value=0, max_value=2))
def test_an_interval_that_excludes_one_does_not_show_one(low, width):
    """A difference that was told is visible in the digits."""
    told = Ratio(median=low + width / 2, low=low, high=low + width)
    middle, ends = formatting.ratio_interval(told)
    shown = [read(end) for end in ends.split(formatting.DASH)]
    assert min(shown) > 1
    assert shown[0] <= read(middle) <= shown[1]


@settings(deadline=None)
@given(positive, positive)
def test_sizes_keep_their_order(one, other):
    """A larger size is never printed as a smaller one."""
    units = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}

    def bytes_of(text):
        figure, unit = text.split()
        return read(figure) * units[unit]

    small, large = sorted((one, other))
    assert bytes_of(formatting.size(small)) <= bytes_of(formatting.size(large)) * (1 + 1e-12)


def test_a_mean_is_as_precise_as_its_error():
    """The digits of a KL stop where its error begins."""
    assert formatting.plus_minus(0.0014249, 0.0000612) == ("0.00142", "\N{PLUS-MINUS SIGN} 0.00006")
    assert formatting.plus_minus(0.0, 0.0) == ("0", "")


@settings(deadline=None)
@given(st.text())
def test_characters_that_act_are_written_out(text):
    """An escape sequence in a model's text reaches neither terminal nor page."""
    shown = formatting.visible(text)
    assert not any(character in shown for character in "\x1b\x00\x07\r\x9b\u202e\u2066")
    assert formatting.visible("\x1b[2J\u202e ok\n") == "\\x1b[2J\\u202e ok\n"


def test_a_time_is_written_in_utc():
    """The moment of a run is the same for every reader."""
    assert formatting.moment("2025-11-23T15:02:11+01:00") == "2025-11-23 14:02 UTC"
    assert formatting.moment("yesterday") == "yesterday"
