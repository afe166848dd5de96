"""Compares one kind of layer and kernel with float64, for many shapes, dtypes and layouts.

Run by `test_kernels.py` in a process of its own, as `kernel_examples.py SCHEME KERNEL FILE`:
a kernel that reads past its data kills the process, and FILE then holds the example that
was under way.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from reference_matmul import KERNELS

from truthgpt_plugin_quantize.int4 import Int4Linear, fitting_group
from truthgpt_plugin_quantize.layer_classes import layer_class
from truthgpt_plugin_quantize.quantized import FEW_ROWS, QuantizedLinear
from truthgpt_plugin_quantize.schemes import Scheme

SCHEME, KERNEL, UNDER_WAY = sys.argv[1], sys.argv[2], Path(sys.argv[3])
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
# The packed kernels want whole channels; dynamic int8 and float8 have nothing else.
GROUP_SIZES = {"int8": (0, 32, 48, 64, 96), "int4": (32, 64, 128)}.get(SCHEME, (0,))
if KERNEL.startswith("packed"):
    GROUP_SIZES = (0,)
WIDTHS = st.one_of(st.integers(1, 200), st.integers(1, 10).map(lambda n: n * 64))
LAYOUTS = ("contiguous", "transposed", "every other", "same row", "begins at 1")


def lay_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """Return numbers like those of `x`, of its shape, in another place or order in memory."""
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "every other":
        return x.repeat_interleave(2, dim=-1)[..., ::2]
    if layout == "same row":
        first = x.reshape(-1, x.shape[-1])[0]
        return first.expand(x.shape)
    if layout == "begins at 1":
        room = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)
        return room.copy_(x)
    return x


@given(
    in_features=WIDTHS,
    out_features=st.integers(1, 130),
    rows=st.integers(1, 9),
    dimensions=st.integers(1, 4),
    dtype=st.sampled_from(sorted(DTYPES)),
    layout=st.sampled_from(LAYOUTS),
    group_size=st.sampled_from(GROUP_SIZES),
    bias=st.booleans(),
    shifted=st.booleans(),
    seed=st.integers(0, 2**31),
)
@example(33, 8, 2, 2, "bfloat16", "contiguous", 0, False, False, 0)
@example(100, 8, 4, 2, "bfloat16", "contiguous", 0, False, False, 0)
@example(32, 1, 1, 1, "bfloat16", "begins at 1", 0, False, True, 0)
@example(192, 130, 4, 2, "float32", "contiguous", GROUP_SIZES[-1], True, False, 0)
@example(576, 1, 4, 2, "float32", "contiguous", GROUP_SIZES[0], True, False, 0)
@settings(
    max_examples=200 if SCHEME == "int8" else 120,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
def check(
    in_features: int,
    out_features: int,
    rows: int,
    dimensions: int,
    dtype: str,
    layout: str,
    group_size: int,
    bias: bool,
    shifted: bool,
    seed: int,
) -> None:
    """The layer is what its stored numbers say, within the rounding of its dtype."""
    UNDER_WAY.write_text(repr(dict(locals())))
    if SCHEME == "int4":
        in_features = (in_features + 63) // 64 * 64
        group_size = fitting_group(in_features, group_size or 32)
    torch.manual_seed(seed)
    linear = torch.nn.Linear(in_features, out_features, bias=bias, dtype=DTYPES[dtype])
    layer = layer_class(Scheme(SCHEME)).from_linear(linear, KERNELS[KERNEL], group_size)
    if shifted:
        # As a tensor of a memory-mapped file may lie.
        room = torch.empty(layer.qweight.numel() + 8, dtype=layer.qweight.dtype)[8:]
        layer.qweight = room.view(layer.qweight.shape).copy_(layer.qweight)
    rows = 1 if dimensions == 1 else rows
    shape = {1: (), 2: (rows,), 3: (1, rows), 4: (rows, 1, 1)}[dimensions]
    x = lay_out(torch.randn(*shape, in_features).to(DTYPES[dtype]), layout)

    with torch.inference_mode():
        out = layer(x)

    weight, parts = stored(layer)
    added = torch.zeros(out_features) if layer.bias is None else layer.bias
    exact = x.double() @ weight.T + added.double()
    size = x.double().abs() @ parts.T + added.double().abs()
    few = rows <= FEW_ROWS and layer.kernel != "dequantize"
    if SCHEME == "int8-dynamic" and not few and layer.kernel != "native":
        moved = moved_by_rounding(x.double(), weight.abs())
        # The scales, of either side and their product; the answer and its sum with the bias.
        relative = (in_features + 8) * 2.0**-24 + 2 * ROUNDOFF[dtype]
        bound = moved + relative * (size + moved) + 2.0**-24 * (dtype == "float16")
    else:
        bound = bound_of_others(x, in_features, dtype, rows, size)
    assert out.dtype == x.dtype
    assert out.shape == (*shape, out_features)
    assert ((out.double() - exact).abs() <= bound + 1e-30).all()


def stored(layer: QuantizedLinear) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights that a layer's numbers stand for, and the size of what is added up."""
    shape = (layer.out_features, layer.in_features)
    scales = layer.scales.double()
    if isinstance(layer, Int4Linear):
        runs = layer.qweight.view(layer.out_features, -1, 32).int()
        integers = torch.cat((runs % 16, runs // 16), dim=-1)
        steps = integers.view(*scales.shape, -1).double() * scales.unsqueeze(-1)
        minima = layer.minima.double().unsqueeze(-1)
        return (steps + minima).view(shape), (steps.abs() + minima.abs()).view(shape)
    scales = scales.view(layer.out_features, -1)
    numbers = layer.qweight.double().view(*scales.shape, -1)
    weight = (numbers * scales.unsqueeze(-1)).view(shape)
    return weight, weight.abs()


def moved_by_rounding(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return by how much rounding rows of activations to 8 bits can move a product at most."""
    # Half a step, and what is lost when 127 steps are counted in float32.
    each = x.abs().amax(-1, keepdim=True) / 127 * (0.5 + 2.0**-15)
    return each.expand(x.shape) @ weights.T


def bound_of_others(
    x: torch.Tensor, in_features: int, dtype: str, rows: int, size: torch.Tensor
) -> torch.Tensor:
    """Return how far the kernels that do not round to 8 bits may be from float64."""
    # Rounded are the activations, the scales, the product, its scaling and the sum with
    # the bias; sums are made in float32. Numbers below the normal ones of float16 are
    # rounded to multiples of 2**-24.
    rounded = KERNEL == "packed-bfloat16" and rows <= FEW_ROWS and in_features % 32 == 0
    relative = 5 * ROUNDOFF["bfloat16" if rounded else dtype] + (in_features + 4) * 2.0**-23
    absolute = 2.0**-24 * (1 + x.double().abs().sum(-1, keepdim=True)) * (dtype == "float16")
    return relative * size + absolute


if __name__ == "__main__":
    torch.set_num_threads(1)
    check()
    print("done")
