"""One layer: rounding, dtypes, names, copies, odd weights."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_matmul import KERNELS
from safetensors import safe_open
from safetensors.torch import save_file

from truthgpt_plugin_quantize.int8 import LEVELS, Int8Linear, quantize
from truthgpt_plugin_quantize.kernels import ALIGNMENT
from truthgpt_plugin_quantize.layers import why_not, why_not_values


def made(
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
    kernel: str = "packed",
    group_size: int = 0,
) -> tuple[torch.nn.Linear, Int8Linear]:
    """Make a layer of 64 to 24 and quantize it."""
    linear = torch.nn.Linear(64, 24, bias=bias, dtype=dtype)
    return linear, Int8Linear.from_linear(linear, KERNELS[kernel], group_size)


def back(qweight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the weights that integers and scales stand for."""
    grouped = qweight.double().view(*scales.shape, -1)
    return (grouped * scales.double().unsqueeze(-1)).view(qweight.shape)


@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 80),
    exponent=st.integers(-30, 30),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=100, deadline=None, database=None)
def test_no_weight_moves_by_more_than_half_a_step(
    rows: int, columns: int, exponent: int, dtype: torch.dtype, seed: int
) -> None:
    """Each weight comes back within half of its channel's scale, at any magnitude."""
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, columns, generator=generator) * 2.0**exponent).to(dtype)
    qweight, scales = quantize(weight)
    error = (back(qweight, scales) - weight.double()).abs()
    assert (error <= scales.double().unsqueeze(1) * (0.5 + 1e-5)).all()
    assert qweight.abs().amax(dim=1).eq(LEVELS).all()
    assert scales.dtype == torch.float32


@given(
    groups=st.integers(1, 4),
    group_size=st.sampled_from([1, 7, 32]),
    exponent=st.integers(-30, 30),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None, database=None)
def test_each_group_has_a_scale_of_its_own(
    groups: int, group_size: int, exponent: int, seed: int
) -> None:
    """Each weight comes back within half a step of its group, however small beside the others."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, groups, group_size, generator=generator)
    weight *= 2.0 ** (exponent * torch.arange(groups) / groups).view(1, -1, 1)
    qweight, scales = quantize(weight.view(5, -1), group_size)
    assert scales.shape == (5, groups)
    error = (back(qweight, scales) - weight.view(5, -1).double()).abs().view(weight.shape)
    assert (error <= scales.double().unsqueeze(-1) * (0.5 + 1e-5)).all()
    assert qweight.abs().view(weight.shape).amax(dim=-1).eq(LEVELS).all()


@pytest.mark.parametrize(("group_size", "shape"), [(0, (24,)), (32, (24, 2)), (48, (24,))])
def test_shapes_in_a_checkpoint(group_size: int, shape: tuple[int, ...]) -> None:
    """Scales have a column for each group, and none where groups do not fit into a row."""
    _, layer = made(kernel="native", group_size=group_size)
    shapes = {name: tuple(each.shape) for name, each in layer.state_dict().items()}
    assert shapes == {"qweight": (24, 64), "scales": shape, "bias": (24,)}


@pytest.mark.parametrize(
    ("columns", "group_size", "kernel"),
    [(64, 32, "native"), (64, 48, "native"), (96, 48, "dequantize"), (100, 50, "dequantize")],
)
def test_groups_that_cut_a_block_are_computed_in_floating_point(
    columns: int, group_size: int, kernel: str
) -> None:
    """Compiled code reads blocks of 32 of one scale; what it cannot read it is not given."""
    linear = torch.nn.Linear(columns, 8)
    layer = Int8Linear.from_linear(linear, KERNELS["native"], group_size)
    assert layer.kernel == kernel
    x = torch.randn(2, columns)
    assert layer(x) == pytest.approx(linear(x).detach(), abs=0.05)


def test_the_same_weights_give_the_same_integers() -> None:
    """Quantizing twice is bit-equal, so that a model can be made again from its source."""
    weight = torch.randn(33, 65)
    first, second = quantize(weight), quantize(weight.clone())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_the_weights_given_are_not_changed() -> None:
    """Quantizing reads a float32 weight and leaves it as it is."""
    weight = torch.randn(8, 32)
    before = weight.clone()
    quantize(weight)
    assert torch.equal(weight, before)


def test_a_channel_of_zeros_stays_zero() -> None:
    """A zero channel has scale 1 and gives exactly 0; the other channels do not notice."""
    weight = torch.randn(3, 32)
    weight[1] = 0
    qweight, scales = quantize(weight)
    assert scales[1] == 1
    assert not qweight[1].any()
    assert qweight[0].abs().max() == LEVELS
    assert scales.isfinite().all()


def test_a_constant_channel_comes_back_as_it_was() -> None:
    """A channel of one value, of either sign, loses nothing but the rounding of its scale."""
    weight = torch.tensor([[0.3] * 32, [-0.7] * 32])
    assert back(*quantize(weight)).float() == pytest.approx(weight, rel=1e-6)


@pytest.mark.parametrize("magnitude", [1e-45, 1e-39, 1e-37, 3e38])
def test_denormal_and_huge_weights_are_finite_and_within_half_a_step(magnitude: float) -> None:
    """At the ends of float32 nothing becomes infinite or NaN."""
    weight = torch.linspace(-1, 1, 32).unsqueeze(0) * magnitude
    qweight, scales = quantize(weight)
    assert scales.isfinite().all()
    assert (back(qweight, scales) - weight.double()).abs().max() <= scales.double() * 0.5001


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_a_reason(bad: float) -> None:
    """One NaN or infinity keeps a layer from being quantized, and the reason says so."""
    linear = torch.nn.Linear(32, 8)
    assert why_not_values(linear) == ""
    with torch.no_grad():
        linear.weight[3, 5] = bad
    assert "not all finite" in why_not_values(linear)


def test_weights_of_another_kind_of_tensor_are_a_reason() -> None:
    """A layer that another library quantized in place is not taken for a plain one."""

    class Packed(torch.nn.Parameter):
        pass

    linear = torch.nn.Linear(32, 8)
    linear.weight = Packed(linear.weight.data)
    assert "Packed" in why_not(linear)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "convert",
    [
        lambda layer: layer.to(torch.bfloat16),
        lambda layer: layer.half(),
        lambda layer: layer.to("cpu", torch.bfloat16),
        lambda layer: torch.nn.Sequential(layer).bfloat16()[0],
    ],
)
def test_scales_stay_float32_when_the_model_changes_its_dtype(kernel: str, convert: object) -> None:
    """`model.to(dtype)` converts the bias; scales keep every bit, integers stay integers."""
    _, layer = made(kernel=kernel)
    before = layer.scales.clone()
    assert callable(convert)
    convert(layer)
    assert layer.scales.dtype == torch.float32
    assert torch.equal(layer.scales, before)
    assert layer.qweight.dtype == torch.int8
    assert layer.bias is not None
    assert layer.bias.dtype in (torch.bfloat16, torch.float16)


def test_scales_move_with_the_layer() -> None:
    """`model.to(device)` moves the scales too, also when it changes the dtype at once."""
    _, layer = made()
    layer.to("meta", torch.bfloat16)
    assert {tensor.device.type for tensor in layer.state_dict().values()} == {"meta"}
    assert layer.scales.dtype == torch.float32
    assert layer(torch.empty(2, 64, dtype=torch.bfloat16, device="meta")).shape == (2, 24)


@pytest.mark.parametrize("bias", [True, False])
def test_names_in_a_checkpoint(bias: bool) -> None:
    """A layer is stored as qweight, scales and, if it has one, bias: nothing else."""
    _, layer = made(bias=bias)
    assert set(layer.state_dict()) == {"qweight", "scales"} | ({"bias"} if bias else set())


def test_weights_need_a_quarter_of_float32() -> None:
    """The integers take one byte each, the scales four for each channel."""
    linear, layer = made(bias=False)
    size = sum(each.numel() * each.element_size() for each in layer.state_dict().values())
    assert size == linear.weight.numel() + 4 * 24


def test_a_copy_is_independent() -> None:
    """`copy.deepcopy` gives a layer with the same answers and tensors of its own."""
    _, layer = made()
    twin = copy.deepcopy(layer)
    x = torch.randn(2, 64)
    before = layer(x)
    assert torch.equal(twin(x), before)
    twin.scales.zero_()
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_rows_give_no_rows(kernel: str) -> None:
    """An empty batch, as an expert that no token chose gets, is not an error."""
    _, layer = made(kernel=kernel)
    assert layer(torch.empty(0, 64)).shape == (0, 24)


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_reach_what_comes_before(kernel: str, rows: int) -> None:
    """The derivative is that of the quantized weights, so adapters before a layer can learn."""
    _, layer = made(kernel=kernel)
    x = torch.randn(rows, 64, requires_grad=True)
    layer(x).sum().backward()
    expected = back(layer.qweight, layer.scales).sum(0).float()
    assert x.grad is not None
    assert x.grad == pytest.approx(expected.expand(rows, 64), abs=1e-5)


def test_float64_activations_work() -> None:
    """A layer takes float64, which the packed kernel does not know, and answers in it."""
    linear, layer = made()
    out = layer(torch.randn(1, 64, dtype=torch.float64))
    assert out.dtype == torch.float64
    assert linear.weight.dtype == torch.float32


def test_the_answer_has_the_dtype_of_the_input() -> None:
    """A float32 bias does not turn a bfloat16 answer into float32."""
    _, layer = made()
    for rows in (1, 9):
        assert layer(torch.randn(rows, 64).bfloat16()).dtype == torch.bfloat16


def test_weights_that_lie_in_a_file_are_aligned_when_loaded(tmp_path: Path) -> None:
    """Tensors of a memory-mapped safetensors file begin anywhere; loaded ones do not.

    The AVX-512 kernel would kill the process.
    """
    _, layer = made()
    state = {name: tensor.detach() for name, tensor in layer.state_dict().items()}
    path = tmp_path / "layer.safetensors"
    odd = 0
    for length in range(16):
        save_file(state, path, metadata={"a": "b" * length})
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        odd += stored["qweight"].data_ptr() % ALIGNMENT != 0
        twin = copy.deepcopy(layer)
        twin.load_state_dict(stored, assign=True)
        assert twin.qweight.data_ptr() % ALIGNMENT == 0
        assert torch.equal(twin.qweight, layer.qweight)
    assert odd, "no file had its weights at an odd address, so this shows nothing"


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler"
)
@pytest.mark.slow
def test_compiles_without_graph_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.compile` takes a layer as a whole, also when it fuses what comes before it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    _, layer = made(kernel="packed-bfloat16")
    x = torch.randn(2, 64)

    def gated(x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = layer(torch.nn.functional.silu(x) * x)
        return out

    compiled = torch.compile(gated, fullgraph=True)
    with torch.inference_mode():
        assert compiled(x) == pytest.approx(gated(x), abs=1e-3)


def test_says_what_it_is() -> None:
    """`print(model)` shows sizes and the kernel that is really used."""
    odd = Int8Linear.from_linear(torch.nn.Linear(33, 8), KERNELS["packed"])
    assert "in_features=33, out_features=8, bias=True, scheme=int8, kernel=dequantize" in repr(odd)
