"""The stem of `warm_processes`: imports torch and transformers, and forks for another process.

A fork is a child of that process, which asks for it on a socket. It has the arguments, streams,
variables and so on that it is asked to have, runs the program, and ends as Python does.

    python -P warm_stem.py DESCRIPTOR
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import io
import json
import os
import runpy
import signal
import socket
import sys
import threading
import types
import warnings
from collections.abc import Callable
from importlib import import_module, invalidate_caches
from importlib.machinery import BuiltinImporter, SourceFileLoader
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parent))
from warm_processes import SIZE, Program, Stem, program, received, search_path, use  # noqa: E402

del sys.path[0]

IMPORTED = (
    *("torch", "transformers", "transformers.optimization", "numpy.random", "safetensors.torch"),
    *("transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"),
    *("transformers.models.llama.modeling_llama", "transformers.generation"),
    *("transformers.integrations.accelerate", "torch.utils.data", "torch.profiler"),
    *("click", "pluggy", "yaml", "pydantic.main", "pydantic.type_adapter"),
    *("rich.console", "rich.table", "rich.progress", "jinja2", "platformdirs", "packaging.version"),
    *("peft", "gguf", "importlib.metadata", "runpy", "multiprocessing.util", "json", "html"),
)

# Of Linux: the parent of the new process is that of the one which forks.
CLONE, CLONE_PARENT, CLONE_CHILD_SETTID = 56, 0x8000, 0x0100_0000
ID_OF_THREAD = 720
"""Where glibc on x86-64 keeps the id of a thread, in what `pthread_self` points to."""
DIE_WITH_PARENT = 1
OURS = {str(HERE), str(HERE.with_name("warm_processes.py"))}


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
    use(Stem(ours, set(clean.known), environment))


def _begin(environment: dict[str, str], cwd: str, ignored: list[int], streams: list[int]) -> None:
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
    added = [os.path.abspath(each) for each in search_path(environment)]  # noqa: PTH100
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
    np.random.seed()


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
        while trace is not None and trace.tb_frame.f_code.co_filename in OURS:
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
