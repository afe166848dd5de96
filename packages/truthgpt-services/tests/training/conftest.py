"""Runs of training, here and in processes of their own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from truthgpt_core.event_system import Event, get_event_emitter

SCRIPT = Path(__file__).parent / "runs.py"
Jobs = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """The module of runs."""
    name = "truthgpt_services_tests_runs"
    spec = importlib.util.spec_from_file_location(name, SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    """Do jobs, each in a process of its own; see `runs.py`."""

    def do(*given: dict[str, Any]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(tmp_path / "warming")],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)
        assert not any("died" in each for each in found), done.stderr
        return found

    return do


@pytest.fixture
def events() -> Iterator[list[Event]]:
    """All events of the test."""
    told: list[Event] = []
    with get_event_emitter().on(None, told.append):
        yield told
