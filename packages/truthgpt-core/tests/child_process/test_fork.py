"""Functions in a fork of this process: they have limits, and leave nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from truthgpt_core.child_process import ChildError, Fork, forked
from truthgpt_core.errors import TruthGPTError, UsageError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs os.fork")

limited = partial(forked, name="The work", seconds=20, memory=1 << 28)


def test_items_are_worked_on_in_their_order() -> None:
    """In one other process, with what this one has in memory."""
    secret = object()
    pids = list(limited(lambda item: [item, os.getpid(), secret is not None], range(3)))
    assert [item for item, _, _ in pids] == [0, 1, 2]
    ((other, known),) = {(pid, known) for _, pid, known in pids}
    assert other != os.getpid()
    assert known
    assert list(limited(lambda item: item, [])) == []
    assert list(limited(bytes, [0, 1_000_000])) == [b"", bytes(1_000_000)]


def refuse(item):
    raise UsageError("No", hint="Say please.")


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda item: 1 / 0, "The work: ZeroDivisionError: division by zero"),
        (lambda item: "x" * 10**9, "The work: MemoryError"),
        (lambda item: os.kill(os.getpid(), signal.SIGSEGV), "The work: killed by SIGSEGV"),
        (lambda item: os._exit(3), "The work: exit code 3"),
    ],
)
def test_a_failure_is_one_error(work, said: str) -> None:
    """Whatever the function does, this process goes on."""
    with pytest.raises(ChildError) as failed:
        list(limited(work, [1]))
    assert str(failed.value) == said
    with pytest.raises(TruthGPTError) as refused:
        list(limited(refuse, [1], errors=[UsageError]))
    assert type(refused.value) is UsageError
    assert str(refused.value) == "No. Say please."


def loop(item):
    while item:
        pass


def compute(item):
    return item and len(str(10 ** (10**8)))


@pytest.mark.parametrize("work", [loop, compute])
def test_one_that_never_ends_is_ended(work) -> None:
    """A loop of Python and a computation that cannot be interrupted; each item has its time."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        results = limited(work, [0, 0, 1], seconds=1)
        assert not any(next(results) for _ in range(2))
        time.sleep(1)
        with pytest.raises(ChildError, match="The work: it takes more than 1 s"):
            next(results)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_it_ends_though_nobody_is_left_to_end_it(end_soon) -> None:
    """The process that started it was killed."""
    code = (
        "import os; from truthgpt_core.child_process import forked\n"
        "def work(item):\n"
        "    print(os.getpid(), flush=True)\n"
        "    while True: pass\n"
        "list(forked(work, [1], 'The work', seconds=2, memory=1 << 28))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as starter:
        pid = int(starter.stdout.readline())
        starter.kill()
    end_soon(pid)


def test_nothing_is_left_behind(capfd) -> None:
    """No process, no open file and nothing on the terminal, in any thread, nor if it is left."""

    def around() -> tuple[int, str]:
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
        return len(list(Path("/proc/self/fd").iterdir())), children.read_text()

    def look() -> None:
        files, children = around()
        assert list(limited(str, [1])) == ["1"]
        results = limited(str, [1, 2])
        next(results)
        results.close()
        with pytest.raises(ChildError):
            list(limited(lambda item: 1 / 0, [1]))
        files_now, children_now = around()
        # Fewer, if what an earlier test left open is closed meanwhile.
        found.append(files_now <= files and children_now == children)

    found: list[bool] = []
    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [True, True]
    assert capfd.readouterr() == ("", "")


def stays(work, seconds: float = 20) -> Fork:
    return Fork(work, "The work", seconds=seconds, memory=1 << 28, errors=[UsageError])


def test_a_fork_that_stays_is_one_process() -> None:
    """It answers one call after the other, of any thread."""
    fork = stays(lambda item: [item, os.getpid()])
    found = []
    threads = [threading.Thread(target=lambda n=n: found.append(fork(n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(item for item, _ in found) == list(range(8))
    assert len({pid for _, pid in found} - {os.getpid()}) == 1


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda item: 1 / item, "The work: ZeroDivisionError: division by zero"),
        (lambda item: item or "x" * 10**9, "The work: MemoryError"),
        (lambda item: item or os.kill(os.getpid(), signal.SIGSEGV), "The work: killed by SIGSEGV"),
        (lambda item: item or time.sleep(60), "The work: it takes more than 1 s"),
    ],
)
def test_a_fork_that_stays_answers_after_a_failure(work, said: str) -> None:
    """Whatever one call did to it."""
    fork = stays(work, seconds=1)
    for _ in range(2):
        assert fork(1) == 1
        with pytest.raises(ChildError) as failed:
            fork(0)
        assert str(failed.value) == said
    with pytest.raises(UsageError, match=r"No\. Say please"):
        stays(refuse)(1)


def test_a_fork_that_was_killed_between_two_calls_is_made_again() -> None:
    """By the system when memory ran out, say; the next call has nothing to do with it."""
    fork = stays(lambda item: os.getpid())
    first = fork(0)
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert fork(0) not in (first, os.getpid())


@pytest.mark.parametrize("size", [1, 1 << 20], ids=["reading", "writing"])
def test_a_fork_that_is_stopped_is_not_waited_for(size: int) -> None:
    """Its own timer does nothing then, and a large request does not even fit into the pipe."""
    fork = stays(lambda item: os.getpid(), seconds=0.2)
    stopped = fork("")
    os.kill(stopped, signal.SIGSTOP)
    with pytest.raises(ChildError) as failed:
        fork("x" * size)
    assert str(failed.value) == "The work: it takes more than 0.2 s"
    with pytest.raises(ProcessLookupError):
        os.kill(stopped, 0)
    assert fork("") not in (stopped, os.getpid())


def test_a_fork_that_stays_ends_with_whoever_holds_it() -> None:
    """No process is left, nor a pipe."""
    descriptors = Path("/proc/self/fd")

    def opened() -> int:
        return len(list(descriptors.iterdir())) if descriptors.exists() else 0

    gc.collect()
    before = opened()
    fork = stays(lambda item: os.getpid())
    pid = fork(0)
    del fork
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert opened() == before


def test_a_fork_that_stays_holds_nothing_open() -> None:
    """A connection that this process closes is closed."""
    reading, writing = os.pipe()
    fork = stays(lambda item: item)
    assert fork("started") == "started"
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b""
    assert fork("still there") == "still there"
