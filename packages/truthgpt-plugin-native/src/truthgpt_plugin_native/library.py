"""The compiled code of this package: what it is made of, its structures and its functions."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from functools import cache
from importlib.resources import files

from truthgpt_core.compiled_code import NativeError, load_compiled
from truthgpt_core.paths import cache_dir

SOURCES = (
    "engine.cpp",
    *("attention.hpp", "matrix.hpp", "model.hpp", "numbers.hpp", "pass.hpp", "products.hpp"),
    "team.hpp",
)
"""The first one includes the others."""

FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread"),
    # Sums are not reordered: a token has the same bits in any company.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-Wno-psabi"),
)


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
                *("layers", "vocabulary", "activation", "halves"),
            )
        ),
        *((name, c_float) for name in ("epsilon", "attention_scale", "embedding_scale")),
    )


@cache
def load() -> ctypes.CDLL:
    """Return the compiled code, compiling it if that was not done before.

    Raises:
        NativeError: there is no C++ compiler, or it fails.
    """
    sources = {name: files(__package__).joinpath("cpp", name).read_bytes() for name in SOURCES}
    return _declare(load_compiled(sources, FLAGS, cache_dir("engines", "native"), "engine"))


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    library.team_new.restype = c_void_p
    library.team_new.argtypes = [c_int32]
    library.engine_new.restype = c_void_p
    library.engine_new.argtypes = [
        *(c_void_p, POINTER(Shape), POINTER(Layer), c_void_p, POINTER(Matrix), POINTER(Matrix)),
    ]
    library.engine_free.restype = None
    library.engine_free.argtypes = [c_void_p]
    library.engine_angles.restype = None
    library.engine_angles.argtypes = [c_void_p, c_void_p, c_void_p]
    library.sequence_new.restype = c_void_p
    library.sequence_new.argtypes = [c_void_p, c_int64]
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
