"""Rows of activations times a matrix as it is stored, for layers that PyTorch calls.

An operator of torch, because inductor leaves those alone and compiles what is around them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from ctypes import byref

import torch
from torch import Tensor

from truthgpt_core.compiled_code import NativeError
from truthgpt_core.optimization import StoredMatmul, StoredMatrix
from truthgpt_plugin_native import library
from truthgpt_plugin_native.matrices import describe

logger = logging.getLogger(__name__)

_library = torch.library.Library("truthgpt_native", "DEF")
_threads: ContextVar[int] = ContextVar("threads")


def make_matmul() -> StoredMatmul | None:
    """Return `multiply`, once its code is there; None, with a warning, if it cannot be had."""
    try:
        library.load()
    except NativeError as error:
        logger.warning("Integers are not multiplied by compiled code: %s", error)
        return None
    return multiply


def multiply(x: Tensor, matrix: StoredMatrix) -> Tensor:
    """Multiply rows, each rounded to 8 bits in groups of 16 or, without AVX-512 VNNI, of 8.

    Args:
        x: floating point of shape (rows, in), on the CPU. There are no derivatives by it.
        matrix: of integers, in groups of a multiple of 32 columns.

    Returns:
        Of shape (rows, out), in the dtype of `x`. A row comes to the same bits whatever rows
        come with it.

    Raises:
        NativeError: there is no memory for it.
    """
    out: Tensor = torch.ops.truthgpt_native.multiply(x, matrix.weight, matrix.scales, matrix.minima)
    return out


@contextmanager
def torch_in_one_thread() -> Iterator[None]:
    """Let torch compute in one thread for a while, and `multiply` in as many as before.

    Torch's threads spin for some time after each use, on cores that those of compiled code or of
    other programs wait for, and then wait for each other: a short pass takes several times as long.
    """
    threads = torch.get_num_threads()
    token = _threads.set(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _threads.reset(token)


def _multiply(x: Tensor, weight: Tensor, scales: Tensor, minima: Tensor | None) -> Tensor:
    exact = x.float().contiguous()
    kept = [None if each is None else each.contiguous() for each in (weight, scales, minima)]
    matrix = describe(*kept)  # type: ignore[arg-type]
    out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.float32)
    team = library.team(_threads.get(torch.get_num_threads()), os.getpid())
    if not library.load().rows_multiply(
        team, byref(matrix), exact.data_ptr(), exact.shape[0], out.data_ptr()
    ):
        raise NativeError("There is no memory to compute in")
    return out.to(x.dtype)


def _shape(x: Tensor, weight: Tensor, *others: object) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


_library.define("multiply(Tensor x, Tensor weight, Tensor scales, Tensor? minima) -> Tensor")
_library.impl("multiply", _multiply, "CPU")
torch.library.register_fake("truthgpt_native::multiply", _shape, lib=_library)
