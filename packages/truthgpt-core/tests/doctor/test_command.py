"""`truthgpt doctor`: what it shows, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

pytestmark = pytest.mark.slow


def test_json_has_every_area_in_order(doctor, torch, site) -> None:
    """`--json` is a list of findings with the same keys, and no area is missing."""
    torch()
    site.install_plugin(
        "half",
        """
        from truthgpt_core import Optimization
        class Half(Optimization):
            name = "half"
            def apply(self, model, context): ...
        """,
        optimizations={"half": "MODULE:Half"},
    )
    _, findings = doctor()
    assert {tuple(each) for each in findings.values()} == {
        ("area", "subject", "status", "detail", "fix")
    }
    assert {each["status"] for each in findings.values()} <= {"ok", "warning", "failed"}
    assert list(dict.fromkeys(area for area, _ in findings)) == [
        "machine",
        "python",
        "torch",
        "accelerators",
        "compilers",
        "plugins",
        "optimizations",
        "config",
    ]


def test_text_says_status_subject_detail_and_fix(truthgpt, torch, monkeypatch) -> None:
    """Each finding is a line that begins with its status in words; a fix comes below its own."""
    torch("raise OSError('two\\nlines')")
    monkeypatch.setenv("TRUTHGPT_CACH", "/tmp")
    done = truthgpt("doctor")
    lines = done.stdout.splitlines()
    at = next(at for at, line in enumerate(lines) if "importing torch" in line)
    assert lines[at - 1] == "torch"
    assert lines[at].split(None, 2) == [
        "failed",
        "torch",
        "importing torch 9.9.0: OSError: two lines",
    ]
    assert lines[at + 1].strip() == "fix: pip install --force-reinstall torch"
    at = next(at for at, line in enumerate(lines) if "TRUTHGPT_CACH " in line)
    assert lines[at].split()[:2] == ["warning", "TRUTHGPT_CACH"]
    assert lines[at + 1].strip() == "fix: Did you mean TRUTHGPT_CACHE?"
    assert "\x1b" not in done.stdout
    assert lines[-1].startswith("1 failed, ")


def test_text_fits_a_terminal_of_80_columns(truthgpt, torch, monkeypatch) -> None:
    """Lines are folded at the width of the terminal, and go on below where they began."""
    torch(f"raise OSError({'word ' * 60!r})")
    monkeypatch.setenv("COLUMNS", "80")
    lines = truthgpt("doctor").stdout.splitlines()
    begun = next(at for at, line in enumerate(lines) if "importing torch" in line)
    column = lines[begun].index("importing torch")
    folded = [line for line in lines[begun + 1 :] if line.strip().startswith("word")]
    assert len(folded) > 3
    assert all(len(line) <= 80 and line.index("word") == column for line in folded)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_warnings_alone_exit_with_0(truthgpt, torch, monkeypatch, options) -> None:
    """What the user may not care about is no failure."""
    torch()
    monkeypatch.setenv("TRUTHGPT_CACH", "/tmp")
    done = truthgpt("doctor", *options)
    assert "warning" in done.stdout
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_failure_exits_with_1(truthgpt, torch, options) -> None:
    """Scripts see from the exit code that something has failed."""
    torch("raise OSError")
    done = truthgpt("doctor", *options)
    assert done.returncode == 1
    assert done.stderr == ""


def test_what_the_terminal_cannot_show_is_escaped(truthgpt, torch, monkeypatch) -> None:
    """Neither letters that the encoding lacks nor escape sequences reach the terminal."""
    torch("raise OSError('caf\\xe9 \\x1b[31m red')")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert "OSError: caf\\xe9 \\x1b[31m red" in truthgpt("doctor").stdout


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_ends_the_children(site, torch, tmp_path) -> None:
    """Interrupted, it says so, and what runs for it is gone with it."""
    place = tmp_path / "process"
    torch(f"import os, time\nopen({str(place)!r}, 'x').write(str(os.getpid()))\ntime.sleep(600)")
    process = subprocess.Popen(
        [sys.executable, "-c", "from truthgpt_core.cli.main import main; main()", "doctor"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where a shell ignores Ctrl-C for what it runs in the background, so would this.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    while not place.exists() or not place.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.strip() == "truthgpt: interrupted"
    with pytest.raises(ProcessLookupError):
        os.kill(int(place.read_text()), 0)
