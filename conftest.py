"""How many cases are tried, how processes begin, and what is made once in a run of tests."""

from __future__ import annotations

import fcntl
import importlib.util
import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

WARM_PROCESSES = Path(__file__).parent / "tests" / "warm_processes.py"


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


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marker of new processes is."""
    config.addinivalue_line(
        "markers",
        "new_process: the test is about starting Python, so the processes that it starts "
        "are new ones; those of other tests begin with torch imported",
    )


def _tries_all(config: pytest.Config) -> bool:
    # Whatever is named on the command line is tried.
    return config.getoption("--all-cases") or any("::" in each for each in config.args)


Once = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """Make a directory once in a whole run of tests, however many processes share it."""
    root = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        root = root.parent

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        directory, done = root / name, root / f"{name}.done"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir()
                fill(directory)
                done.touch()
        return directory

    return make


@pytest.fixture(scope="session")
def warm_processes(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Let Python processes begin warm from here on, unless the command line says otherwise.

    Where tests start commands that import torch, their conftest asks for this once.
    """
    name = "truthgpt_warm_processes"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, WARM_PROCESSES)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    module = sys.modules[name]
    new = request.config.getoption("--new-processes")
    with nullcontext() if new else module.patched():
        yield module


@pytest.fixture(autouse=True)
def new_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let those of tests that are marked so be new ones, where others begin warm."""
    if request.node.get_closest_marker("new_process") is None:
        yield
        return
    with request.getfixturevalue("warm_processes").new_processes():
        yield


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
    """Leave so many cases of each campaign as its marker says, picked by the test's name.

    Beside others, what is slow begins first: begun last, it would be waited for alone.
    """
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)
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
