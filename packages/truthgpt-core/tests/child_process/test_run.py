"""Other programs: they have their time, and what they have started ends with them."""

from __future__ import annotations

import os
import sys

import pytest

from truthgpt_core.child_process import run


def test_a_program_says_how_it_ended() -> None:
    """Its code, what it wrote, and what it said."""
    ended = run([sys.executable, "-c", "import sys; print('out'); sys.exit('no')"], 60)
    assert (ended.code, ended.out, ended.how) == (1, b"out\n", "exit code 1: no")


def test_a_program_has_its_time_and_no_more(tmp_path, end_soon) -> None:
    """One that is over its time has no exit code, and takes with it what it has started."""
    file = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(file)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    assert run([sys.executable, "-c", code], 2).code is None
    end_soon(int(file.read_text()))


def test_what_stays_behind_does_not_hold_things_up() -> None:
    """A server that a program leaves running is let run, and not waited for."""
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],"
        " stdout=subprocess.DEVNULL)\n"
        "print(child.pid)\n"
    )
    ended = run([sys.executable, "-c", code], 60)
    assert ended.code == 0
    pid = int(ended.out)
    os.kill(pid, 0)
    os.kill(pid, 9)


def test_a_program_that_is_not_there_cannot_be_started() -> None:
    """It is the caller's to explain."""
    with pytest.raises(OSError, match="nowhere"):
        run(["/nowhere/at/all"], 60)
