"""Matrices of integers, multiplied by rows of activations or converted, with the compiled code."""

from __future__ import annotations

import ctypes
import os

import torch
from torch import Tensor

from truthgpt_plugin_quantize.native import library
from truthgpt_plugin_quantize.native.library import Linear

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}
"""`Kind` of products.hpp, by the dtype of the weights."""


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
    kept = [None if each is None else each.contiguous() for each in (qweight, scales, minima)]
    matrix = describe(*kept)  # type: ignore[arg-type]
    out = torch.empty(matrix.rows, matrix.columns, dtype=dtype)
    pool = library.pool(torch.get_num_threads(), os.getpid())
    library.load().convert(pool, ctypes.byref(matrix), out.data_ptr(), KINDS[dtype])
    return out


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
