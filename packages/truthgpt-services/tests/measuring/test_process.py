"""Worker processes: they answer, they fail alone, and they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from truthgpt_core.optimization import OptimizationError
from truthgpt_services.errors import ModelError, WorkerError
from truthgpt_services.measuring.client import WorkerProcess
from truthgpt_services.measuring.worker_log import NAME, collected, keep, new_log

OPEN = {"dtype": "auto", "device": "cpu"}
BUILD = OPEN | {"source": "here", "seed": 7}


@pytest.fixture
def worker(example_installed, tmp_path):
    with WorkerProcess("halve + idle", tmp_path) as process:
        yield process


def build(worker, tiny, output, name, **options):
    step = {"name": name, "options": options, "distribution": ""}
    return worker.call("build", directory=str(tiny), steps=[step], output=str(output), **BUILD)


def test_a_worker_answers_and_its_errors_are_raised_here(worker, tiny, tmp_path):
    """One start for all that follows from it: an error does not end the worker.

    Ours keep their class, message and hint; a plugin's own class becomes the nearest of ours;
    what nobody expected becomes a WorkerError with the worker's name.
    """
    with pytest.raises(ModelError, match="There is no model at") as caught:
        worker.call("open", directory="/no/where", **OPEN)
    assert type(caught.value) is ModelError
    with pytest.raises(OptimizationError, match=r"no optimization named.*Did you mean") as caught:
        build(worker, tiny, tmp_path, "halv")
    assert caught.value.hint.startswith('Did you mean "halve"?')
    with pytest.raises(OptimizationError) as caught:
        build(worker, tiny, tmp_path, "picky")
    assert type(caught.value) is OptimizationError
    assert str(caught.value) == "This model has no knobs. Take one with knobs."
    with pytest.raises(WorkerError, match=r'"halve \+ idle" failed to open: TypeError') as caught:
        worker.call("open", nonsense=True)
    assert caught.value.worker == "halve + idle"
    (tmp_path / "saved").mkdir()
    built = build(worker, tiny, tmp_path / "saved", "half")
    (step,) = built["steps"]
    assert (step["covered"], step["total"]) == (14, 15)
    assert step["notes"] == ["Halves are whole enough, with seed 7."]
    assert step["skipped"] == [["lm_head", "it makes the logits"]]
    opened = worker.call("open", directory=str(tmp_path / "saved"), **OPEN)
    assert opened["dtype"] == "float32"
    assert worker.call("tokenize", text="The end", limit=2) == worker.call(
        "tokenize", text="The ending", limit=2
    )
    # The last of all: it takes the worker with it.
    with pytest.raises(WorkerError) as caught:
        build(worker, tiny, tmp_path, "die")
    assert 'The worker for "halve + idle" ended with SIGKILL when asked to build' in str(
        caught.value
    )
    assert "too little memory" in caught.value.hint
    with pytest.raises(WorkerError, match="ended with SIGKILL"):
        worker.call("open", directory=str(tiny), **OPEN)


def test_a_worker_that_cannot_start_says_why(tmp_path, monkeypatch):
    """The last line that it printed stands in the error."""
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is missing')")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    with WorkerProcess("baseline", tmp_path) as worker, pytest.raises(WorkerError) as caught:
        worker.call("open", directory="x", **OPEN)
    assert str(caught.value) == (
        'The worker for "baseline" ended with exit code 1 when asked to open: '
        "ImportError: libtorch.so is missing"
    )


def test_a_worker_ignores_ctrl_c_and_ends_with_its_input():
    """The process that started it decides; and if that is gone, its pipe closes."""
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "truthgpt_services.measuring.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    # An answer says that it is up: until then it has not set the signal aside.
    worker.stdin.write('{"do": "open", "with": {"directory": "/no", "dtype": "x", "device": ""}}\n')
    worker.stdin.flush()
    assert worker.stdout.readline().startswith('{"error": [["ModelError"')
    os.kill(worker.pid, signal.SIGINT)
    rest, _ = worker.communicate(timeout=60)
    assert (worker.returncode, rest) == (0, "")


HANGING = """
import os, pathlib, signal, subprocess, sys, time

signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
fork = os.fork()
if fork == 0:
    time.sleep(3600)
print("Going to sleep", file=sys.stderr, flush=True)
pathlib.Path(os.environ["HANGING"]).write_text(f"{os.getpid()} {child.pid} {fork}")
"""


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    """Let workers start two processes of their own and come no further, instead of loading torch.

    Returns the file that then has the numbers of all three.
    """
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "torch.py").write_text(f"{HANGING}time.sleep(3600)")
    paths = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("HANGING", str(tmp_path / "processes"))
    return tmp_path / "processes"


def wait_for(what, seconds=60.0):
    """Wait until something is true, and fail if it never is."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def numbers(file):
    return [int(each) for each in file.read_text().split()] if file.exists() else []


def runs(pid):
    """Whether a process is there and is more than an entry that nobody has read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@linux
def test_a_worker_that_hangs_is_killed_with_all_it_has_started(hanging, tmp_path):
    """When its time is up; that it ignores SIGTERM and has a process of its own does not matter.

    The error says how long it had and how to give it longer, and what it printed is there.
    """
    with WorkerProcess("slow", tmp_path, step_timeout=20) as worker:
        wait_for(lambda: len(numbers(hanging)) == 3)
        with pytest.raises(WorkerError) as caught:
            worker.call("open", directory="x", **OPEN)
    assert str(caught.value) == (
        'The worker for "slow" did not finish within 20 s when asked to open. '
        "If it only takes long, raise --step-timeout."
    )
    assert caught.value.worker == "slow"
    wait_for(lambda: not any(map(runs, numbers(hanging))))
    assert "Going to sleep" in collected(tmp_path)


@linux
def test_a_worker_that_dies_is_noticed_though_its_children_live_on(hanging, tmp_path):
    """They inherited its pipes; nobody waits for them to end, and they are killed."""
    with WorkerProcess("dead", tmp_path) as worker:
        pid, *children = wait_for(lambda: numbers(hanging))
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match="ended with SIGKILL when asked to open"):
            worker.call("open", directory="x", **OPEN)
    wait_for(lambda: not any(map(runs, children)))


@linux
def test_a_worker_that_hangs_ends_with_the_process_that_started_it(hanging, tmp_path):
    """However that ends: it has no chance to tell anybody when it is killed."""
    code = (
        "import sys; from pathlib import Path\n"
        "from truthgpt_services.measuring.client import WorkerProcess\n"
        "WorkerProcess('left', Path(sys.argv[1])).call('open', directory='x')"
    )
    starter = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    found = wait_for(lambda: numbers(hanging))
    assert all(map(runs, found))
    starter.kill()
    starter.wait()
    wait_for(lambda: not any(map(runs, found)))


@linux
def test_a_worker_cannot_ask_on_the_terminal(hanging, tmp_path):
    """It has a session of its own, so neither Ctrl-C nor a terminal reaches it."""
    with WorkerProcess("alone", tmp_path) as worker:
        pid, *_ = wait_for(lambda: numbers(hanging))
        assert os.getsid(pid) == pid != os.getsid(0)
        worker.end(at_once=True)


def test_what_workers_print_is_put_together_under_headings(tmp_path):
    """In the order in which they were started; two of one name do not share a heading."""
    for name, text in (("baseline", "one\n"), ("halve", ""), ("baseline", "\x1b[2Jthree")):
        log = new_log(tmp_path, name)
        with log.open("a") as file:
            file.write(text)
    lines = collected(tmp_path).splitlines()
    assert [line.partition(", started 2")[0] for line in lines if line] == [
        "== baseline",
        "one",
        "== halve",
        "== baseline",
        "�[2Jthree",
    ]
    assert NAME == "worker.log"


def test_a_worker_that_prints_without_end_leaves_a_log_that_can_be_read(tmp_path):
    """Its beginning and its end, and how much is not there; and not too many of them."""
    for name in ("loud", *"abcdefghijklmnopqrst"):
        log = new_log(tmp_path, name)
        with log.open("a") as file:
            file.write("first\n" + "x" * 3_000_000 + "\nlast")
    text = collected(tmp_path)
    first = text.partition("\n== a, ")[0]
    assert "first" in first
    assert first.endswith("\nlast\n")
    assert "2,936,011 bytes are left out" in first
    assert len(text) <= 1_100_000
    assert "more processes are left out" in text.splitlines()[-1]


def test_what_was_printed_before_a_failure_is_kept(tmp_path, cache):
    """In the cache directory, for its owner alone; ten of them, and none if nothing was printed."""
    log = new_log(tmp_path, "baseline")
    assert keep(tmp_path) is None
    log.write_text(log.read_text() + "Segmentation fault\n")
    kept = keep(tmp_path)
    assert kept.parent == cache / "logs"
    assert "Segmentation fault" in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600
    for day in range(10, 29):
        (kept.parent / f"2020-01-{day}-000000-1.log").touch()
    kept.unlink()
    kept = keep(tmp_path)
    left = sorted(kept.parent.iterdir())
    assert len(left) == 10
    assert left[-1] == kept


def test_a_traceback_of_a_worker_is_shown_where_it_is_asked_for(worker, monkeypatch, capfd):
    """TRUTHGPT_DEBUG=1 shows where in a plugin it went wrong; without it there is one line."""
    for debugging in ("", "1"):
        monkeypatch.setenv("TRUTHGPT_DEBUG", debugging)
        with pytest.raises(ModelError):
            worker.call("open", directory="/no/where", dtype="auto", device="cpu")
        assert ("Traceback" in capfd.readouterr().err) is bool(debugging)
