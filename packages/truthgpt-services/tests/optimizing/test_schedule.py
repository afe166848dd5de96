"""How far a job is: one share that never goes back, and a time left that is never negative."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgpt_services.optimizing.schedule import Phase, Schedule


class Display:
    """Notes what it is shown."""

    def __init__(self):
        self.told, self.shares, self.left = [], [], []

    def __call__(self, what, done, total):
        self.told.append(what)

    def overall(self, share, seconds_left):
        self.shares.append(share)
        self.left.append(seconds_left)


class Clock:
    """Time that goes on when it is told to."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def display():
    return Display()


def job(display, clock, *phases):
    made = Schedule(display, clock)
    made.expect(Phase(*phase) for phase in phases)
    return made


def test_what_a_kind_took_is_what_the_rest_of_it_will_take(display, clock):
    """Expected to take 1 s each; the first took 30 s, so the other two will."""
    told = job(display, clock, *((name, 1.0, "load") for name in "abc"))
    told("a", 0, 0)
    clock.now = 30.0
    told("b", 0, 0)
    assert display.left[-1] == pytest.approx(60.0)
    assert display.shares[-1] == pytest.approx(1 / 3)


def test_what_is_not_known_yet_is_off_by_what_the_rest_was(display, clock):
    """A machine that is four times as slow as expected is so in every kind."""
    told = job(display, clock, ("load", 1.0, "load"), ("time", 10.0, "time"))
    told("load", 0, 0)
    clock.now = 4.0
    told("time", 0, 0)
    assert display.left[-1] == pytest.approx(40.0)
    clock.now = 14.0
    # Half of it is done in 10 s: its own pace begins to tell.
    told("time: round 6/10", 5, 10)
    assert 10.0 < display.left[-1] < 30.0


def test_phases_that_never_came_are_not_waited_for(display, clock):
    """A step that fails is not timed; what is expected can also be said anew."""
    told = job(display, clock, ("make", 1.0, "m"), ("time", 9.0, "t"), ("make 2", 1.0, "m"))
    told("make", 0, 0)
    clock.now = 1.0
    told("make 2", 0, 0)
    assert display.left[-1] == pytest.approx(1.0)
    told.expect([])
    told("make 2", 1, 2)
    assert display.left[-1] <= 1.0


def test_what_is_told_within_a_phase_is_a_detail_of_it(display, clock):
    """Which phase a plugin is in is not its to say, nor how far it is."""
    told = job(display, clock, ("make", 8.0, "m"))
    told("make: now", 0, 0)
    clock.now = 2.0
    told("Halving", 9, 10)
    assert display.told == ["make: now", "make: Halving"]
    assert display.left[-1] == pytest.approx(6.0)


def test_a_display_that_knows_of_no_whole_is_shown_the_phases(clock):
    """Any function can be told of progress."""
    told = []
    made = job(lambda *what: told.append(what), clock, ("a", 1.0, "a"))
    made("a", 1, 2)
    assert told == [("a", 1, 2)]


NAMES = st.sampled_from(["a", "b", "c", "d", "unknown"])
PHASES = st.lists(st.builds(Phase, NAMES, st.floats(0, 1e4), st.sampled_from("xy")), max_size=6)
CALLS = st.tuples(st.just("call"), NAMES, st.floats(0, 1e4), st.integers(-1, 9), st.integers(0, 5))
EXPECTED = st.tuples(st.just("expect"), PHASES)


@given(PHASES, st.lists(CALLS | EXPECTED))
def test_a_share_never_goes_back_and_no_time_left_is_negative(first, events):
    """Whatever is told in whatever order, and however wrong the estimates are."""
    display, clock = Display(), Clock()
    made = Schedule(display, clock)
    made.expect(first)
    for kind, *rest in events:
        if kind == "expect":
            made.expect(rest[0])
            continue
        name, seconds, done, total = rest
        clock.now += seconds
        made(name, done, total)
    assert display.shares == sorted(display.shares)
    assert all(0 <= share <= 1 for share in display.shares)
    assert all(left >= 0 for left in display.left)
