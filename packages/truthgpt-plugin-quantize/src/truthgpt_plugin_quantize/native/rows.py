"""Matrices of integers, multiplied by rows of activations or converted, with the compiled code."""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear

from truthgpt_plugin_quantize.native import library
from truthgpt_plugin_quantize.native.library import Linear

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}
"""`Kind` of products.hpp, by the dtype of the weights."""

SCRATCH = 2**20
"""Weights that are made at once for many rows: few enough to stay in a cache until they are
multiplied, and in memory that is used again, since new pages take longer than the numbers."""

_scratch = threading.local()
_NAMES = {dtype: str(dtype) for dtype in KINDS}


def describe(
    weight: Tensor,
    scales: Tensor | None = None,
    minima: Tensor | None = None,
    bias: Tensor | None = None,
) -> Linear:
    """Return a matrix as the compiled code sees it. Its tensors have to be kept alive.

    Args:
        weight: contiguous, of shape (out, in) and a dtype of `KINDS`; uint8 are two integers
            in a byte, as `int4.pack` puts them there: (out, in / 2).
        scales: of int8 weights float32 of shape (out) or (out, groups), of uint8 float16;
            contiguous.
        minima: of uint8 weights, like the scales.
        bias: float32 of shape (out); None for none.
    """
    columns = weight.shape[1] * (2 if weight.dtype == torch.uint8 else 1)
    groups = scales.shape[1] if scales is not None and scales.dim() == 2 else 1
    return Linear(
        weight=weight.data_ptr(),
        scales=_address(scales),
        minima=_address(minima),
        bias=_address(bias),
        rows=weight.shape[0],
        columns=columns,
        kind=KINDS[weight.dtype],
        group=columns // groups,
    )


def multiply(x: Tensor, qweight: Tensor, scales: Tensor, minima: Tensor | None = None) -> Tensor:
    """Multiply few rows, each rounded to 8 bits in blocks of 32 with a scale of their own.

    Args:
        x: floating point of shape (rows, in), `in` a multiple of 32.
        qweight: as for `describe`.
        scales: likewise.
        minima: likewise.

    Returns:
        Of shape (rows, out), in the dtype of `x`.

    Raises:
        NativeError: the code cannot be compiled.
    """
    exact = x.float().contiguous()
    matrix, kept = _described(qweight, scales, minima)
    out = torch.empty(x.shape[0], qweight.shape[0], dtype=torch.float32)
    pool = library.pool(torch.get_num_threads(), os.getpid())
    library.load().linear(
        pool, ctypes.byref(matrix), exact.data_ptr(), exact.shape[0], out.data_ptr()
    )
    del kept
    return out.to(x.dtype)


def convert(qweight: Tensor, scales: Tensor, minima: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return a matrix of integers as floating-point numbers.

    Args:
        qweight: as for `describe`.
        scales: likewise.
        minima: likewise.
        dtype: float32 or bfloat16.

    Returns:
        Of shape (out, in).

    Raises:
        NativeError: the code cannot be compiled.
    """
    columns = qweight.shape[1] * (1 if minima is None else 2)
    out = torch.empty(qweight.shape[0], columns, dtype=dtype)
    _convert_into(out, qweight, scales, minima)
    return out


def multiply_many(x: Tensor, qweight: Tensor, scales: Tensor, minima: Tensor | None) -> Tensor:
    """Multiply many rows by weights that are made a part at a time.

    Args:
        x: float32 or bfloat16 of shape (..., in).
        qweight: as for `describe`.
        scales: likewise.
        minima: likewise.

    Returns:
        Of shape (..., out), in the dtype of `x`.

    Raises:
        NativeError: the code cannot be compiled.
    """
    if x.dtype == torch.float32 and _parallel() is not None:
        out = _multiply_prompt(x, qweight, scales, minima)
        if out is not None:
            return out
    columns, count = x.shape[-1], qweight.shape[0]
    part = min(count, max(1, SCRATCH // columns))
    scratch = _scratch_of(part * columns, x.dtype)
    if part == count:
        weight = scratch.as_strided((count, columns), (columns, 1))
        _convert_into(weight, qweight, scales, minima)
        return linear(x, weight)
    out = x.new_empty(*x.shape[:-1], count)
    for first in range(0, count, part):
        last = min(count, first + part)
        weight = scratch.as_strided((last - first, columns), (columns, 1))
        least = None if minima is None else minima[first:last]
        _convert_into(weight, qweight[first:last], scales[first:last], least)
        out[..., first:last] = linear(x, weight)
    return out


def _multiply_prompt(
    x: Tensor, qweight: Tensor, scales: Tensor, minima: Tensor | None
) -> Tensor | None:
    given = x.contiguous()
    out = x.new_empty(*x.shape[:-1], qweight.shape[0])
    matrix, kept = _described(qweight, scales, minima)
    done = library.load().prompt(
        _parallel(),
        torch.get_num_threads(),
        ctypes.byref(matrix),
        given.data_ptr(),
        x.numel() // x.shape[-1],
        out.data_ptr(),
    )
    del kept
    return out if done else None


def _convert_into(out: Tensor, qweight: Tensor, scales: Tensor, minima: Tensor | None) -> None:
    matrix, kept = _described(qweight, scales, minima)
    library.load().convert(
        _parallel(), torch.get_num_threads(), ctypes.byref(matrix), out.data_ptr(), KINDS[out.dtype]
    )
    del kept


def _described(
    qweight: Tensor, scales: Tensor, minima: Tensor | None
) -> tuple[Linear, list[Tensor | None]]:
    """Return a matrix as the compiled code sees it, and what has to be kept alive meanwhile."""
    kept = [None if each is None else each.contiguous() for each in (qweight, scales, minima)]
    return describe(*kept), kept  # type: ignore[arg-type]


@cache
def _parallel() -> int | None:
    """Return where torch's OpenMP runtime begins a parallel region; None if it is another kind."""
    if os.name != "posix":
        return None
    found = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return None if found is None else ctypes.cast(found, ctypes.c_void_p).value


def _scratch_of(numbers: int, dtype: torch.dtype) -> Tensor:
    """Return memory of this thread's own; what is in it is of no use to other threads."""
    kept: Tensor | None = getattr(_scratch, _NAMES[dtype], None)
    if kept is None or kept.numel() < numbers:
        # A tensor that is made in inference mode cannot be written to outside of it.
        with torch.inference_mode(False):
            kept = torch.empty(numbers, dtype=dtype)
        setattr(_scratch, _NAMES[dtype], kept)
    return kept


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
