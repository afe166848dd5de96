"""How rows of activations are multiplied on a CPU by integers as they are stored.

The kernels are operators of torch, because inductor leaves those alone: it fails on aten's
own when their input is computed by what it has just fused.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torch
from torch import Tensor

from truthgpt_core.compiled_code import NativeError
from truthgpt_plugin_quantize.native import library, rows
from truthgpt_plugin_quantize.native.rows import multiply_many

logger = logging.getLogger(__name__)

MULTIPLE = 32
"""`aten::_weight_int8pack_mm` reads rows in vectors without looking where they end.
With bfloat16, rows that are no multiple of 8 (AVX2) or 16 (AVX-512) give wrong numbers
or kill the process. It asks nothing of how many rows there are on either side."""

ALIGNMENT = 32
"""The same kernel loads bfloat16 activations and, with AVX-512, weights at aligned
addresses only: a tensor that begins inside another one kills the process."""


def _has_bfloat16_tiles() -> bool:
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if supported is None or not supported() or not torch.backends.mkldnn.is_available():
        return False
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return re.search(r"^flags\b.*\bamx_bf16\b", about, re.MULTILINE) is not None


BFLOAT16_TILES = _has_bfloat16_tiles()
"""Whether this CPU multiplies matrices of bfloat16 in tiles (AMX), many times as fast as those of
float32. Then many rows are multiplied in bfloat16: else weights that are made for each call
would take longer than the ones in float32 that they replace."""

CONVERTED = (torch.float32, torch.bfloat16)
"""What the code of `native/` makes of integers."""

_library = torch.library.Library("truthgpt_quantize", "DEF")


def choose_kernel() -> str:
    """Return the fastest kernel for this CPU: see `benchmarks/decode.py` and `int8_kernels.py`."""
    try:
        library.load()
    except NativeError as error:
        logger.info("quantize goes on without compiled code: %s", error)
    else:
        return "native"
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return "packed" if wide else "packed-bfloat16"


def native(x: Tensor, qweight: Tensor, scales: Tensor, minima: Tensor | None = None) -> Tensor:
    """Multiply rows, each rounded to 8 bits in blocks of 32, with the code of `native/`.

    Arguments and result are those of `native.rows.multiply`.
    """
    out: Tensor = torch.ops.truthgpt_quantize.native(x, qweight, scales, minima)
    return out


def convert(qweight: Tensor, scales: Tensor, minima: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return integers as floating-point numbers, with the code of `native/`.

    Arguments and result are those of `native.rows.convert`.
    """
    out: Tensor = torch.ops.truthgpt_quantize.convert(qweight, scales, minima, dtype)
    return out


def many(x: Tensor, qweight: Tensor, scales: Tensor, minima: Tensor | None) -> Tensor:
    """Multiply many rows by weights that are made a part at a time.

    Arguments and result are those of `native.rows.multiply_many`.
    """
    if not torch.compiler.is_compiling():
        # Going through the operator takes as long as a tenth of a small layer.
        return multiply_many(x, qweight, scales, minima)
    out: Tensor = torch.ops.truthgpt_quantize.many(x, qweight, scales, minima)
    return out


def packed(x: Tensor, qweight: Tensor, scales: Tensor, *, rounded: bool) -> Tensor:
    """Multiply rows by int8 weights with aten's kernel.

    Args:
        x: floating point of shape (rows, in), `in` a multiple of `MULTIPLE`.
        qweight: int8 of shape (out, in).
        scales: float32 of shape (out).
        rounded: whether activations are rounded to bfloat16.

    Returns:
        Of shape (rows, out), in the dtype of `x`.
    """
    out: Tensor = torch.ops.truthgpt_quantize.packed(x, qweight, scales, rounded)
    return out


def aligned(tensor: Tensor) -> Tensor:
    """Return a tensor that begins where vectors can be loaded: itself, or a copy."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _packed(x: Tensor, qweight: Tensor, scales: Tensor, rounded: bool) -> Tensor:
    # The kernel wants the scales in the dtype of the activations, and float16 has too
    # few bits for small ones.
    dtype = torch.bfloat16 if rounded or x.dtype == torch.bfloat16 else torch.float32
    out: Tensor = torch.ops.aten._weight_int8pack_mm(
        aligned(x.to(dtype).contiguous()), aligned(qweight), scales.to(dtype)
    )
    return out.to(x.dtype)


def _converted_shape(
    qweight: Tensor, scales: Tensor, minima: Tensor | None, dtype: torch.dtype
) -> Tensor:
    columns = qweight.shape[1] * (1 if minima is None else 2)
    return qweight.new_empty(qweight.shape[0], columns, dtype=dtype)


def _shape(x: Tensor, qweight: Tensor, *others: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], qweight.shape[0])


_library.define("packed(Tensor x, Tensor qweight, Tensor scales, bool rounded) -> Tensor")
_library.impl("packed", _packed, "CPU")
torch.library.register_fake("truthgpt_quantize::packed", _shape, lib=_library)
_library.define("native(Tensor x, Tensor qweight, Tensor scales, Tensor? minima) -> Tensor")
_library.impl("native", rows.multiply, "CPU")
torch.library.register_fake("truthgpt_quantize::native", _shape, lib=_library)
_library.define(
    "convert(Tensor qweight, Tensor scales, Tensor? minima, ScalarType dtype) -> Tensor"
)
_library.impl("convert", rows.convert, "CPU")
torch.library.register_fake("truthgpt_quantize::convert", _converted_shape, lib=_library)
_library.define("many(Tensor x, Tensor qweight, Tensor scales, Tensor? minima) -> Tensor")
_library.impl("many", multiply_many, "CPU")
torch.library.register_fake("truthgpt_quantize::many", _shape, lib=_library)
