"""Fixtures: `child` starts a process with code of our own, `processes` looks at what runs."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from truthgpt_core.child_process import ChildProcess

SERVING = """
import os, signal, subprocess, sys, time
from truthgpt_core.child_process import send, serve
from truthgpt_core.errors import TruthGPTError, UsageError

{code}

if __name__ == "__main__":
    serve(lambda request, arguments: globals()[request](**arguments))
"""


@pytest.fixture
def child(site) -> Iterator[Callable[..., ChildProcess]]:
    """Start a process whose requests are the functions of some code."""
    with ExitStack() as stack:

        def start(code: str, **options) -> ChildProcess:
            module = f"child_{len(list(site.path.iterdir()))}"
            text = SERVING.format(code=textwrap.dedent(code))
            (site.path / f"{module}.py").write_text(text)
            process = ChildProcess(module, "The child", **options)
            stack.callback(process.end, at_once=True)
            return process

        yield start


def runs(pid: int) -> bool:
    """Whether a process is there and is more than an entry that nobody has read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def end_soon() -> Callable[..., None]:
    """Wait until processes have ended; fail if they never do."""

    def wait(*pids: int) -> None:
        end = time.monotonic() + 60
        while any(map(runs, pids)):
            assert time.monotonic() < end, "a process goes on and on"
            time.sleep(0.05)

    return wait
