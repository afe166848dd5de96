"""How rows of activations are multiplied on a CPU by integers as they are stored.

The one of PyTorch is an operator of its own here, because inductor leaves those alone: it fails on
aten's when their input is computed by what it has just fused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from truthgpt_core.optimization import StoredMatmul

MULTIPLE = 32
"""`aten::_weight_int8pack_mm` reads rows in vectors without looking where they end.
With bfloat16, rows that are no multiple of 8 (AVX2) or 16 (AVX-512) give wrong numbers
or kill the process. It asks nothing of how many rows there are on either side. A `StoredMatmul`
takes groups of multiples of as many columns."""

ALIGNMENT = 32
"""The same kernel loads bfloat16 activations and, with AVX-512, weights at aligned
addresses only: a tensor that begins inside another one kills the process."""

_library = torch.library.Library("truthgpt_quantize", "DEF")


@dataclass(frozen=True, slots=True)
class Kernel:
    """How layers are computed on a CPU.

    Attributes:
        name: `native`, `packed`, `packed-bfloat16` or `dequantize`; see `QuantizeOptions`.
        matmul: what `native` multiplies with; without it, `native` is `dequantize`.
    """

    name: str
    matmul: StoredMatmul | None = None


def choose_packed() -> str:
    """Return the fastest kernel of PyTorch for this CPU: see `benchmarks/int8_kernels.py`."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return "packed" if wide else "packed-bfloat16"


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


def _shape(x: Tensor, qweight: Tensor, *others: object) -> Tensor:
    return x.new_empty(*x.shape[:-1], qweight.shape[0])


_library.define("packed(Tensor x, Tensor qweight, Tensor scales, bool rounded) -> Tensor")
_library.impl("packed", _packed, "CPU")
torch.library.register_fake("truthgpt_quantize::packed", _shape, lib=_library)
