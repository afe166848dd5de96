"""Rows of activations times an int8 matrix, with the compiled code of `decode.cpp`."""

from __future__ import annotations

import ctypes
import os

import torch
from torch import Tensor

from truthgpt_plugin_quantize.native import library
from truthgpt_plugin_quantize.native.library import Linear

INT8 = 2
"""`Kind` of decode.cpp."""


def describe(qweight: Tensor, scales: Tensor, bias: Tensor | None = None) -> Linear:
    """Return a matrix as the compiled code sees it. Its tensors have to be kept alive.

    Args:
        qweight: int8 of shape (out, in), contiguous.
        scales: float32 of shape (out) or (out, groups), contiguous.
        bias: float32 of shape (out); None for none.
    """
    rows, columns = qweight.shape
    groups = scales.shape[1] if scales.dim() == 2 else 1
    return Linear(
        weight=qweight.data_ptr(),
        scales=scales.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        rows=rows,
        columns=columns,
        kind=INT8,
        group=columns // groups,
    )


def multiply(x: Tensor, qweight: Tensor, scales: Tensor) -> Tensor:
    """Multiply few rows, each rounded to 8 bits in blocks of 32 with a scale of their own.

    Args:
        x: floating point of shape (rows, in), `in` a multiple of 32.
        qweight: int8 of shape (out, in).
        scales: float32 of shape (out) or (out, groups).

    Returns:
        Of shape (rows, out), in the dtype of `x`.

    Raises:
        NativeError: the code cannot be compiled.
    """
    exact = x.float().contiguous()
    weights, factors = qweight.contiguous(), scales.contiguous()
    out = torch.empty(x.shape[0], qweight.shape[0], dtype=torch.float32)
    pool = library.pool(torch.get_num_threads(), os.getpid())
    matrix = describe(weights, factors)
    library.load().linear(
        pool, ctypes.byref(matrix), exact.data_ptr(), exact.shape[0], out.data_ptr()
    )
    return out.to(x.dtype)
