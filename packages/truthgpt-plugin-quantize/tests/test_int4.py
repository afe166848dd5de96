"""4-bit integers: how weights are rounded and stored, and what cannot be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_matmul import KERNELS
from torch import nn

from truthgpt_core.optimization import OptimizationContext
from truthgpt_plugin_quantize.int4 import (
    LEVELS,
    Int4Linear,
    fitting_group,
    pack,
    quantize,
    unpack,
    why_not_values,
)
from truthgpt_plugin_quantize.int8 import Int8Linear
from truthgpt_plugin_quantize.optimization import Quantize

GROUPS = (32, 64, 128)


def levels(scales: torch.Tensor, minima: torch.Tensor) -> torch.Tensor:
    """Return the 16 numbers that each group can hold, in a last dimension."""
    integers = torch.arange(LEVELS + 1, dtype=torch.float64)
    return integers * scales.double().unsqueeze(-1) + minima.double().unsqueeze(-1)


def back(integers: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor) -> torch.Tensor:
    """Return what stored numbers stand for, of shape (out, groups, group)."""
    grouped = integers.view(*scales.shape, -1)
    return levels(scales, minima).gather(-1, grouped.long())


def random_weights(seed: int, exponent: int, groups: int, group_size: int) -> torch.Tensor:
    """Return some rows, none of them centered at 0."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, groups * group_size, generator=generator)
    return (weight + torch.randn(5, 1, generator=generator)) * 2.0**exponent


some_weights = given(
    seed=st.integers(0, 2**31),
    exponent=st.integers(-20, 10),
    groups=st.integers(1, 3),
    group_size=st.sampled_from(GROUPS),
)


@some_weights
@settings(max_examples=60, deadline=None, database=None)
def test_each_weight_takes_the_nearest_of_its_groups_numbers(
    seed: int, exponent: int, groups: int, group_size: int
) -> None:
    """No other of the 16 numbers of its group is nearer to a weight, at any magnitude."""
    weight = random_weights(seed, exponent, groups, group_size)
    integers, scales, minima = quantize(weight, group_size)
    assert int(integers.max()) <= LEVELS
    exact = weight.double().view(5, groups, group_size)
    error = (back(integers, scales, minima) - exact).abs()
    possible = levels(scales, minima).unsqueeze(-2)
    least = (possible - exact.unsqueeze(-1)).abs().amin(-1)
    # Which of two that are nearly as near is decided in float32.
    close = 2.0**-20 * (possible.abs().amax(-1) + exact.abs())
    assert (error <= least + close).all()


@some_weights
@settings(max_examples=60, deadline=None, database=None)
def test_the_grid_is_no_worse_than_one_over_the_whole_range(
    seed: int, exponent: int, groups: int, group_size: int
) -> None:
    """Cutting off a group's ends is done only where it makes the squared error smaller."""
    weight = random_weights(seed, exponent, groups, group_size)
    exact = weight.double().view(5, groups, group_size)
    error = (back(*quantize(weight, group_size)) - exact).square().sum(-1)
    low, high = exact.amin(-1), exact.amax(-1)
    scales = ((high - low) / LEVELS).half()
    whole = levels(scales.where(scales != 0, 1.0), low.half()).unsqueeze(-2)
    least = (whole - exact.unsqueeze(-1)).square().amin(-1).sum(-1)
    assert (error <= least * (1 + 1e-3) + 1e-30).all()


@given(
    seed=st.integers(0, 2**31),
    exponent=st.integers(-12, 8),
    group_size=st.sampled_from(GROUPS),
)
@settings(max_examples=40, deadline=None, database=None)
def test_weights_that_lie_on_a_grid_come_back_exactly(
    seed: int, exponent: int, group_size: int
) -> None:
    """A model whose weights were 4-bit integers before loses nothing."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.randint(1, 1024, (6, 2, 1), generator=generator) * 2.0 ** (exponent - 10)
    minima = -torch.randint(0, 2048, (6, 2, 1), generator=generator) * 2.0 ** (exponent - 10)
    integers = torch.randint(0, LEVELS + 1, (6, 2, group_size), generator=generator)
    # A group that does not reach both ends of its grid would be given another one.
    integers[..., 0], integers[..., 1] = 0, LEVELS
    weight = (integers * scales + minima).view(6, -1)
    assert torch.equal(back(*quantize(weight, group_size)).view(6, -1), weight.double())


@pytest.mark.parametrize("value", [0.0, -0.0, 0.5, -3.0, 60000.0, 2.0**-24])
def test_a_group_of_one_value_comes_back_exactly(value: float) -> None:
    """Zeros, and whatever float16 can say, are exact beside other groups that are not."""
    weight = torch.randn(3, 96)
    weight[:, 32:64] = value
    found = back(*quantize(weight, 32))
    assert (found[:, 1] == value).all()


def test_a_layer_of_zeros_answers_its_bias() -> None:
    """Weights that are all zero add exactly nothing, whichever way they are multiplied."""
    linear = nn.Linear(128, 24)
    nn.init.zeros_(linear.weight)
    layer = Int4Linear.from_linear(linear, KERNELS["native"], 64)
    for rows in (1, 9):
        assert torch.equal(layer(torch.randn(rows, 128)), linear.bias.expand(rows, 24))


@given(rows=st.integers(1, 9), runs=st.integers(1, 5), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None, database=None)
def test_unpacking_undoes_packing(rows: int, runs: int, seed: int) -> None:
    """Two integers in a byte are the two that were put there."""
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(0, 16, (rows, runs * 64), generator=generator, dtype=torch.uint8)
    packed = pack(integers)
    assert packed.shape == (rows, runs * 32)
    assert torch.equal(unpack(packed), integers)


def test_where_a_byte_keeps_its_columns() -> None:
    """Saved models depend on it: byte j of 32 holds column j low and column j + 32 high."""
    integers = (torch.arange(128, dtype=torch.uint8) % 16).view(1, -1)
    integers[0, 64 + 3], integers[0, 64 + 35] = 9, 4
    packed = pack(integers)
    assert packed[0, 32 + 3] == 9 + 16 * 4
    assert packed[0, 5] == 5 + 16 * 5


@pytest.mark.parametrize("group_size", GROUPS)
def test_what_a_checkpoint_holds(group_size: int) -> None:
    """Two weights in a byte, and four bytes in float16 for each group."""
    layer = Int4Linear.from_linear(nn.Linear(256, 24), KERNELS["native"], group_size)
    found = {name: (each.dtype, tuple(each.shape)) for name, each in layer.state_dict().items()}
    groups = (24, 256 // group_size)
    assert found == {
        "qweight": (torch.uint8, (24, 128)),
        "scales": (torch.float16, groups),
        "minima": (torch.float16, groups),
        "bias": (torch.float32, (24,)),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_model_that_changes_its_dtype_keeps_scales_and_minima(dtype: torch.dtype) -> None:
    """`model.to(dtype)` converts the bias, and no bit of what the integers are read by."""
    layer = Int4Linear.from_linear(nn.Linear(64, 8), KERNELS["native"], 32)
    before = {name: each.clone() for name, each in layer.named_buffers()}
    layer.to(dtype)
    assert layer.bias is not None
    assert layer.bias.dtype == dtype
    for name, each in layer.named_buffers():
        assert each.dtype == before[name].dtype
        assert torch.equal(each, before[name])


@pytest.mark.parametrize(
    ("in_features", "asked", "given"),
    [(64, 128, 64), (192, 128, 64), (256, 128, 128), (576, 64, 64), (64, 32, 32), (96, 32, 0)],
)
def test_groups_that_do_not_fit_become_smaller(in_features: int, asked: int, given: int) -> None:
    """The largest group up to the one asked for that divides a row; 0 for odd rows."""
    assert fitting_group(in_features, asked) == given


@pytest.mark.parametrize("largest", [60001.0, 1e30])
def test_weights_beyond_float16_are_a_reason(largest: float) -> None:
    """Scales and minima could not hold them, on either side of zero."""
    for sign in (1, -1):
        weight = torch.randn(4, 64)
        weight[2, 3] = sign * largest
        assert f"up to {largest:g}, beyond float16" in why_not_values(weight)
    assert why_not_values(torch.full((4, 64), 60000.0)) == ""


@pytest.mark.parametrize("magnitude", [1e-6, 1e-9, 1e-30])
def test_weights_below_float16_are_a_reason(magnitude: float) -> None:
    """Scales and minima would lose them: they would come back as other numbers, or as zero."""
    assert "below float16" in why_not_values(torch.randn(4, 64) * magnitude)
    assert why_not_values(torch.randn(4, 64) * 1e-4) == ""
    assert why_not_values(torch.zeros(4, 64)) == ""


def three() -> nn.ModuleDict:
    """Make a model of three linear layers."""
    return nn.ModuleDict({name: nn.Linear(64, 64) for name in ("first", "second", "third")})


@pytest.mark.parametrize("magnitude", [1e6, 1e-9])
def test_a_layer_that_float16_cannot_hold_is_int8_and_the_report_says_so(
    magnitude: float, context: OptimizationContext
) -> None:
    """It is covered all the same, and restored as what it was made of."""
    model = three()
    with torch.no_grad():
        model["second"].weight.mul_(magnitude)
    exact = model["second"].weight.detach().clone()
    applied = Quantize(scheme="int4").apply(model, context)
    kinds = [type(each) for each in model.values()]
    assert kinds == [Int4Linear, Int8Linear, Int4Linear]
    (note,) = [each for each in applied.notes if "float16" in each]
    assert note.startswith("1 layer: int8, because its weights ")
    error = (model["second"].dequantize() - exact).abs().max()
    assert float(error) <= float(exact.abs().max()) / 127
    fresh = Quantize(**applied.settings).restore(three(), context)
    assert [type(each) for each in fresh.values()] == kinds


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_layer_that_is_not_finite_is_left_alone_by_name(
    bad: float, context: OptimizationContext
) -> None:
    """It is not made of int8 either, and the others are int4."""
    model = three()
    with torch.no_grad():
        model["second"].weight[5, 7] = bad
    applied = Quantize(scheme="int4").apply(model, context)
    assert applied.coverage.skipped == (("second", "its weights are not all finite"),)
    assert [type(each) for each in model.values()] == [Int4Linear, nn.Linear, Int4Linear]


def test_rows_that_cannot_be_cut_are_int8_and_the_report_says_so(
    context: OptimizationContext,
) -> None:
    """The integers of a row are stored in runs of 64; the report says how many layers were not."""
    model = nn.ModuleDict({"a": nn.Linear(96, 8), "b": nn.Linear(96, 8), "c": nn.Linear(192, 8)})
    applied = Quantize(scheme="int4", group_size=128).apply(model, context)
    assert [type(each) for each in model.values()] == [Int8Linear, Int8Linear, Int4Linear]
    assert applied.notes[1:] == (
        "2 layers: int8, because rows of 96 weights are no multiple of 64",
        "1 layer: groups of 64, because 128 does not divide 192 weights",
    )
