"""How much of a prompt goes into a pass that others wait for."""

from __future__ import annotations

import pytest

from truthgpt_services.inference.pass_times import PassTimes

ALONE = 0.010
"""Seconds of a pass of eight texts."""


@pytest.mark.parametrize("prompt_token", [0.0002, 0.0006, 0.0012])
def test_a_pass_with_a_prompt_takes_at_most_three_times_as_long(prompt_token: float) -> None:
    """Tokens far into a prompt take longer than when it was first read; others wait no longer."""
    times = PassTimes()
    times.learn(8, 0, ALONE)
    times.learn(0, 512, 512 * 0.0003)
    for _ in range(30):
        read = times.room(8, 1)
        seconds = ALONE + read * prompt_token
        times.learn(8, read, seconds)
    assert 1.5 * ALONE < seconds < 3 * ALONE


def test_prompts_that_wait_for_each_other_are_read_in_larger_pieces() -> None:
    """Reading them takes less time in all."""
    times = PassTimes()
    times.learn(8, 0, ALONE)
    times.learn(0, 512, 0.3)
    assert times.room(8, 1) < times.room(8, 2) < times.room(8, 4)


def test_a_pass_that_was_quicker_than_one_without_a_prompt_says_nothing() -> None:
    """Where other programs run, times are noise, and pieces stay what they were."""
    times = PassTimes()
    times.learn(8, 0, ALONE)
    times.learn(0, 512, 0.3)
    room = times.room(8, 1)
    times.learn(8, room, ALONE / 2)
    assert times.room(8, 1) == room
