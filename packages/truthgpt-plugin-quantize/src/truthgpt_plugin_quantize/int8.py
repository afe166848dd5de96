"""Linear layers with 8-bit integer weights, and the kernels that compute them.

Weights are stored unpacked, a row of int8 for each output channel, with one float32
scale for the row or for each group of its neighbours: weight = integer * scale. Every
kernel takes them as they are, so what is saved does not depend on the machine.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

logger = logging.getLogger(__name__)

LEVELS = 127
"""Integers go from -127 to 127: symmetric, so that a weight of 0 is exactly 0."""

PACKED_ROWS = 4
"""Up to this many rows of activations the packed kernel is used. With more, making
floating-point weights once and multiplying in full speed wins by far."""

PACKED_MULTIPLE = 32
"""`aten::_weight_int8pack_mm` reads rows in vectors without looking where they end.
With bfloat16, rows that are no multiple of 8 (AVX2) or 16 (AVX-512) give wrong numbers
or kill the process. It asks nothing of how many rows there are on either side."""

ALIGNMENT = 32
"""The same kernel loads bfloat16 activations and, with AVX-512, weights at aligned
addresses only: a tensor that begins inside another one kills the process."""


def why_not(module: Any) -> str:
    """Say why a layer cannot be quantized, without reading its weights; empty if it can."""
    if holds_several_layers(module):
        return f"{type(module).__name__} keeps several layers in one tensor"
    if not isinstance(module, nn.Linear):
        return f"{type(module).__name__} keeps its weights transposed"
    if type(module) is not nn.Linear:
        return f"{type(module).__name__} may not be a plain linear layer"
    if not module.weight.dtype.is_floating_point or module.weight.dtype.itemsize < 2:
        return f"its weights are {module.weight.dtype}"
    if module.weight.numel() == 0:
        return "it has no weights"
    if type(module.weight) is not nn.Parameter:
        return f"its weights are {type(module.weight).__name__}"
    return ""


def why_not_values(linear: nn.Linear) -> str:
    """Say why the values of a layer's weights cannot be quantized; empty if they can."""
    return "" if bool(torch.isfinite(linear.weight).all()) else "its weights are not all finite"


def holds_several_layers(module: Any) -> bool:
    """Whether a module holds matrices stacked in one tensor, as a mixture of experts does."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return False
    own = module.parameters(recurse=False)
    return any(each.dim() == 3 and each.shape[0] > 1 and each.is_floating_point() for each in own)


def choose_kernel() -> str:
    """Return the fastest kernel for this CPU: see `benchmarks/decode.py` and `int8_kernels.py`."""
    from truthgpt_plugin_quantize.native import library

    try:
        library.load()
    except library.NativeError as error:
        logger.info("int8 goes on without compiled code: %s", error)
    else:
        return "native"
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return "packed" if wide else "packed-bfloat16"


def fitting_group(in_features: int, group_size: int) -> int:
    """Return the size of the groups that share a scale in rows of a length; 0 for whole rows."""
    return group_size if group_size and in_features % group_size == 0 else 0


def quantize(weight: Tensor, group_size: int = 0) -> tuple[Tensor, Tensor]:
    """Round a weight matrix to 8-bit integers.

    Args:
        weight: finite, floating point, of shape (out, in).
        group_size: how many neighbours of a row share a scale, a divisor of `in`; 0 for
            the whole row.

    Returns:
        int8 of shape (out, in), and float32 scales of shape (out) or, with groups,
        (out, in / group_size). Where all weights are zero the scale is 1.
    """
    exact = weight.detach().float()
    if group_size:
        exact = exact.view(exact.shape[0], -1, group_size)
    scales = exact.abs().amax(dim=-1) / LEVELS
    # Below the smallest normal number a quotient would overflow or lose its bits.
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, torch.ones_like(scales), scales)
    # Not in place: `exact` is the weight itself if that was float32.
    rounded = (exact / scales.unsqueeze(-1)).round_().clamp_(-LEVELS, LEVELS)
    return rounded.to(torch.int8).view(weight.shape), scales


class Int8Linear(nn.Module):
    """A linear layer with int8 weights: `x @ (qweight * scales).T + bias`.

    Args:
        in_features: length of the last dimension of its input.
        out_features: length of the last dimension of its output.
        bias: whether it has one, in `dtype`.
        dtype: of the bias.
        device: of everything.
        kernel: `native`, `packed`, `packed-bfloat16` or `dequantize`; see `QuantizeOptions`.
        group_size: how many neighbours of a row share a scale; 0, or if it does not
            divide `in_features`, the whole row.
    """

    qweight: Tensor
    scales: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device,
        kernel: str,
        group_size: int = 0,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.group_size = fitting_group(in_features, group_size)
        self.kernel = kernel if in_features % PACKED_MULTIPLE == 0 else "dequantize"
        if self.group_size % PACKED_MULTIPLE or (self.group_size and kernel != "native"):
            self.kernel = "dequantize"
        empty = torch.empty(out_features, in_features, dtype=torch.int8, device=device)
        self.register_buffer("qweight", empty)
        groups = (in_features // self.group_size,) if self.group_size else ()
        self.register_buffer("scales", torch.empty(out_features, *groups, device=device))
        self.bias = (
            nn.Parameter(torch.empty(out_features, dtype=dtype, device=device), requires_grad=False)
            if bias
            else None
        )

    @classmethod
    def empty_like(cls, linear: nn.Linear, kernel: str, group_size: int = 0) -> Int8Linear:
        """Make a layer of the same shape whose weights are still to be filled in."""
        return cls(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            dtype=linear.weight.dtype,
            device=linear.weight.device,
            kernel=kernel,
            group_size=group_size,
        )

    @classmethod
    def from_linear(cls, linear: nn.Linear, kernel: str, group_size: int = 0) -> Int8Linear:
        """Quantize a layer."""
        layer = cls.empty_like(linear, kernel, group_size)
        layer.qweight, layer.scales = quantize(linear.weight, layer.group_size)
        if layer.bias is not None:
            layer.bias.data.copy_(linear.bias.detach())
        return layer

    def _apply(self, fn: Any, recurse: bool = True) -> Int8Linear:
        # `model.to(dtype)` is for weights in floating point. The scales are part of
        # how the integers are read: they move with the layer and keep their dtype.
        exact = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scales.dtype != exact.dtype:
            self.scales = exact.to(self.scales.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        # A tensor that lies in a memory-mapped file begins anywhere. Copying it once
        # here saves copying it for each token.
        self.qweight = _aligned(self.qweight)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer for `x` of shape (..., in_features), in the dtype of `x`."""
        rows = x.reshape(-1, self.in_features)
        few = rows.is_cpu and rows.shape[0] <= PACKED_ROWS
        # The packed kernel has no derivative.
        derived = x.requires_grad and torch.is_grad_enabled()
        if self.kernel == "native" and few and not derived:
            out = torch.ops.truthgpt_quantize.int8_native(rows, self.qweight, self.scales)
        elif self.kernel.startswith("packed") and few and not derived:
            rounded = self.kernel == "packed-bfloat16"
            out = torch.ops.truthgpt_quantize.int8_packed(rows, self.qweight, self.scales, rounded)
        elif x.dtype == torch.float16 or self.group_size:
            # float16 ends at 65504, which sums over integers reach: the scales come first.
            grouped = self.qweight.view(*self.scales.shape, -1)
            weight = (grouped * self.scales.unsqueeze(-1)).view(self.qweight.shape)
            out = functional.linear(rows, weight.to(x.dtype))
        else:
            out = functional.linear(rows, self.qweight.to(x.dtype)) * self.scales.to(x.dtype)
        if self.bias is not None:
            out = out + self.bias.to(x.dtype)
        shaped: Tensor = out.view(*x.shape[:-1], self.out_features)
        return shaped

    def extra_repr(self) -> str:
        """Describe the layer in `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, kernel={self.kernel}, group_size={self.group_size}"
        )


# An operator of our own around aten's: inductor fails on the latter when its input
# is computed by what it has just fused, and leaves this one alone.
_library = torch.library.Library("truthgpt_quantize", "DEF")
_library.define("int8_packed(Tensor x, Tensor qweight, Tensor scales, bool rounded) -> Tensor")


def _int8_packed(x: Tensor, qweight: Tensor, scales: Tensor, rounded: bool) -> Tensor:
    # The kernel wants the scales in the dtype of the activations, and float16 has too
    # few bits for small ones.
    dtype = torch.bfloat16 if rounded or x.dtype == torch.bfloat16 else torch.float32
    out: Tensor = torch.ops.aten._weight_int8pack_mm(
        _aligned(x.to(dtype).contiguous()), _aligned(qweight), scales.to(dtype)
    )
    return out.to(x.dtype)


def _aligned(tensor: Tensor) -> Tensor:
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _int8_packed_shape(x: Tensor, qweight: Tensor, scales: Tensor, rounded: bool) -> Tensor:
    return x.new_empty(x.shape[0], qweight.shape[0])


def _int8_native(x: Tensor, qweight: Tensor, scales: Tensor) -> Tensor:
    from truthgpt_plugin_quantize.native.rows import multiply

    return multiply(x, qweight, scales)


def _int8_native_shape(x: Tensor, qweight: Tensor, scales: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], qweight.shape[0])


_library.define("int8_native(Tensor x, Tensor qweight, Tensor scales) -> Tensor")
_library.impl("int8_native", _int8_native, "CPU")
torch.library.register_fake("truthgpt_quantize::int8_native", _int8_native_shape, lib=_library)
_library.impl("int8_packed", _int8_packed, "CPU")
torch.library.register_fake("truthgpt_quantize::int8_packed", _int8_packed_shape, lib=_library)
