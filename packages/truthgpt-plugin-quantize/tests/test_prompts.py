"""Prompts through quantized layers: more rows than one token's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_matmul import KERNELS

from truthgpt_plugin_quantize.layer_classes import layer_class
from truthgpt_plugin_quantize.quantized import FEW_ROWS
from truthgpt_plugin_quantize.schemes import Scheme


@given(
    outputs=st.integers(1, 130),
    blocks=st.integers(1, 9),
    count=st.integers(FEW_ROWS + 1, 300),
    scheme=st.sampled_from(["int8", "int4"]),
    kernel=st.sampled_from(["native", "packed", "dequantize"]),
    group=st.sampled_from([0, 32, 64, 96]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_prompts_of_any_length_go_through_layers_of_any_shape(
    outputs: int, blocks: int, count: int, scheme: str, kernel: str, group: int, seed: int
) -> None:
    """What comes out is off by float32's rounding alone."""
    torch.manual_seed(seed)
    linear = torch.nn.Linear(64 * blocks, outputs)
    if scheme == "int4":
        group = 64 if group == 64 else 32
    layer = layer_class(Scheme(scheme)).from_linear(linear, KERNELS[kernel], group)
    x = torch.randn(count, 64 * blocks)
    weight = layer.dequantize().double()
    exact = x.double() @ weight.T + linear.bias
    bound = 1e-6 * 64 * blocks * (x.double().abs() @ weight.abs().T) + 1e-6
    assert ((layer(x) - exact).abs() <= bound).all()


def test_int8_dynamic_rounds_the_activations_of_a_prompt() -> None:
    """Each row by its own scale, where no plugin multiplies integers."""
    linear = torch.nn.Linear(256, 40)
    layer = layer_class(Scheme("int8-dynamic")).from_linear(linear, KERNELS["dequantize"], 0)
    x = torch.randn(FEW_ROWS + 60, 256)
    scales = x.abs().amax(dim=-1, keepdim=True) / 127
    rounded = (x / scales).round() * scales
    assert torch.allclose(layer(x), rounded @ layer.dequantize().T + layer.bias, atol=1e-4)
    assert not torch.allclose(layer(x), x @ layer.dequantize().T + layer.bias, atol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_of_a_prompt_are_exact(kernel: str) -> None:
    """What comes before a layer gets the derivative of the weights that the integers stand for."""
    linear = torch.nn.Linear(256, 40)
    layer = layer_class(Scheme("int8")).from_linear(linear, KERNELS[kernel], 0)
    x = torch.randn(9, 256, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, layer.dequantize().sum(0).expand(9, 256), atol=1e-5)
