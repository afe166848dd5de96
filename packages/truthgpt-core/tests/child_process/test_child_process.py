"""Child processes: they answer, they fail alone, and nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from truthgpt_core.child_process import ChildError
from truthgpt_core.errors import TruthGPTError, UsageError

pytestmark = pytest.mark.slow

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

# Answers


def test_a_process_answers_requests(child) -> None:
    """In JSON types, or in bytes as they are, however many; what it tells meanwhile is heard."""
    process = child(
        """
        def add(a, b):
            send("adding", [a, b])
            return {"sum": a + b}

        def zeros(count):
            return bytes(count)
        """
    )
    heard = []
    process.ask("add", a=1, b=2)
    assert process.answer(lambda kind, value: heard.append((kind, value))) == {"sum": 3}
    assert heard == [("adding", [1, 2])]
    for count in (0, 1, 3_000_000):
        assert process.call("zeros", count=count) == bytes(count)
    assert process.call("add", a="ä\u2028", b="\udcff\n") == {"sum": "ä\u2028\udcff\n"}


def test_errors_are_raised_where_the_request_is_from(child) -> None:
    """Ours keep message and hint, and the nearest class that is known; the process goes on."""
    process = child(
        """
        class Own(UsageError): pass

        def refuse(): raise Own("No", hint="Say please.")
        def fail(): raise ZeroDivisionError("by\\nnought")
        def leave(): sys.exit("enough")
        def odd(): return object()
        """,
        errors=[UsageError],
    )
    with pytest.raises(TruthGPTError) as refused:
        process.call("refuse")
    assert type(refused.value) is UsageError
    assert str(refused.value) == "No. Say please."
    for request, how in (
        ("fail", "ZeroDivisionError: by nought"),
        ("leave", "SystemExit: enough"),
        ("odd", "TypeError: Object of type object is not JSON serializable"),
        ("nothing", "KeyError: 'nothing'"),
    ):
        with pytest.raises(ChildError) as failed:
            process.call(request)
        assert failed.value.how == how
        assert str(failed.value) == f"The child failed to {request}: {how}"


def test_what_is_printed_is_no_answer(child, site, tmp_path) -> None:
    """Neither what is printed before it begins nor what C code and other programs print."""
    noise = "import sys\nif 'child_process' in str(sys.orig_argv): print('noise {', end='')\n"
    (site.path / "sitecustomize.py").write_text(noise)
    process = child(
        """
        def shout():
            print("loud")
            os.write(1, b"louder\\n")
            subprocess.run(["echo", "loudest"])
            return "quiet"
        """,
        log=tmp_path / "log",
    )
    assert process.call("shout") == "quiet"
    process.end()
    assert sorted((tmp_path / "log").read_text().split()) == ["loud", "louder", "loudest"]


def test_a_question_takes_no_request_for_an_answer(child) -> None:
    """Whatever reads standard input there is at its end at once."""
    process = child("def question(): return sys.stdin.read() + os.read(0, 10).decode()")
    assert process.call("question") == ""


def test_an_answer_that_cannot_be_read_is_an_error(child) -> None:
    """Code that writes to all pipes that it finds spoils its own answer, and no more."""
    process = child(
        """
        def spoil():
            for descriptor in range(3, 30):
                try:
                    os.write(descriptor, b"\\x1erubbish\\n")
                except OSError:
                    pass
        """
    )
    with pytest.raises(ChildError, match="its answer cannot be read"):
        process.call("spoil")


@pytest.mark.parametrize("how", ["not UTF-8", "fifo"])
def test_damaged_metadata_stops_no_process(child, site, how: str) -> None:
    """pydantic, torch and transformers read that of all distributions when they are imported."""
    site.install("damaged")
    path = site.path / "damaged-1.0.dist-info" / "entry_points.txt"
    path.unlink()
    if how == "fifo":
        os.mkfifo(path)
    else:
        path.write_bytes(b"[console_scripts]\nx = \xff\n")
    process = child("def version(): import pydantic; return pydantic.VERSION", seconds=60)
    assert process.call("version")


# Death and limits


@pytest.mark.parametrize(
    ("code", "how", "hint"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV", None),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL", "too little memory"),
        ("os.kill(os.getpid(), signal.SIGILL)", "killed by SIGILL", "another CPU"),
        ("os.write(2, b'bad luck\\n\\n'); os.abort()", "killed by SIGABRT: bad luck", None),
        ("os.write(2, b'bad news\\n'); os._exit(7)", "exit code 7: bad news", None),
        ("os._exit(0)", "exit code 0", None),
    ],
)
def test_how_a_process_died_is_said(child, code: str, how: str, hint: str | None) -> None:
    """In the middle of a call: the signal by its name or the exit code, and what it said last."""
    process = child(f"def die():\n    {code}")
    for _ in range(2):  # and of one that is dead already
        with pytest.raises(ChildError) as died:
            process.call("die")
        assert died.value.how == how
        assert (hint is None) == (died.value.hint is None)
        assert hint is None or hint in died.value.hint


def test_a_module_that_cannot_be_imported_says_why(child) -> None:
    """The last line of what it printed is the reason."""
    with pytest.raises(ChildError, match=r"failed to add: exit code 1: ImportError: gone"):
        child("raise ImportError('gone')").call("add")


@pytest.mark.parametrize("limit", ["seconds", "call_seconds"])
@pytest.mark.parametrize("where", ["import", "call"])
def test_a_process_that_hangs_is_ended_in_time(child, limit: str, where: str) -> None:
    """Be it in an import or in a call; the error says how long it had, and what to do."""
    hang = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    code = hang if where == "import" else f"def add(text):\n    {hang}"
    process = child(code, slow="Wait longer.", **{limit: 2})
    with pytest.raises(ChildError) as late:
        process.call("add", text="more than a pipe holds" * 10_000)
    assert str(late.value) == "The child failed to add: no answer within 2 s. Wait longer."


def test_each_call_has_its_own_time(child) -> None:
    """A process may be asked for longer than one call may take."""
    process = child("def rest(): time.sleep(0.7)", call_seconds=5)
    began = time.monotonic()
    while time.monotonic() < began + 6:
        process.call("rest")


def test_a_process_that_cannot_be_started_is_an_error(child, monkeypatch) -> None:
    """With the reason."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ChildError, match=r"failed to start: .*cannot be started: .*/nowhere"):
        child("")


# What it has started

STARTING = """
def start():
    others = [subprocess.Popen(["sleep", "600"]).pid, os.fork()]
    if others[1] == 0:
        time.sleep(600)
    return others

def hang():
    time.sleep(600)
"""


@linux
def test_a_process_ends_with_all_it_started(child, end_soon) -> None:
    """At its end, and when it is given up."""
    for at_once in (True, False):
        process = child(STARTING)
        others = process.call("start")
        process.end(at_once=at_once)
        end_soon(process.pid, *others)


@linux
def test_a_process_that_died_is_noticed_though_its_children_live_on(child, end_soon) -> None:
    """They inherited its pipes; nobody waits for them to end, and they are killed."""
    process = child(STARTING)
    others = process.call("start")
    process.ask("hang")
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ChildError, match="failed to hang: killed by SIGKILL"):
        process.answer()
    end_soon(*others)


@linux
@pytest.mark.parametrize("then", ["process.call('hang')", "import time; time.sleep(600)"])
def test_a_process_ends_with_the_one_that_started_it(child, end_soon, then: str) -> None:
    """However that ends, when it is killed too; busy or idle, with all it has started."""
    child(STARTING)  # leaves the module there
    code = (
        "from truthgpt_core.child_process import ChildProcess\n"
        "process = ChildProcess('child_0', 'The child')\n"
        f"print(process.pid, *process.call('start'), flush=True); {then}\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as starter:
        found = [int(each) for each in starter.stdout.readline().split()]
        assert len(found) == 3
        time.sleep(1)
        starter.kill()
    end_soon(*found)


def test_ctrl_c_and_the_terminal_do_not_reach_it(child) -> None:
    """It has a session of its own, and goes on if it gets the signal all the same."""
    process = child("def session(): return os.getsid(0)")
    assert process.call("session") == process.pid != os.getsid(0)
    os.kill(process.pid, signal.SIGINT)
    assert process.call("session") == process.pid
