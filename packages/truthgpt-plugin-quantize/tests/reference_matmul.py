"""What stands for a plugin that multiplies integers: the contract, computed with PyTorch."""

from __future__ import annotations

import torch

from truthgpt_core.optimization import StoredMatrix
from truthgpt_plugin_quantize.int4 import unpack
from truthgpt_plugin_quantize.kernels import Kernel


def multiply(x: torch.Tensor, matrix: StoredMatrix) -> torch.Tensor:
    """Multiply rows by the weights that integers stand for; activations are not rounded."""
    integers = matrix.weight if matrix.minima is None else unpack(matrix.weight)
    scales = matrix.scales.float().view(len(integers), -1, 1)
    grouped = integers.view(len(integers), scales.shape[1], -1).float() * scales
    if matrix.minima is not None:
        grouped += matrix.minima.float().unsqueeze(-1)
    return (x.float() @ grouped.view(len(integers), -1).T).to(x.dtype)


KERNELS = {
    "native": Kernel("native", multiply),
    **{name: Kernel(name) for name in ("packed", "packed-bfloat16", "dequantize")},
}
