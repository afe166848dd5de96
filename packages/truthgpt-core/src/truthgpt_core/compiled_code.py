"""Compiling C++ code for this machine, once, and loading it, for plugins that have such code.

What is compiled is kept in the cache under a name made of everything that it depends on.
It is code, so what another user may have written is not loaded: the directory and the file have
to be this user's, and writable for no one else. Both are opened once, and what was looked at
is what is loaded, whatever their names stand for by then.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.paths import CACHE

logger = logging.getLogger(__name__)

CXX = "CXX"
COMPILE_SECONDS = 300

_DESCRIPTORS = Path("/proc/self/fd/../fd")
"""Where Linux has open files by their numbers; spelled in a way of its own: see `_load_cached`."""


class NativeError(TruthGPTError):
    """Compiled code cannot be had on this machine."""


def load_compiled(
    sources: Mapping[str, bytes], flags: Sequence[str], folder: Path, stem: str
) -> ctypes.CDLL:
    """Return compiled code, compiling it if that was not done before.

    Args:
        sources: the files by name. The first one is compiled, and includes the others.
        flags: for the compiler, beside the one that asks for code for this processor.
        folder: where it is kept; made if need be.
        stem: what the file's name begins with.

    Raises:
        NativeError: there is no C++ compiler, or it fails.
    """
    compiler = find_compiler()
    flags = (_for_this_machine(), *flags)
    name = f"{stem}-{_key(sources, flags, compiler)}.so"
    with _opened(folder) as place:
        if place is not None:
            try:
                if (found := _load_cached(name, place)) is not None:
                    return found
            except OSError:
                logger.debug("%s in %s cannot be loaded", name, folder, exc_info=True)
        try:
            with tempfile.TemporaryDirectory() as private:
                made = Path(private) / name
                _compile(compiler, flags, sources, made)
                code = made.read_bytes()
                if place is None:
                    return ctypes.CDLL(str(made))
            _keep(code + _digest(code), name, place)
            if (found := _load_cached(name, place)) is None:
                raise OSError("what was written is not what is there")
            return found
        except OSError as error:
            raise NativeError(
                f"Compiled code cannot be kept in {folder}: {error}",
                hint=f"Set {CACHE} to a directory that you can write to.",
            ) from error


@contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """Open the directory that compiled code is kept in, making it if need be.

    Yields:
        A descriptor; None if others may write into it, or the system has none for directories.
        Then compiled code is not kept.
    """
    if os.open not in os.supports_dir_fd:
        yield None
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Whatever the umask is: where others may write, compiled code would not be kept.
        folder.mkdir(mode=stat.S_IRWXU, exist_ok=True)
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise NativeError(
            f"Compiled code cannot be kept in {folder}: {error}",
            hint=f"Set {CACHE} to a directory that you can write to.",
        ) from error
    try:
        if _is_ours(os.fstat(place)):
            yield place
        else:
            logger.warning(
                "Compiled code is not kept in %s, because other users may write there: it is "
                "compiled in each process. Make the directory yours alone (chmod 700), or set %s",
                folder,
                CACHE,
            )
            yield None
    finally:
        os.close(place)


def _load_cached(name: str, place: int) -> ctypes.CDLL | None:
    """Load a file of the directory `place`; None if it is missing, not ours or damaged.

    Raises:
        OSError: it cannot be loaded.
    """
    try:
        # A FIFO would be waited for, and a link may lead to anything.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=place)
    except OSError:
        return None
    keep_open = False
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode) or not _is_ours(about):
            return None
        with os.fdopen(os.dup(file), "rb") as reader:
            content = reader.read()
        length = len(_digest(b""))
        # Loading a truncated library does not fail: it kills the process.
        if content[-length:] != _digest(content[:-length]):
            return None
        if _DESCRIPTORS.is_dir():
            # The loader takes a name that it has loaded before for the same library. While the
            # descriptor stays open no other file has its number.
            found = ctypes.CDLL(str(_DESCRIPTORS / str(file)))
            keep_open = True
            return found
    finally:
        if not keep_open:
            os.close(file)
    with tempfile.TemporaryDirectory() as private:
        copy = Path(private) / name
        copy.write_bytes(content)
        return ctypes.CDLL(str(copy))


def _keep(content: bytes, name: str, place: int) -> None:
    """Write a file into the directory `place`, which has it as a whole or not at all."""
    unfinished = f"{name}.{os.getpid()}.{secrets.token_hex(4)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    file = os.open(unfinished, flags, mode=stat.S_IRWXU, dir_fd=place)
    try:
        with os.fdopen(file, "wb") as writer:
            writer.write(content)
        os.replace(unfinished, name, src_dir_fd=place, dst_dir_fd=place)
    except OSError:
        with suppress(OSError):
            os.unlink(unfinished, dir_fd=place)
        raise


def find_compiler() -> str:
    """Return the path of the C++ compiler: that of the variable CXX, g++, or clang++.

    Raises:
        NativeError: there is none.
    """
    requested = os.environ.get(CXX)
    for name in [requested] if requested else ["g++", "clang++", "c++"]:
        if found := shutil.which(name):
            return found
    raise NativeError(
        f"{CXX}={requested} is no C++ compiler" if requested else "There is no C++ compiler",
        hint=f"Install g++ (Debian, Ubuntu: apt install g++), or set {CXX} to another.",
    )


def _key(sources: Mapping[str, bytes], flags: Sequence[str], compiler: str) -> str:
    try:
        result = _run(compiler, "--version")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(
            f"{compiler} cannot be run: {error}", hint=f"Set {CXX} to another C++ compiler."
        ) from error
    about = [" ".join(flags).encode(), result.stdout.encode(), _processor().encode()]
    return hashlib.sha256(b"\0".join([*sources.values(), *about])).hexdigest()[:24]


def _for_this_machine() -> str:
    return "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"


def _processor() -> str:
    """Say what `-march=native` and `-mcpu=native` depend on."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{sys.platform} {platform.machine()} {platform.processor()}"
    names = ("flags", "model", "Features", "CPU implementer", "CPU variant", "CPU part")
    lines = {line for line in text.splitlines() if line.startswith(names)}
    return platform.machine() + "\n".join(sorted(lines))


def _compile(compiler: str, flags: Sequence[str], sources: Mapping[str, bytes], made: Path) -> None:
    for name, source in sources.items():
        made.with_name(name).write_bytes(source)
    try:
        done = _run(compiler, *flags, str(made.with_name(next(iter(sources)))), "-o", str(made))
    except subprocess.TimeoutExpired as error:
        raise NativeError(f"{compiler} took more than {COMPILE_SECONDS} s") from error
    if done.returncode != 0:
        message = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise NativeError(
            f"{compiler} failed with exit code {done.returncode}: {message}",
            hint=f"Set {CXX} to another C++ compiler.",
        )


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=COMPILE_SECONDS,
        env=os.environ | {"LC_ALL": "C"},
    )


def _is_ours(about: os.stat_result) -> bool:
    """Whether a file or directory is this user's, and only this user may write to it."""
    return about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _digest(code: bytes) -> bytes:
    return hashlib.sha256(code).digest()
