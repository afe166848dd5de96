"""The compiled code of this package: finding or compiling it, its structures and functions."""

from __future__ import annotations

import ctypes
import logging
import platform
import re
import sys
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from importlib.resources import files
from pathlib import Path

from truthgpt_core.compiled_code import NativeError, load_compiled
from truthgpt_core.paths import cache_dir
from truthgpt_plugin_native.compiling import FLAGS, SOURCES, choose_level

logger = logging.getLogger(__name__)


class Matrix(Structure):
    """`Matrix` of matrix.hpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("weight", "scales", "minima", "bias")),
        *((name, c_int32) for name in ("rows", "columns", "kind", "group")),
    )


class Layer(Structure):
    """`Layer` of model.hpp."""

    _fields_ = (
        *((name, c_void_p) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm")),
        *((name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("window", c_int64),
    )


class Shape(Structure):
    """`Shape` of model.hpp."""

    _fields_ = (
        *(
            (name, c_int32)
            for name in (
                *("hidden", "intermediate", "heads", "kv_heads", "head_dim", "rotary_dim"),
                *("layers", "vocabulary", "activation", "cache"),
            )
        ),
        *((name, c_float) for name in ("epsilon", "attention_scale", "embedding_scale")),
    )


def packaged() -> Path | None:
    """Return the library that came with this package for this processor; None if none did."""
    folder = Path(__file__).with_name("compiled")
    if sys.platform != "linux" or platform.machine() != "x86_64" or not folder.is_dir():
        return None
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        about = ""
    flags = re.search(r"^flags\s*:(.*)$", about, re.MULTILINE)
    found = folder / f"{choose_level(flags[1].split() if flags else ())}.so"
    return found if found.is_file() else None


@cache
def load() -> ctypes.CDLL:
    """Return the compiled code: what came with the package, or else what is compiled, once.

    Raises:
        NativeError: there is no C++ compiler, or it fails.
    """
    if (found := packaged()) is not None:
        try:
            return _declare(ctypes.CDLL(str(found)))
        except OSError as error:
            logger.info("%s cannot be loaded, so it is compiled here: %s", found, error)
    sources = {name: files(__package__).joinpath("cpp", name).read_bytes() for name in SOURCES}
    return _declare(load_compiled(sources, FLAGS, cache_dir("engines", "native"), "engine"))


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    library.team_new.restype = c_void_p
    library.team_new.argtypes = [c_int32]
    library.engine_kernel.restype = c_char_p
    library.engine_kernel.argtypes = []
    library.engine_packs.restype = c_int32
    library.engine_packs.argtypes = []
    library.engine_new.restype = c_void_p
    library.engine_new.argtypes = [
        *(c_void_p, POINTER(Shape), POINTER(Layer), c_void_p, POINTER(Matrix), POINTER(Matrix)),
    ]
    library.engine_free.restype = None
    library.engine_free.argtypes = [c_void_p]
    library.engine_cache_bytes.restype = c_int64
    library.engine_cache_bytes.argtypes = [c_void_p]
    library.engine_angles.restype = None
    library.engine_angles.argtypes = [c_void_p, c_void_p, c_void_p]
    library.sequence_new.restype = c_void_p
    library.sequence_new.argtypes = [c_void_p, c_int64]
    library.sequence_fork.restype = c_void_p
    library.sequence_fork.argtypes = [c_void_p, c_void_p, c_int64, c_int64]
    library.sequence_free.restype = None
    library.sequence_free.argtypes = [c_void_p]
    library.sequence_crop.restype = None
    library.sequence_crop.argtypes = [c_void_p, c_int64]
    library.engine_forward.restype = c_int32
    library.engine_forward.argtypes = [
        *(c_void_p, c_int64, POINTER(c_void_p), POINTER(c_int64), POINTER(c_int64)),
        *(c_int32, c_int64, c_void_p),
    ]
    library.rows_multiply.restype = c_int32
    library.rows_multiply.argtypes = [c_void_p, POINTER(Matrix), c_void_p, c_int64, c_void_p]
    return library


@cache
def team(threads: int, process: int) -> int:
    """Return that many threads that compiled code shares, the caller's included.

    Args:
        threads: how many.
        process: `os.getpid()`: threads do not live on in a process that is forked off.

    Raises:
        NativeError: as for `load`, or they cannot be started.
    """
    started: int | None = load().team_new(threads)
    if started is None:
        raise NativeError(f"{threads} threads cannot be started")
    return started
