"""Linear layers with 4-bit integer weights.

Each group of neighbors in a row has a scale and a minimum: weight = integer * scale +
minimum, with integers from 0 to 15. Of each 64 columns of a row, 32 bytes are stored: byte j
holds column j in its low half and column j + 32 in its high half.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from truthgpt_core.optimization import StoredMatrix
from truthgpt_plugin_quantize.kernels import Kernel
from truthgpt_plugin_quantize.quantized import QuantizedLinear, in_chunks
from truthgpt_plugin_quantize.schemes import INT4_GROUPS

LEVELS = 15
COLUMNS = 64
"""Rows are stored in runs of this many columns."""

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""How much of a group's range the integers may span: cutting off the ends makes the steps
between the others smaller. The one with the least squared error is taken."""

LARGEST = 60000.0
"""Scales and minima are float16, which ends at 65504."""

LEAST = 1e-5
"""Where no weight is larger, multiples of 2**-24, which float16 counts in, are too coarse for
scales: the last of 15 steps would be off by a third of one, and below that all would be zero."""


def fitting_group(in_features: int, group_size: int) -> int:
    """Return the largest group, up to the one asked for, that rows can be cut into; 0 if none."""
    if in_features % COLUMNS:
        return 0
    return max(each for each in INT4_GROUPS if each <= group_size and in_features % each == 0)


def why_not_values(weight: Tensor) -> str:
    """Say why the values of a finite matrix cannot be 4-bit integers; empty if they can."""
    low, high = torch.aminmax(weight)
    largest = max(-float(low), float(high))
    if largest > LARGEST:
        return f"its weights go up to {largest:g}, beyond float16"
    return f"its weights only go up to {largest:g}, below float16" if 0 < largest < LEAST else ""


def quantize(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Round a matrix to 4-bit integers.

    Args:
        weight: finite, floating point, of shape (out, in), up to `LARGEST`.
        group_size: how many neighbors of a row share a scale, a divisor of `in`.

    Returns:
        uint8 of shape (out, in), up to 15; scales and minima, float16 of shape
        (out, in / group_size).
    """
    exact = weight.detach().float().reshape(weight.shape[0], -1, group_size)
    low, high = exact.amin(-1, keepdim=True), exact.amax(-1, keepdim=True)
    best: tuple[Tensor, ...] = ()
    for shrink in SHRINKS:
        minima = (low * shrink).half()
        scales = ((high - low) * (shrink / LEVELS)).half()
        # Of a group without two different weights, as far as float16 can tell, the minimum is all.
        scales = torch.where(scales == 0, 1.0, scales)
        integers = ((exact - minima.float()) / scales.float()).round_().clamp_(0, LEVELS)
        errors = (integers * scales.float() + minima.float()).sub_(exact).square_()
        found: tuple[Tensor, ...] = (errors.sum(-1, keepdim=True), integers, scales, minima)
        if best:
            better = found[0] < best[0]
            found = tuple(torch.where(better, *pair) for pair in zip(found, best, strict=True))
        best = found
    _, integers, scales, minima = best
    return integers.to(torch.uint8).view(weight.shape), scales.squeeze(-1), minima.squeeze(-1)


def pack(integers: Tensor) -> Tensor:
    """Put two integers of up to 15, uint8 of shape (out, in), into a byte: (out, in / 2)."""
    halves = integers.view(integers.shape[0], -1, 2, COLUMNS // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).view(integers.shape[0], -1)


def unpack(packed: Tensor) -> Tensor:
    """Undo `pack`."""
    pairs = packed.view(packed.shape[0], -1, COLUMNS // 2)
    return torch.stack((pairs & LEVELS, pairs >> 4), dim=2).view(packed.shape[0], -1)


class Int4Linear(QuantizedLinear):
    """A linear layer with 4-bit weights: `x @ (integers * scales + minima).T + bias`.

    Args:
        in_features: a multiple of `COLUMNS` and of `group_size`.
        group_size: how many neighbors of a row share a scale and a minimum.
    """

    scheme: ClassVar[str] = "int4"
    qweight: Tensor
    scales: Tensor
    minima: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        device: torch.device,
        kernel: Kernel,
        group_size: int = 32,
        **common: Any,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            device=device,
            kernel=kernel if kernel.name == "native" else Kernel("dequantize"),
            group_size=group_size,
            **common,
        )
        packed = torch.empty(out_features, in_features // 2, dtype=torch.uint8, device=device)
        self.register_buffer("qweight", packed)
        for name in ("scales", "minima"):
            groups = torch.empty(out_features, in_features // group_size, device=device)
            self.register_buffer(name, groups.half())

    def take(self, weight: Tensor) -> None:
        """Round weights, finite and of shape (out, in)."""
        for where, exact in in_chunks(weight):
            integers, self.scales[where], self.minima[where] = quantize(exact, self.group_size)
            self.qweight[where] = pack(integers)

    def dequantize(self, rows: Tensor | None = None) -> Tensor:
        """Return weights in float32, all or some rows of them."""
        tensors = (self.qweight, self.scales, self.minima)
        packed, scales, minima = tensors if rows is None else (each[rows] for each in tensors)
        grouped = unpack(packed).view(*scales.shape, -1).float()
        exact = torch.addcmul(minima.float().unsqueeze(-1), grouped, scales.float().unsqueeze(-1))
        return exact.view(-1, self.in_features)

    def stored_matrix(self) -> StoredMatrix:
        """Return weights as they are stored."""
        return StoredMatrix(self.qweight, self.scales, self.minima)
