"""The benchmarks run; their figures need a machine that is left alone, and are not judged here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.new_process

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

CONTESTS = [
    ("singleton `get`", 1),
    ("3-deep transient", 1),
    ("emit, 0 handlers", 1),
    ("emit, 1 handler", 1),
    ("emit, 10 handlers", 1),
    ("discovery and judging", 1),
    ("start, 50 plugins in 500", 2),
]
"""What each contest's title begins with, and how many of its ways are asked to reach something."""


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a benchmark in this environment."""
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_core_benchmark_prints_its_table() -> None:
    """Each contest has a reference and a verdict on ours, whatever other libraries are there."""
    done = run("core.py", "--here", "--rounds", "2")
    assert done.returncode == 0, done.stderr
    described, _, *table = done.stdout.splitlines()
    assert "Python " in described
    assert "truthgpt-core " in described
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert {len(row) for row in rows} == {6}
    starts = [number for number, row in enumerate(rows[2:], 2) if row[0]]
    ends = [*starts[1:], len(rows)]
    for (title, verdicts), start, end in zip(CONTESTS, starts, ends, strict=True):
        reference, *others = rows[start:end]
        assert reference[0].startswith(title)
        assert reference[3:] == ["", "", ""]
        assert all(" to " in row[3] for row in others), title
        judged = [row[5] for row in others if "truthgpt" in row[1]]
        assert len(judged) == verdicts
        assert set(judged) <= {"yes", "no"}


def test_one_round_is_refused() -> None:
    """A single round has no spread to show, and the message says so."""
    done = run("core.py", "--here", "--rounds", "1")
    assert done.returncode == 2
    assert done.stderr.endswith("--rounds must be at least 2: the table shows a spread\n")


@pytest.mark.slow
def test_the_training_benchmark_prints_its_tables() -> None:
    """Our loop leaves the bits that plain PyTorch leaves, and what a process holds is told."""
    done = run(
        *("train.py", "--only", "twin", "memory", "--twins", "tiny"),
        *("--steps", "2", "--stores", "1"),
    )
    assert done.returncode == 0, done.stderr
    described, twins, memory = done.stdout.rstrip("\n").split("\n\n")
    assert "torch " in described
    assert twins.splitlines()[2].endswith("| the same bits |")
    assert memory.splitlines()[2].startswith("| 1 MB |")
