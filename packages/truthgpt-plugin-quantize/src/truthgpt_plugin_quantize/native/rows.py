"""Matrices of integers, multiplied by rows of activations or converted, with the compiled code."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Any

import torch
from torch import Tensor

from truthgpt_plugin_quantize.native import library
from truthgpt_plugin_quantize.native.library import Linear

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}
"""`Kind` of products.hpp, by the dtype of the weights."""

SCRATCH = 2**20
"""Weights that are made at once for many rows: few enough to stay in a cache until they are
multiplied, and in memory that is used again, since new pages take longer than the numbers."""

_scratch = threading.local()


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
    kept = [None if each is None else each.contiguous() for each in (qweight, scales, minima)]
    out = torch.empty(x.shape[0], qweight.shape[0], dtype=torch.float32)
    pool = library.pool(torch.get_num_threads(), os.getpid())
    matrix = describe(*kept)  # type: ignore[arg-type]
    library.load().linear(
        pool, ctypes.byref(matrix), exact.data_ptr(), exact.shape[0], out.data_ptr()
    )
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
    _convert_into(out, qweight, scales, minima, torch.get_num_threads())
    return out


def multiply_many(x: Tensor, qweight: Tensor, scales: Tensor, minima: Tensor | None) -> Tensor:
    """Multiply many rows by weights that are made a part at a time, in the same memory.

    Args:
        x: float32 or bfloat16 of shape (rows, in).
        qweight: as for `describe`.
        scales: likewise.
        minima: likewise.

    Returns:
        Of shape (rows, out), in the dtype of `x`.

    Raises:
        NativeError: the code cannot be compiled.
    """
    columns, count = x.shape[1], qweight.shape[0]
    part = min(count, max(1, SCRATCH // columns))
    scratch = _scratch_of(part * columns, x.dtype)
    if part == count:
        weight = scratch[: count * columns].view(count, columns)
        _make(weight, qweight, scales, minima)
        return _product(x, weight)
    out = x.new_empty(len(x), count)
    for first in range(0, count, part):
        last = min(count, first + part)
        weight = scratch[: (last - first) * columns].view(last - first, columns)
        least = None if minima is None else minima[first:last]
        _make(weight, qweight[first:last], scales[first:last], least)
        out[:, first:last] = _product(x, weight)
    return out


def _product(x: Tensor, weight: Tensor) -> Tensor:
    # By oneDNN, in float32 too: torch takes MKL for that, which is slower on some CPUs.
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if linear is None or x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return torch.nn.functional.linear(x, weight)
    out: Tensor = linear(x, weight, None, "none", [], "")
    return out


def _make(weight: Tensor, qweight: Tensor, scales: Tensor, minima: Tensor | None) -> None:
    if minima is None and weight.dtype == torch.float32:
        # By torch's threads, which are awake: while they wait they leave no core to others.
        weight.copy_(qweight)
        weight.view(*scales.shape, -1).mul_(scales.unsqueeze(-1))
        return
    threads = 1 if weight.dtype == torch.float32 else torch.get_num_threads()
    _convert_into(weight, qweight, scales, minima, threads)


def _convert_into(
    out: Tensor, qweight: Tensor, scales: Tensor, minima: Tensor | None, threads: int
) -> None:
    kept = [None if each is None else each.contiguous() for each in (qweight, scales, minima)]
    matrix = describe(*kept)  # type: ignore[arg-type]
    pool = library.pool(threads, os.getpid())
    library.load().convert(pool, ctypes.byref(matrix), out.data_ptr(), KINDS[out.dtype])


def _scratch_of(numbers: int, dtype: torch.dtype) -> Tensor:
    """Return memory of this thread's own; what is in it is of no use to anybody else."""
    kept: dict[Any, Tensor] = vars(_scratch)
    if dtype not in kept or len(kept[dtype]) < numbers:
        # A tensor that is made in inference mode cannot be written to outside of it.
        with torch.inference_mode(False):
            kept[dtype] = torch.empty(numbers, dtype=dtype)
    return kept[dtype]


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
