"""Progress on a terminal, seen through one: a pseudo-terminal that a process draws on."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

JOB = """
import time
from truthgpt_services.commands.progress import display_progress
from truthgpt_services.optimizing.schedule import Phase, Schedule

with display_progress() as progress:
    job = Schedule(progress)
    job.expect([Phase("Loading", 1.0, "load"), Phase("Timing", 1.0, "time")])
    job("Loading", 0, 0)
    time.sleep(1.2)
    job("Halving", 3, 4)
    time.sleep(0.4)
    job("Timing: launch 2/4, round 3/7", 2, 4)
    time.sleep(0.8)
print("over")
"""


@pytest.fixture(scope="module")
def drawn() -> str:
    """All that the job has sent to its terminal, with the escapes that move it."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", JOB],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"COLUMNS": "100", "TERM": "xterm"},
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    assert process.wait() == 0
    return said.decode()


def lines(drawn: str) -> list[str]:
    """What stood in the line, one entry for each time it was drawn."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn)
    return [line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_one_line_says_what_is_done_for_how_long_and_how_far_the_job_is(drawn):
    """Round and launch stand in it; what a plugin tells of is part of the phase."""
    shown = "\n".join(lines(drawn))
    assert re.search(r"Loading  +1 s .*% about \d+ s left", shown)
    assert re.search(r"Loading: Halving  +\d s .*%", shown)
    assert re.search(r"Timing: launch 2/4, round 3/7  +\d s .*% about \d+ s left", shown)
    assert all(len(line) <= 100 for line in lines(drawn))


def test_a_phase_that_is_over_is_gone(drawn):
    """No line has two of them, and nothing but what was printed is left in the end."""
    assert not [line for line in lines(drawn) if "Loading" in line and "Timing" in line]
    end = drawn[drawn.rindex("left") :]
    assert "\x1b[2K" in end
    assert lines(drawn)[-1] == "over"
