"""Contests: ways to do one thing take turns, each compared with the reference of the same round.

Machines are noisy, and what disturbs a turn disturbs all of it: so in each turn every way
takes one sample, in an order that rotates, and what is reported is the ratio of each to the
reference of its own turn. Samples of statements last equally long, and less than a process
is usually let run: else the longer ones would be interrupted more often.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median, quantiles
from typing import Any

SAMPLE = 1_000_000
"""How long a sample of a statement lasts, in nanoseconds."""

WARMING = 2_000
"""How many times a statement is run to find out how many times that is."""

TURNS = 20
"""`Contest.turns` for statements."""

HEADING = """\
| what | | median | × reference (middle half) | reach | reached |
|---|---|---:|---:|---:|---|"""


@dataclass(frozen=True)
class Way:
    """One way to do what a contest is about.

    Attributes:
        name: what the table calls it.
        sample: does it, and returns how many nanoseconds one time took.
        reach: how many times the reference it may take; None if nothing is asked of it.
    """

    name: str
    sample: Callable[[], float]
    reach: float | None = None


@dataclass(frozen=True)
class Contest:
    """Ways to do one thing.

    Attributes:
        title: what is done.
        ways: the first is the reference.
        turns: how many times each way takes its turn in one round.
    """

    title: str
    ways: tuple[Way, ...]
    turns: int = 1


def calling(
    name: str,
    statement: str,
    names: Mapping[str, Any],
    *,
    reach: float | None = None,
) -> Way:
    """Return a way that runs a statement many times over.

    `timeit` compiles a loop around the statement, so that each way has code of its own
    that the interpreter can specialize, and keeps the garbage collector off while it runs.

    Args:
        name: what the table calls it.
        statement: what is timed.
        names: what it refers to.
        reach: see `Way`.
    """
    timer = timeit.Timer(statement, timer=time.perf_counter_ns, globals=dict(names))
    number = max(1, round(SAMPLE * WARMING / timer.timeit(WARMING)))
    return Way(name, lambda: timer.timeit(number) / number, reach)


def if_installed(ways: Mapping[str, Callable[[], Way]]) -> tuple[Way, ...]:
    """Return the ways whose library is there.

    Args:
        ways: by the name of the module that each needs, what makes it.
    """
    return tuple(make() for module, make in ways.items() if find_spec(module) is not None)


def hold(contest: Contest, rounds: int) -> list[str]:
    """Let the ways of a contest take turns.

    Args:
        contest: what is compared.
        rounds: how many rounds, after a sample of each that does not count; at least 2.

    Returns:
        Rows of a table under `HEADING`, one for each way.
    """
    ways = contest.ways
    times: dict[str, list[float]] = {way.name: [] for way in ways}
    for way in ways:
        way.sample()
    for turn in range(rounds * contest.turns):
        first = turn % len(ways)
        for way in ways[first:] + ways[:first]:
            times[way.name].append(way.sample())
    reference = times[ways[0].name]
    titles = [contest.title] + [""] * len(ways)
    return [
        _row(title, way, times[way.name], reference)
        for title, way in zip(titles, ways, strict=False)
    ]


def _row(title: str, way: Way, times: list[float], reference: list[float]) -> str:
    ratio = reached = reach = ""
    if times is not reference:
        ratios = [one / other for one, other in zip(times, reference, strict=True)]
        low, middle, high = quantiles(ratios, method="inclusive")
        ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        if way.reach is not None:
            reach = f"≤ {way.reach:g}"
            reached = "yes" if middle <= way.reach else "no"
    return _cells((title, way.name, _duration(median(times)), ratio, reach, reached))


def _cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _duration(nanoseconds: float) -> str:
    if nanoseconds < 100_000:
        return f"{nanoseconds:.0f} ns"
    return f"{nanoseconds / 1e6:.1f} ms"
