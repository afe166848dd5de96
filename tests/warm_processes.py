"""Python processes that begin with torch and transformers imported, in place of new ones.

A process that imports both costs seconds of a CPU before it does anything, and the tests start
hundreds. Here one process, the stem, imports them and computes nothing. Within `patched`,
`subprocess.Popen` has a Python process forked from the stem, and it has all that a new one would:
arguments, environment, directory, path, streams, signals, a parent that waits for it, and an end.
What it forks from knows nothing of TruthGPT, so that all of TruthGPT is imported anew.

What a fork could do otherwise than a new process is started as ever: other programs, options and
variables that are read when a process starts, and a path on which there is another copy of
something that the stem has imported.

`warm_stem.py` is the stem, and what its forks do.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

READ_AT_THE_START = (
    *("PYTHON", "LD_", "LC_", "LANG", "HOME", "TZ", "XDG_", "MALLOC_", "GLIBC_", "COV_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ATEN_", "CUDA_", "NVIDIA_"),
    *("TORCH", "PYTORCH_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "ACCELERATE_", "PYDANTIC_"),
    *("USE_TORCH", "USE_TF", "USE_FLAX", "SAFETENSORS_", "NUMPY_", "NPY_"),
)
"""How variables begin that Python or one of those libraries reads once."""
READ_LATER = ("PYTHONPATH", "TORCHINDUCTOR_CACHE_DIR")
"""Those of them that are passed on; torch sets the second where it compiles something."""

SIZE = struct.Struct("=q")
STEM = str(Path(__file__).with_name("warm_stem.py").resolve())


class Program(NamedTuple):
    """What Python is asked to run.

    Attributes:
        kind: "-c", "-m" or "" for a file.
        what: the code, the name of a module or a path.
        arguments: what follows.
        warn: what was given with -W.
        safe: whether -P was given.
    """

    kind: str
    what: str
    arguments: list[str]
    warn: list[str]
    safe: bool


def program(command: Sequence[str]) -> Program | None:
    """Read a command line of Python; None if something in it is not known here."""
    rest, warn, safe = list(command[1:]), [], False
    while rest:
        option = rest.pop(0)
        if option == "-P":
            safe = True
        elif option == "-W" and rest:
            warn.append(rest.pop(0))
        elif option in ("-c", "-m") and rest:
            return Program(option, rest[0], rest[1:], warn, safe)
        elif not option.startswith("-"):
            return Program("", option, rest, warn, safe)
        else:
            return None
    return None


def python_command(args: object) -> list[str]:
    """Return a command line in words; a script that pip has installed is one for Python."""
    given = [args] if isinstance(args, str | bytes | os.PathLike) else list(args)  # type: ignore[call-overload]
    command = list(map(os.fsdecode, given))
    if command and command[0] != sys.executable and is_for_python(Path(command[0])):
        return [sys.executable, *command]
    return command


def is_for_python(path: Path) -> bool:
    """Whether a file beside the interpreter is a script for it, by one of its names there."""
    here = Path(sys.executable).parent
    if path.parent != here or not path.is_file():
        return False
    with path.open("rb") as file:
        start, _, named = file.readline().decode(errors="replace").strip().partition("#!")
    interpreter = Path(named)
    return start == "" and interpreter.parent == here and interpreter.samefile(sys.executable)


def circumstances() -> list[Any]:
    """What a process inherits beside what `Stem.start` passes on."""
    kinds = sorted({getattr(resource, each) for each in dir(resource) if each[:7] == "RLIMIT_"})
    limits = [resource.getrlimit(each) for each in kinds]
    lines = Path("/proc/self/status").read_text().splitlines()
    mask = next(line for line in lines if line.startswith("Umask"))
    blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    return [limits, mask, blocked, sorted(os.sched_getaffinity(0)), os.nice(0)]


def read_at_the_start(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that the stem has read already."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_THE_START) and name not in READ_LATER
    }


def search_path(environment: Mapping[str, str]) -> list[str]:
    """Where modules are found before all else; an empty one is the current directory."""
    given = environment.get("PYTHONPATH")
    return given.split(os.pathsep) if given else []


class Stem:
    """The other end of a process that forks; for the process that the forks are children of.

    Args:
        connection: to the stem.
        known: names of modules that it has imported, without those inside of packages.
        environment: variables that it was started with.
    """

    def __init__(self, connection: socket.socket, known: set[str], environment: dict[str, str]):
        self.connection = connection
        self.known = known
        self.environment = environment
        self.owner = os.getpid()
        self.circumstances = circumstances()
        self.lock = threading.Lock()
        self.is_broken = False

    def may_start(self, asked: Program, environment: Mapping[str, str], cwd: str) -> bool:
        """Whether a fork would do what a new process does."""
        if self.is_broken or os.getpid() != self.owner or not Path(cwd).is_dir():
            return False
        if read_at_the_start(environment) != read_at_the_start(self.environment):
            return False
        places = search_path(environment)
        if not asked.safe:
            places.append(cwd if asked.kind else str(Path(cwd, asked.what).resolve().parent))
        for place in places:
            with contextlib.suppress(OSError):
                for each in Path(cwd, place).iterdir():
                    stem, _, ending = each.name.partition(".")
                    if stem in self.known and (ending or each.is_dir()):
                        return False
        return circumstances() == self.circumstances

    def start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        cwd: str,
        streams: Sequence[int],
        *,
        session: bool,
    ) -> int | None:
        """Start a process; return its id, or None if that was not possible."""
        ignored = [
            each
            for each in signal.valid_signals()
            if each not in (signal.SIGPIPE, signal.SIGXFSZ)
            and signal.getsignal(each) is signal.SIG_IGN
        ]
        request = [list(command), dict(environment), cwd, session, list(map(int, ignored))]
        content = json.dumps(request).encode()
        with self.lock:
            self.is_broken = True  # unless all of the answer is read
            try:
                head = SIZE.pack(len(content))
                socket.send_fds(self.connection, [head], streams)
                self.connection.sendall(content)
                process = SIZE.unpack(received(self.connection, SIZE.size))[0]
            except (OSError, EOFError):
                return None
            self.is_broken = False
        return process if process > 0 else None


def received(connection: socket.socket, size: int) -> bytes:
    """Read so many bytes.

    Raises:
        EOFError: there are not as many.
    """
    content = b""
    while len(content) < size:
        part = connection.recv(size - len(content))
        if not part:
            raise EOFError
        content += part
    return content


_execute_child: Callable[..., None] = subprocess.Popen._execute_child  # type: ignore[attr-defined]
_stem: Callable[[], Stem | None] = lambda: None  # noqa: E731
_is_off = False


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Let processes that are started begin warm; the stem is started with the first."""
    global _stem
    made: list[Stem | None] = []
    environment = dict(os.environ)
    ending = contextlib.ExitStack()

    def once() -> Stem | None:
        if not made:
            made.append(new_stem(environment, ending))
        return made[0]

    _stem = once
    subprocess.Popen._execute_child = execute_child  # type: ignore[attr-defined]
    try:
        yield
    finally:
        subprocess.Popen._execute_child = _execute_child  # type: ignore[attr-defined]
        ending.close()


def use(stem: Stem) -> None:
    """Let processes that this one starts begin warm, with a stem that there is already."""
    global _stem
    _stem = lambda: stem  # noqa: E731
    subprocess.Popen._execute_child = execute_child  # type: ignore[attr-defined]


@contextlib.contextmanager
def new_processes() -> Iterator[None]:
    """Let processes that are started be new ones, with all that starting means."""
    global _is_off
    before, _is_off = _is_off, True
    try:
        yield
    finally:
        _is_off = before


def new_stem(environment: dict[str, str], ending: contextlib.ExitStack) -> Stem | None:
    """Start a stem, and wait until it has imported everything; None if it cannot be one."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return None
    ours, theirs = socket.socketpair()
    # What is in PYTHONPATH is for each process to find.
    variables = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    with new_processes(), theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", STEM, str(theirs.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=variables,
            pass_fds=[theirs.fileno()],
        )
    ending.enter_context(process)
    ending.enter_context(ours)
    try:
        size = SIZE.unpack(received(ours, SIZE.size))[0]
        return Stem(ours, set(json.loads(received(ours, size))), environment)
    except EOFError:
        return None


def execute_child(self: Any, *given: Any) -> None:
    """Do what the method of `subprocess.Popen` does, warm if that is the same."""
    args, executable, preexec_fn, close_fds, pass_fds, cwd, env, _, _, shell, *rest = given
    p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, _, gid, gids, uid, umask = rest[:11]
    session, group = rest[11:]
    plain = (preexec_fn, pass_fds, shell, gid, gids, uid, umask, group)
    if _is_off or plain != (None, (), False, None, None, None, -1, -1) or not close_fds:
        return _execute_child(self, *given)
    command = python_command(args)
    asked = program(command)
    if asked is None or command[0] != sys.executable or executable not in (None, sys.executable):
        return _execute_child(self, *given)
    variables = dict(os.environ) if env is None else env
    variables = {os.fsdecode(name): os.fsdecode(value) for name, value in variables.items()}
    directory = os.fspath(Path.cwd() / os.fsdecode(cwd or "."))
    stem, process = _stem(), None
    if stem is not None and stem.may_start(asked, variables, directory):
        pairs = zip((p2cread, c2pwrite, errwrite), range(3), strict=True)
        streams = [each if each != -1 else standard for each, standard in pairs]
        process = stem.start(command, variables, directory, streams, session=bool(session))
    if process is None:
        return _execute_child(self, *given)
    self.pid = process
    self._child_created = True
    self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
    return None
