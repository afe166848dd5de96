"""Prompts through quantized layers, in bfloat16 where a CPU multiplies that in tiles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truthgpt_core.optimization import OptimizationContext
from truthgpt_plugin_quantize import kernels
from truthgpt_plugin_quantize.layer_classes import layer_class
from truthgpt_plugin_quantize.native import rows
from truthgpt_plugin_quantize.optimization import Quantize
from truthgpt_plugin_quantize.quantized import FEW_ROWS, QuantizedLinear
from truthgpt_plugin_quantize.schemes import Scheme

CASES = [
    ("int8", "native", 32),
    ("int8", "native", 0),
    ("int8", "packed", 0),
    ("int8", "dequantize", 32),
    ("int4", "native", 32),
    ("int4", "native", 128),
    ("int4", "dequantize", 64),
]


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be on a CPU that multiplies bfloat16 in tiles; elsewhere the same comes out, slowly."""
    monkeypatch.setattr(kernels, "BFLOAT16_TILES", True)


def made(scheme: str, kernel: str, group_size: int) -> QuantizedLinear:
    linear = torch.nn.Linear(256, 40)
    return layer_class(Scheme(scheme)).from_linear(linear, kernel, group_size)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_code_makes_the_weights_that_torch_makes(case: Any, dtype: torch.dtype) -> None:
    """Of integers and scales come the same numbers, rounded once."""
    layer = made(*case)
    exact = layer.dequantize().to(dtype)
    assert layer.convert(dtype).dtype == dtype
    # A sum of two products may be rounded once or twice.
    assert torch.allclose(
        layer.convert(dtype), exact, rtol=2**-7 * (dtype != torch.float32), atol=1e-6
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_many_rows_are_near_in_bfloat16(tiles: None, case: Any) -> None:
    """The answer is float32, and off by what rounding both sides to 8 bits of mantissa explains."""
    layer = made(*case)
    x = torch.randn(FEW_ROWS + 5, 256)
    weight = layer.dequantize()
    bias = torch.zeros(40) if layer.bias is None else layer.bias
    exact = x @ weight.T + bias
    out = layer(x)
    assert out.dtype == torch.float32
    bound = 3 * 2**-8 * (x.abs() @ weight.abs().T) + 1e-6
    assert ((out - exact).abs() <= bound).all()
    assert not torch.equal(out, exact), "nothing was rounded, so this shows nothing"


def test_a_few_rows_and_other_dtypes_are_as_before(tiles: None) -> None:
    """One token, and float64 activations, do not go through bfloat16."""
    layer = made("int8", "native", 32)
    x = torch.randn(FEW_ROWS + 5, 256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BFLOAT16_TILES", False)
        one, wide = layer(x[:1]), layer(x.double())
    assert torch.equal(layer(x[:1]), one)
    assert torch.equal(layer(x.double()), wide)


def test_gradients_are_computed_in_float32(tiles: None) -> None:
    """Whoever trains what comes before a layer gets exact derivatives."""
    layer = made("int8", "native", 32)
    x = torch.randn(9, 256, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, layer.dequantize().sum(0).expand(9, 256), atol=1e-5)


def test_a_model_answers_nearly_the_same(tiles: None, context: OptimizationContext) -> None:
    """Little is lost beside what quantizing costs: under a thousandth of a nat for each token."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
        pad_token_id=0,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    Quantize().apply(model, context)
    ids = torch.arange(3, 51).unsqueeze(0)
    with torch.inference_mode():
        given = model(input_ids=ids).logits.log_softmax(-1)
        kernels.BFLOAT16_TILES = False
        exact = model(input_ids=ids).logits.log_softmax(-1)
    divergence = (exact.exp() * (exact - given)).sum(-1)
    assert 0 < divergence.mean() < 1e-3


@pytest.mark.parametrize("case", CASES, ids=str)
def test_prompts_are_multiplied_by_the_weights_whatever_part_is_made_at_once(
    monkeypatch: pytest.MonkeyPatch, case: Any
) -> None:
    """Without OpenMP's threads a part is made at a time, in memory that the next one overwrites."""
    monkeypatch.setattr(rows, "_parallel", lambda: None)
    layer, other = made(*case), made(*case)
    x = torch.randn(FEW_ROWS + 5, 256)
    exact = [x @ each.dequantize().T + each.bias for each in (layer, other)]
    monkeypatch.setattr(rows, "SCRATCH", 256 * 16)
    found = [layer(x), other(x)]
    for one, wanted in zip(found, exact, strict=True):
        assert torch.allclose(one, wanted, atol=1e-4)


@given(
    outputs=st.integers(1, 130),
    blocks=st.integers(1, 9),
    count=st.integers(FEW_ROWS + 1, 600),
    scheme=st.sampled_from(["int8", "int4"]),
    group=st.sampled_from([0, 32, 64, 96]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_prompts_of_any_length_go_through_layers_of_any_shape(
    outputs: int, blocks: int, count: int, scheme: str, group: int, seed: int
) -> None:
    """What is computed in tiles ends anywhere, and is off by float32's rounding alone."""
    torch.manual_seed(seed)
    linear = torch.nn.Linear(64 * blocks, outputs)
    if scheme == "int4":
        group = 64 if group == 64 else 32
    layer = layer_class(Scheme(scheme)).from_linear(linear, "native", group)
    x = torch.randn(count, 64 * blocks)
    weight = layer.dequantize().double()
    exact = x.double() @ weight.T + linear.bias
    bound = 1e-6 * 64 * blocks * (x.double().abs() @ weight.abs().T) + 1e-6
    assert ((layer(x) - exact).abs() <= bound).all()


@pytest.mark.parametrize("kernel", ["native", "dequantize"])
def test_int8_dynamic_rounds_the_activations_of_a_prompt_with_any_kernel(kernel: str) -> None:
    """The scheme says what is rounded; a kernel is how one token is computed."""
    layer = made("int8-dynamic", kernel, 0)
    x = torch.randn(FEW_ROWS + 60, 256)
    scales = x.abs().amax(dim=-1, keepdim=True) / 127
    rounded = (x / scales).round() * scales
    assert torch.allclose(layer(x), rounded @ layer.dequantize().T + layer.bias, atol=1e-4)
    assert not torch.allclose(layer(x), x @ layer.dequantize().T + layer.bias, atol=1e-4)


def test_threads_do_not_write_into_each_others_weights() -> None:
    """Two requests in two threads get what each would get alone."""
    layers = [made("int8", "native", 32) for _ in range(2)]
    x = torch.randn(64, 256)
    alone = [layer(x) for layer in layers]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            together = list(pool.map(lambda layer: layer(x), layers))
            assert all(torch.equal(one, two) for one, two in zip(alone, together, strict=True))


def test_prompts_are_read_in_and_out_of_inference_mode() -> None:
    """The memory that weights are made in does not remember what it was first used in."""
    layer = made("int8", "native", 32)
    x = torch.randn(64, 256)

    def answers() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            one = layer(x)
        return one, layer(x)

    # A thread of its own has memory of its own.
    with ThreadPoolExecutor(1) as pool:
        one, other = pool.submit(answers).result()
    assert torch.equal(one, other)
