"""Campaigns: tests of which `make test` tries some cases, and `nox -s soak` all of them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that try all cases, and try them as slowly as a user does."""
    parser.addoption(
        "--new-processes",
        action="store_true",
        help="start every Python process anew, and fork none from one that has imported torch",
    )
    parser.addoption(
        "--all-cases", action="store_true", help="try all cases of tests marked as campaigns"
    )


def _tries_all(config: pytest.Config) -> bool:
    # Whatever is named on the command line is tried.
    return config.getoption("--all-cases") or any("::" in each for each in config.args)


@pytest.fixture
def some(request: pytest.FixtureRequest) -> Callable[[Sequence[Any], int], list[Any]]:
    """Choose so many of the cases that a test tries in a loop, as of a campaign's parameters."""

    def choose(cases: Sequence[Any], count: int) -> list[Any]:
        if _tries_all(request.config):
            return list(cases)
        chosen = random.Random(request.node.name).sample(range(len(cases)), count)  # noqa: S311
        return [cases[each] for each in sorted(chosen)]

    return choose


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave so many cases of each campaign as its marker says, picked by the test's name."""
    if _tries_all(config):
        return
    campaigns: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("campaign") is not None:
            campaigns[item.nodeid.partition("[")[0]].append(item)
    left_out: set[pytest.Item] = set()
    for name, cases in campaigns.items():
        mark = cases[0].get_closest_marker("campaign")
        assert mark is not None
        count = min(mark.kwargs["cases"], len(cases))
        cases.sort(key=lambda each: each.nodeid)
        chosen = random.Random(name).sample(cases, count)  # noqa: S311 - the same ones every time
        left_out.update(set(cases) - set(chosen))
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]
