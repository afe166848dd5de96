"""Compiling the C++ code for this machine, once, and loading it.

What is compiled is kept in the cache under a name made of everything that it depends on.
It is code, so what somebody else may have written is not loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from functools import cache
from importlib.resources import files
from pathlib import Path

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.paths import CACHE, cache_dir

logger = logging.getLogger(__name__)

CXX = "CXX"
SOURCES = ("decode.cpp", "numbers.hpp", "products.hpp", "threads.hpp")
"""The first one includes the others."""

FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread"),
    # Sums may be reordered, which makes vectors of them; NaN and infinity stay what they are.
    *("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"),
)
COMPILE_SECONDS = 300


class NativeError(TruthGPTError):
    """Compiled code cannot be had on this machine."""


class Linear(Structure):
    """`Linear` of products.hpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("weight", "scales", "minima", "bias")),
        *((name, c_int32) for name in ("rows", "columns", "kind", "group")),
    )


class Layer(Structure):
    """`Layer` of decode.cpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, Linear) for name in ("q", "k", "v", "o", "gate", "up", "down")),
    )


class Shape(Structure):
    """`Shape` of decode.cpp."""

    _fields_ = (
        *(
            (name, c_int32)
            for name in (
                *("hidden", "intermediate", "heads", "kv_heads", "head_dim", "rotary_dim"),
                *("layers", "vocabulary", "activation", "cache_kind"),
            )
        ),
        *((name, c_float) for name in ("epsilon", "attention_scale", "embedding_scale")),
    )


class Cache(Structure):
    """`Cache` of decode.cpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("keys", "values", "length")),
        *((name, c_int64) for name in ("head_step", "position_step")),
    )


@cache
def load() -> ctypes.CDLL:
    """Return the compiled code, compiling it if that was not done before.

    Raises:
        NativeError: there is no C++ compiler, or it fails.
    """
    sources = {name: files(__package__).joinpath(name).read_bytes() for name in SOURCES}
    compiler = find_compiler()
    kept = cache_dir("optimizations", "quantize") / f"decode-{_key(sources, compiler)}.so"
    if _is_ours(kept) and _is_whole(kept):
        try:
            return _declare(ctypes.CDLL(str(kept)))
        except OSError:
            logger.debug("%s cannot be loaded, and is compiled anew", kept, exc_info=True)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            made = Path(folder) / "decode.so"
            _compile(compiler, sources, made)
            code = made.read_bytes()
            made.write_bytes(code + _digest(code))
            # Where the umask leaves files writable for a group, it would not be loaded again.
            made.chmod(stat.S_IRWXU)
            made.replace(kept)
        return _declare(ctypes.CDLL(str(kept)))
    except OSError as error:
        raise NativeError(
            f"Compiled code cannot be kept in {kept.parent}: {error}",
            hint=f"Set {CACHE} to a directory that you can write to.",
        ) from error


def find_compiler() -> str:
    """Return the path of the C++ compiler: that of the variable CXX, g++, or clang++.

    Raises:
        NativeError: there is none.
    """
    asked = os.environ.get(CXX)
    for name in [asked] if asked else ["g++", "clang++", "c++"]:
        if found := shutil.which(name):
            return found
    raise NativeError(
        f"{CXX}={asked} is no C++ compiler" if asked else "There is no C++ compiler",
        hint=f"Install g++ (Debian, Ubuntu: apt install g++), or set {CXX} to another.",
    )


def _key(sources: Mapping[str, bytes], compiler: str) -> str:
    try:
        said = _run(compiler, "--version")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeError(
            f"{compiler} cannot be run: {error}", hint=f"Set {CXX} to another C++ compiler."
        ) from error
    about = [" ".join(_flags()).encode(), said.stdout.encode(), _processor().encode()]
    return hashlib.sha256(b"\0".join([*sources.values(), *about])).hexdigest()[:24]


def _flags() -> tuple[str, ...]:
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    return (native, *FLAGS)


def _processor() -> str:
    """Say what `-march=native` depends on."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{sys.platform} {platform.machine()} {platform.processor()}"
    told = {line for line in text.splitlines() if line.startswith(("flags", "Features", "model"))}
    return platform.machine() + "\n".join(sorted(told))


def _compile(compiler: str, sources: Mapping[str, bytes], made: Path) -> None:
    for name, source in sources.items():
        made.with_name(name).write_bytes(source)
    try:
        done = _run(compiler, *_flags(), str(made.with_name(SOURCES[0])), "-o", str(made))
    except subprocess.TimeoutExpired as error:
        raise NativeError(f"{compiler} took more than {COMPILE_SECONDS} s") from error
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise NativeError(
            f"{compiler} failed with exit code {done.returncode}: {said}",
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


def _is_ours(file: Path) -> bool:
    try:
        about = file.stat()
    except OSError:
        return False
    mine = not hasattr(os, "getuid") or about.st_uid == os.getuid()
    return mine and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_whole(file: Path) -> bool:
    # Loading a truncated library does not fail: it kills the process.
    try:
        content = file.read_bytes()
    except OSError:
        return False
    length = len(_digest(b""))
    return content[-length:] == _digest(content[:-length])


def _digest(code: bytes) -> bytes:
    return hashlib.sha256(code).digest()


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    library.pool_new.restype = c_void_p
    library.pool_new.argtypes = [c_int32]
    library.decoder_new.restype = c_void_p
    library.decoder_new.argtypes = [
        *(c_void_p, POINTER(Shape), POINTER(Layer), c_void_p, POINTER(Linear)),
        *(POINTER(Linear), c_void_p, c_void_p),
    ]
    library.decoder_free.restype = None
    library.decoder_free.argtypes = [c_void_p]
    library.decoder_step.restype = None
    library.decoder_step.argtypes = [c_void_p, c_int64, c_int64, POINTER(Cache), c_void_p]
    library.linear.restype = None
    library.linear.argtypes = [c_void_p, POINTER(Linear), c_void_p, c_int32, c_void_p]
    return library


@cache
def pool(threads: int, process: int) -> int:
    """Return that many threads that compiled code shares, the caller's included.

    Args:
        threads: how many.
        process: `os.getpid()`: threads do not live on in a process that is forked off.

    Raises:
        NativeError: as for `load`, or they cannot be started.
    """
    started: int | None = load().pool_new(threads)
    if started is None:
        raise NativeError(f"{threads} threads cannot be started")
    return started
