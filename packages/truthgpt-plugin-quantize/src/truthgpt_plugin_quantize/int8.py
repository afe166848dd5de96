"""Linear layers with 8-bit integer weights.

Weights are stored unpacked, a row of int8 for each output channel, with one float32
scale for the row or for each group of its neighbors: weight = integer * scale. Every
kernel takes them as they are, so what is saved does not depend on the machine.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from truthgpt_core.optimization import StoredMatrix
from truthgpt_plugin_quantize import kernels
from truthgpt_plugin_quantize.kernels import Kernel
from truthgpt_plugin_quantize.quantized import (
    QuantizedLinear,
    in_chunks,
    is_derived,
)

LEVELS = 127
"""Integers go from -127 to 127: symmetric, so that a weight of 0 is exactly 0."""

LEAST_ROWS = 32
"""`torch._int_mm` wants more than 16 rows on a GPU, and a multiple of 8 of them."""


def quantize(weight: Tensor, group_size: int = 0) -> tuple[Tensor, Tensor]:
    """Round a matrix, or a vector of activations, to 8-bit integers.

    Args:
        weight: finite, floating point, of shape (out, in).
        group_size: how many neighbors of a row share a scale, a divisor of `in`; 0 for
            the whole row.

    Returns:
        int8 of shape (out, in), and float32 scales of shape (out) or, with groups,
        (out, in / group_size). Where all weights are zero the scale is 1.
    """
    exact = weight.detach().float()
    if group_size:
        exact = exact.reshape(exact.shape[0], -1, group_size)
    scales = exact.abs().amax(dim=-1) / LEVELS
    # Below the smallest normal number a quotient would overflow or lose its bits.
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, torch.ones_like(scales), scales)
    # Not in place: `exact` is the weight itself if that was float32.
    rounded = (exact / scales.unsqueeze(-1)).round_().clamp_(-LEVELS, LEVELS)
    return rounded.to(torch.int8).view(weight.shape), scales


class Int8Linear(QuantizedLinear):
    """A linear layer with int8 weights: `x @ (qweight * scales).T + bias`.

    Groups that do not divide its rows become whole rows.
    """

    scheme: ClassVar[str] = "int8"
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
        if group_size and in_features % group_size:
            group_size = 0
        whole = in_features % kernels.MULTIPLE == 0 and group_size % kernels.MULTIPLE == 0
        if not whole or (group_size and kernel.name != "native"):
            kernel = Kernel("dequantize")
        super().__init__(
            in_features,
            out_features,
            device=device,
            kernel=kernel,
            group_size=group_size,
            **common,
        )
        empty = torch.empty(out_features, in_features, dtype=torch.int8, device=device)
        self.register_buffer("qweight", empty)
        groups = (in_features // group_size,) if group_size else ()
        self.register_buffer("scales", torch.empty(out_features, *groups, device=device))

    def take(self, weight: Tensor) -> None:
        """Round weights, finite and of shape (out, in)."""
        for where, exact in in_chunks(weight):
            self.qweight[where], self.scales[where] = quantize(exact, self.group_size)

    def dequantize(self, rows: Tensor | None = None) -> Tensor:
        """Return weights in float32, all or some rows of them."""
        integers = self.qweight if rows is None else self.qweight[rows]
        scales = self.scales if rows is None else self.scales[rows]
        grouped = integers.view(*scales.shape, -1)
        return (grouped * scales.unsqueeze(-1)).view(integers.shape)

    def stored_matrix(self) -> StoredMatrix:
        """Return weights as they are stored."""
        return StoredMatrix(self.qweight, self.scales)

    def multiply_few(self, rows: Tensor) -> Tensor | None:
        """Multiply the integers as they are, if the kernel does."""
        if self.kernel.startswith("packed"):
            rounded = self.kernel == "packed-bfloat16"
            return kernels.packed(rows, self.qweight, self.scales, rounded=rounded)
        return None

    def multiply_many(self, rows: Tensor) -> Tensor:
        """Multiply rows, of shape (rows, in), in their dtype."""
        # float16 ends at 65504, which sums over integers reach: there the scales come first.
        if rows.dtype == torch.float16 or self.group_size:
            return super().multiply_many(rows)
        products = functional.linear(rows, self.qweight.to(rows.dtype))
        return products * self.scales.to(rows.dtype)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        # A tensor that lies in a memory-mapped file begins anywhere. Copying it once
        # here saves copying it for each token.
        self.qweight = kernels.aligned(self.qweight)


class Int8DynamicLinear(Int8Linear):
    """A linear layer with int8 weights by channel, and activations rounded to int8 as they come.

    Each row of activations has a scale of its own, so both sides of the product are
    integers. On a GPU, and on CPUs with instructions for it, it is computed as such; elsewhere
    in floating point, which comes to the same and is faster there.
    """

    scheme: ClassVar[str] = "int8-dynamic"

    def multiply_many(self, rows: Tensor) -> Tensor:
        """Round rows, of shape (rows, in), each by its own scale, and multiply them."""
        if is_derived(rows):
            return super().multiply_many(rows)
        rounded, factors = quantize(rows)
        if _has_integer_products(rows):
            missing = max(0, LEAST_ROWS - len(rows)) or -len(rows) % 8
            padded = functional.pad(rounded, (0, 0, 0, missing))
            products = torch._int_mm(padded, self.qweight.t())[: len(rows)].float()
        else:
            products = functional.linear(rounded.float(), self.qweight.float())
        return (products * factors.unsqueeze(-1) * self.scales).to(rows.dtype)


def _has_integer_products(rows: Tensor) -> bool:
    if rows.is_cpu:
        # Of a single column torch takes the strides for others, and its products are wrong.
        return rows.shape[1] > 1 and bool(torch.cpu._is_vnni_supported())
    return rows.is_cuda and rows.shape[1] % 8 == 0
