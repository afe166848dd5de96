"""What begins warm does what a new process does: the other tests count on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

WHO = """
import os, signal, sys, warnings
for each in (
    sys.argv, sys.orig_argv, sys.warnoptions, os.getcwd(), __name__, sorted(globals()),
    os.getsid(0) == os.getpid(), os.getppid(), *sys.path, *sorted(os.environ.items()),
    *((each, signal.getsignal(each)) for each in sorted(signal.valid_signals())),
    sys.stdin.encoding, sys.stdout.line_buffering, sys.stderr.line_buffering, sys.stdout.errors,
):
    print(repr(each).partition(" at 0x")[0])
"""
PROGRAMS = {
    "what it finds": (["-c", WHO, "a", "-b"], {}),
    "safely": (["-P", "-W", "error", "-c", WHO], {"env": os.environ | {"NEW": "1"}}),
    "in a session": (["-c", WHO], {"start_new_session": True}),
    "elsewhere": (["-c", WHO], {"cwd": "/"}),
    "a module": (["-m", "json.tool", "--help"], {}),
    "no such module": (["-m", "no.such.module"], {}),
    "input": (["-c", "import sys; print(sys.stdin.read()[::-1])"], {"input": "olleh\n"}),
    "an error": (["-c", "def f(): raise ValueError('no')\nf()"], {}),
    "a warning": (["-W", "error", "-c", "import warnings; warnings.warn('x')"], {}),
    "a code": (["-c", "raise SystemExit(7)"], {}),
    "a reason": (["-c", "raise SystemExit('because')"], {}),
    "Ctrl-C": (["-c", "import os, signal; os.kill(os.getpid(), signal.SIGINT)"], {}),
    "a kill": (["-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], {}),
    "a closed stream": (["-c", "import os; os.close(1); print('x')"], {}),
    "its end": (
        [
            "-c",
            "import atexit, threading, time\n"
            "atexit.register(print, 'over')\n"
            "threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
        ],
        {},
    ),
}


def ended(arguments, **options):
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, **options
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_finds_leaves_and_ends_as_a_new_one(warm_processes, name):
    """Its arguments, path, signals, streams and session, and how it ends."""
    arguments, options = PROGRAMS[name]
    # Libraries in C may have set variables that Python does not know.
    options = {"env": dict(os.environ)} | options
    code, *warm = ended(arguments, **options)
    with warm_processes.new_processes():
        expected, *new = ended(arguments, **options)
    assert code == expected
    for ours, theirs in zip(warm, new, strict=True):
        assert ours.splitlines() == theirs.splitlines()


def test_a_command_that_is_installed_is_python(warm_processes):
    """It begins warm, too, and writes what it writes when it does not."""
    script = str(Path(sys.executable).with_name("pytest"))
    assert warm_processes.python_command([script, "--version"])[1:] == [script, "--version"]
    warm = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    with warm_processes.new_processes():
        new = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert warm.returncode == 0
    assert (warm.stdout, warm.stderr) == (new.stdout, new.stderr)


def is_warm(arguments=("-P",), **options):
    code = "import sys; print('torch' in sys.modules)"
    return ended([*arguments, "-c", code], **options)[1] == "True\n"


def test_what_is_read_when_a_process_starts_has_a_new_one(request, tmp_path, monkeypatch):
    """Variables of libraries, another module of a name that is known, limits, and options."""
    if request.config.getoption("--new-processes") or sys.platform != "linux":
        pytest.skip("no process begins warm here")
    assert is_warm()
    assert is_warm(env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)})
    assert not is_warm(env=os.environ | {"OMP_NUM_THREADS": "3"})
    assert not is_warm(["-I"])
    (tmp_path / "gguf.py").touch()
    assert not is_warm(env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert not is_warm([], cwd=tmp_path)
    assert not is_warm(preexec_fn=lambda: None)
    before = os.umask(0o077)
    assert not is_warm()
    os.umask(before)
    assert is_warm()


@pytest.mark.new_process
def test_a_marked_test_has_new_ones():
    """Torch is not imported in them before they do it."""
    assert not is_warm()


def test_what_it_starts_begins_warm_and_is_its_child():
    """Workers of a command are as quick, and belong to it."""
    code = (
        "import os, subprocess, sys\n"
        "code = 'import os, sys; print(os.getppid(), len(sys.modules) > 1000)'\n"
        "done = subprocess.run([sys.executable, '-P', '-c', code], stdout=subprocess.PIPE)\n"
        "print(f'{os.getpid()} {len(sys.modules) > 1000}' == done.stdout.decode().strip())\n"
    )
    assert ended(["-P", "-c", code]) == (0, "True\n", "")


def test_what_was_started_can_be_interrupted():
    """Ctrl-C ends it as it ends any, and leaves nothing of it."""
    code = (
        "import signal, time\n"
        # Tests that run in the background of a shell inherit that Ctrl-C is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "print('here', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout.readline() == b"here\n"
        process.send_signal(signal.SIGINT)
    assert process.returncode == -signal.SIGINT
