"""A plugin for pytest: more examples for property tests, and a count of what was tried.

`SOAK_FACTOR` multiplies the examples of each, and leaves all other tests out; a line of JSON for
each test goes into a file in the folder `SOAK_COUNTS`.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import is_hypothesis_test, settings

FACTOR = int(os.environ.get("SOAK_FACTOR", "0"))
COUNTS = Path(os.environ["SOAK_COUNTS"])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave property tests alone in the run, each with more examples, if there is a factor."""
    if not FACTOR:
        return
    properties = [each for each in items if is_hypothesis_test(getattr(each, "obj", None))]
    config.hook.pytest_deselected(items=[each for each in items if each not in properties])
    items[:] = properties
    done = set()
    for item in items:
        function = getattr(item, "obj", None)
        owner: Any = (
            item.cls if _is_state_machine(item) else getattr(function, "__func__", function)
        )
        if id(owner) in done:  # parameters share one function
            continue
        done.add(id(owner))
        name = "settings" if _is_state_machine(item) else "_hypothesis_internal_use_settings"
        before = getattr(owner, name, None) or settings()
        more = settings(before, max_examples=before.max_examples * FACTOR, deadline=None)
        setattr(owner, name, more)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down a test that has run, and how many examples it tried."""
    if report.when != "call" and report.passed:
        return
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # The process that started the workers gets all reports.
    statistics = dict(report.user_properties).get("hypothesis", "")
    examples = sum(map(int, re.findall(r"(\d+) (?:passing|failing)", statistics)))
    row = {"test": report.nodeid, "cases": examples or 1, "failed": report.failed}
    if not report.skipped:
        with (COUNTS / "tests.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Hand the statistics of Hypothesis to the process that counts."""
    report = yield
    found = getattr(item, "hypothesis_statistics", "")
    if found and report.when == "call":
        report.user_properties.append(("hypothesis", found))
    return report


def _is_state_machine(item: pytest.Item) -> bool:
    return hasattr(getattr(item, "cls", None), "settings")
