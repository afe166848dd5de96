"""The compiled code of this package: what it is made of, its structures and its functions."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from functools import cache
from importlib.resources import files

from truthgpt_core.compiled_code import NativeError, load_compiled
from truthgpt_core.paths import cache_dir

SOURCES = ("decode.cpp", "numbers.hpp", "products.hpp", "prompts.hpp", "threads.hpp")
"""The first one includes the others."""

FLAGS = (
    *("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread"),
    # Sums may be reordered, which makes vectors of them; NaN and infinity stay what they are.
    *("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros"),
)


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
    return _declare(load_compiled(sources, FLAGS, cache_dir("optimizations", "quantize"), "decode"))


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
    library.convert.restype = None
    library.convert.argtypes = [c_void_p, c_int32, POINTER(Linear), c_void_p, c_int32]
    library.prompt.restype = c_int32
    library.prompt.argtypes = [
        *(c_void_p, c_int32, POINTER(Linear), c_void_p, c_int64, c_void_p),
    ]
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
