"""Linear layers with weights in 8-bit floating point, for GPUs that multiply it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from truthgpt_plugin_quantize.kernels import Kernel
from truthgpt_plugin_quantize.quantized import QuantizedLinear, in_chunks

DTYPE = torch.float8_e4m3fn
LARGEST = torch.finfo(DTYPE).max
CAPABILITY = (8, 9)
"""Of the first NVIDIA GPUs that multiply it."""

MULTIPLE = 16
"""`torch._scaled_mm` wants both sides of the weights to be one of this."""


def quantize(values: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of a matrix, finite and floating point, to float8 (e4m3).

    Returns:
        float8 of the same shape, and float32 scales of shape (rows, 1).
    """
    exact = values.detach().float()
    scales = exact.abs().amax(dim=-1, keepdim=True) / LARGEST
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, torch.ones_like(scales), scales)
    return (exact / scales).clamp_(-LARGEST, LARGEST).to(DTYPE), scales


class Fp8Linear(QuantizedLinear):
    """A linear layer with float8 weights by channel, and activations rounded by row.

    Where there is no arithmetic for it, floating-point weights are made for each call.
    """

    scheme: ClassVar[str] = "fp8"
    qweight: Tensor
    scales: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device,
        kernel: Kernel,
        group_size: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            device=device,
            kernel=Kernel("dequantize"),
            group_size=0,
            **common,
        )
        empty = torch.empty(out_features, in_features, dtype=DTYPE, device=device)
        self.register_buffer("qweight", empty)
        self.register_buffer("scales", torch.empty(out_features, 1, device=device))

    def take(self, weight: Tensor) -> None:
        """Round weights, finite and of shape (out, in)."""
        for where, exact in in_chunks(weight):
            self.qweight[where], self.scales[where] = quantize(exact)

    def dequantize(self, rows: Tensor | None = None) -> Tensor:
        """Return weights in float32, all or some rows of them."""
        if rows is None:
            return self.qweight.float() * self.scales
        # Bytes, because there is no picking of float8 everywhere.
        picked = self.qweight.view(torch.uint8)[rows].view(DTYPE)
        return picked.float() * self.scales[rows]

    def multiply_many(self, rows: Tensor) -> Tensor:
        """Multiply rows, of shape (rows, in), rounded too where there is arithmetic for it."""
        derived = rows.requires_grad and torch.is_grad_enabled()
        whole = self.in_features % MULTIPLE == 0 and self.out_features % MULTIPLE == 0
        if derived or not whole or not rows.is_cuda or not has_arithmetic(rows.device):
            return super().multiply_many(rows)
        rounded, factors = quantize(rows)
        # The rowwise product comes in bfloat16 only.
        products: Tensor = torch._scaled_mm(
            rounded,
            self.qweight.t(),
            scale_a=factors,
            scale_b=self.scales.t(),
            out_dtype=torch.bfloat16,
        )
        return products.to(rows.dtype)


def has_arithmetic(device: torch.device) -> bool:
    """Whether a device multiplies numbers of 8 bits in floating point."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= CAPABILITY
