"""Python processes that begin with torch and transformers imported, in place of new ones.

A process that imports both costs seconds of a CPU before it does anything, and the tests start
hundreds. Here one process, the stem, imports them and computes nothing. Within `patched`,
`subprocess.Popen` has a Python process forked from the stem, and it has all that a new one would:
arguments, environment, directory, path, streams, signals, a parent that waits for it, and an end.
What it forks from knows nothing of TruthGPT, so that all of TruthGPT is imported anew.

What a fork could do otherwise than a new process is started as ever: other programs, options and
variables that are read when a process starts, and a path on which there is another copy of
something that the stem has imported.

Run as a program this module is the stem: `python -P warm_processes.py DESCRIPTOR`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import io
import json
import os
import resource
import runpy
import signal
import socket
import struct
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module, invalidate_caches
from importlib.machinery import BuiltinImporter, SourceFileLoader
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

IMPORTED = (
    *("torch", "transformers", "transformers.optimization", "numpy.random", "safetensors.torch"),
    *("transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"),
    *("transformers.models.llama.modeling_llama", "transformers.generation"),
    *("transformers.integrations.accelerate", "torch.utils.data", "torch.profiler"),
    *("click", "pluggy", "yaml", "pydantic.main", "pydantic.type_adapter"),
    *("rich.console", "rich.table", "rich.progress", "jinja2", "platformdirs", "packaging.version"),
    *("peft", "gguf", "importlib.metadata", "runpy", "multiprocessing.util", "json", "html"),
)
READ_AT_THE_START = (
    *("PYTHON", "LD_", "LC_", "LANG", "HOME", "TZ", "XDG_", "MALLOC_", "GLIBC_", "COV_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ATEN_", "CUDA_", "NVIDIA_"),
    *("TORCH", "PYTORCH_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "ACCELERATE_", "PYDANTIC_"),
    *("USE_TORCH", "USE_TF", "USE_FLAX", "SAFETENSORS_", "NUMPY_", "NPY_"),
)
"""How variables begin that Python or one of those libraries reads once."""

SIZE = struct.Struct("=q")
# Of Linux: the parent of the new process is that of the one which forks.
CLONE, CLONE_PARENT, CLONE_CHILD_SETTID = 56, 0x8000, 0x0100_0000
ID_OF_THREAD = 720
"""Where glibc on x86-64 keeps the id of a thread, in what `pthread_self` points to."""
DIE_WITH_PARENT = 1
HERE = str(Path(__file__).resolve())


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
        if name.startswith(READ_AT_THE_START) and name != "PYTHONPATH"
    }


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
        places = [each for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each]
        if not asked.safe:
            places.append(cwd if asked.kind else str(Path(cwd, asked.what).resolve().parent))
        for place in places:
            with contextlib.suppress(OSError):
                names = {each.partition(".")[0] for each in os.listdir(Path(cwd, place))}  # noqa: PTH208
                if names & self.known:
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
            [sys.executable, "-P", HERE, str(theirs.fileno())],
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
    command = [args] if isinstance(args, str | bytes | os.PathLike) else list(args)
    command = list(map(os.fsdecode, command))
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


# What follows runs in the stem and in its forks.


class Clean(NamedTuple):
    """What a process that has only begun has, as the stem found it.

    Attributes:
        path: `sys.path` without what the environment adds.
        filters: of warnings, those of Python; libraries have put theirs before them.
        known: names of imported modules, without those inside of packages.
    """

    path: list[str]
    filters: list[Any]
    known: list[str]


def main() -> None:
    """Be the stem."""
    gc.disable()
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    path, filters = list(sys.path), list(warnings.filters)
    with warnings.catch_warnings(record=True):
        for name in IMPORTED:
            # Not all of them are installed everywhere.
            with contextlib.suppress(ImportError):
                import_module(name)
    known = sorted({name.partition(".")[0] for name in sys.modules} - {"__main__"})
    assert threading.active_count() == len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208
    assert ctypes.c_int.from_address(_thread_id_address()).value == os.getpid()
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    gc.enable()
    content = json.dumps(known).encode()
    connection.sendall(SIZE.pack(len(content)) + content)
    serve(connection, Clean(path, filters, known), may_have_stem=True)


def serve(connection: socket.socket, clean: Clean, *, may_have_stem: bool) -> None:
    """Fork until nobody can ask any more."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            head, streams, _, _ = socket.recv_fds(connection, SIZE.size, 3)
            if len(head) < SIZE.size:
                return
            request = json.loads(received(connection, SIZE.unpack(head)[0]))
            process = fork_for_the_parent()
            if process == 0:
                connection.close()
                become(request, streams, clean, may_have_stem=may_have_stem)
            for each in streams:
                os.close(each)
            connection.sendall(SIZE.pack(process))


def _thread_id_address() -> int:
    library = ctypes.CDLL(None)
    library.pthread_self.restype = ctypes.c_size_t
    return int(library.pthread_self()) + ID_OF_THREAD


def fork_for_the_parent() -> int:
    """Fork this process; the new one is a child of the process that this one is a child of."""
    address, python = _thread_id_address(), ctypes.pythonapi
    # Keeps Python's lock, as `os.fork` does.
    call = ctypes.PyDLL(None).syscall
    call.restype = ctypes.c_long
    flags = CLONE_PARENT | CLONE_CHILD_SETTID | signal.SIGCHLD
    given = [ctypes.c_long(each) for each in (CLONE, flags, 0, 0, address, 0)]
    python.PyOS_BeforeFork()
    process = call(*given)
    if process == 0:
        python.PyOS_AfterFork_Child()
    else:
        python.PyOS_AfterFork_Parent()
    return int(process)


def become(request: Any, streams: list[int], clean: Clean, *, may_have_stem: bool) -> NoReturn:
    """Be the process that was asked for, from its beginning to its end."""
    code = 1
    try:
        command, environment, cwd, session, ignored = request
        asked = program(command)
        assert asked is not None
        if session:
            os.setsid()
        if may_have_stem:
            _have_stem(clean, environment, streams)
        _begin(environment, cwd, ignored, streams)
        _reach(asked, environment, cwd, command, clean)
        code = _until_its_end(asked)
    finally:
        os._exit(code)


def _have_stem(clean: Clean, environment: dict[str, str], streams: list[int]) -> None:
    """Have a fork that forks for this process, as long as it has not computed either."""
    global _stem
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        ours.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (*streams, 0, 1, 2):
            os.dup2(nothing, standard, standard <= 2)
        if os.getppid() == parent:
            serve(theirs, clean, may_have_stem=False)
        os._exit(0)
    theirs.close()
    stem = Stem(ours, set(clean.known), environment)
    _stem = lambda: stem  # noqa: E731
    subprocess.Popen._execute_child = execute_child  # type: ignore[attr-defined]


def _begin(
    environment: dict[str, str], cwd: str, ignored: list[int], streams: list[int]
) -> None:
    """Take over what the system gives a process."""
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    for standard, each in enumerate(streams):
        os.dup2(each, standard)
        os.close(each)
    # The objects stay: a handler of a log may have them. They have read and written nothing.
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)


def _reach(
    asked: Program, environment: dict[str, str], cwd: str, command: list[str], clean: Clean
) -> None:
    """Take over what Python makes of arguments and environment."""
    import tempfile

    import numpy as np

    first = {"-c": "", "-m": cwd, "": os.path.dirname(os.path.realpath(asked.what))}  # noqa: PTH120
    added = [os.path.abspath(each) for each in environment.get("PYTHONPATH", "").split(":") if each]  # noqa: PTH100
    path = ([] if asked.safe else [first[asked.kind]]) + list(dict.fromkeys(added))
    sys.path[:] = path + [each for each in clean.path if each not in added]
    invalidate_caches()
    sys.argv[:] = [asked.kind or asked.what, *asked.arguments]
    sys.orig_argv[:] = command
    sys.warnoptions.extend(asked.warn)
    of_libraries = warnings.filters[: len(warnings.filters) - len(clean.filters)]
    warnings.resetwarnings()
    warnings.filters[:] = clean.filters
    warnings._processoptions(asked.warn)  # type: ignore[attr-defined]
    warnings.filters[:0] = of_libraries
    warnings._filters_mutated()  # type: ignore[attr-defined]
    tempfile.tempdir = None
    np.random.seed()  # noqa: NPY002 - what a program that uses it would find


def _until_its_end(asked: Program) -> int:
    """Run the program, and do what Python does at its end; return the exit code."""
    code = _finished(lambda: _run(asked))
    code = _finished(threading._shutdown, code)  # type: ignore[attr-defined]
    code = _finished(atexit._run_exitfuncs, code)  # type: ignore[attr-defined]
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        code = 120
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return code & 0xFF


def _finished(do: Callable[[], None], code: int = 0) -> int:
    """Do it; return that code, or the one for what it raised, which is shown."""
    try:
        do()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == HERE:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return code


def _run(asked: Program) -> None:
    module = types.ModuleType("__main__")
    module.__dict__.update(__annotations__={}, __builtins__=sys.modules["builtins"])
    sys.modules["__main__"] = module
    if asked.kind == "-m":
        runpy._run_module_as_main(asked.what)  # type: ignore[attr-defined]
        return
    name = "<string>"
    if asked.kind == "-c":
        module.__loader__, code = BuiltinImporter, asked.what
    else:
        name = asked.what
        module.__loader__ = SourceFileLoader("__main__", name)
        module.__file__, module.__dict__["__cached__"] = name, None
        with io.open_code(os.path.abspath(name)) as file:  # noqa: PTH100
            code = file.read()
    exec(compile(code, name, "exec"), module.__dict__)


if __name__ == "__main__":
    main()
