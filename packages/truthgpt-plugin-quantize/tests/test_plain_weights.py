"""Quantized layers as the ordinary weights that they stand for, which `truthgpt export` writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from truthgpt_core.optimization import OptimizationContext
from truthgpt_plugin_quantize.optimization import Quantize
from truthgpt_plugin_quantize.quantized import QuantizedEmbedding, QuantizedLinear

SCHEMES = ("int8", "int8-dynamic", "int4", "fp8")


class Model(nn.Module):
    """A linear layer, one of GPT-2's, and two embeddings that are tied."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(96, 64)
        self.linear = nn.Linear(64, 96)
        self.conv = Conv1D(96, 64)
        nn.init.normal_(self.conv.bias)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 96, bias=False)
        self.head.weight = self.tokens.weight

    def get_input_embeddings(self) -> nn.Module:
        """Return what reads tokens."""
        return self.tokens

    def get_output_embeddings(self) -> nn.Module:
        """Return what makes logits."""
        return self.head


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("restored", [False, True], ids=["applied", "restored"])
@pytest.mark.parametrize("name", ["linear", "conv"])
def test_a_layer_with_its_plain_weights_computes_the_same(
    context: OptimizationContext, scheme: str, restored: bool, name: str
) -> None:
    """In the place of the one that was quantized, by its names and in its shapes."""
    plain: Any = Model()
    applied = Quantize(scheme=scheme).apply(Model(), context)
    step, model = Quantize(**applied.settings), applied.model
    if restored:
        model = step.restore(Model().to("meta"), context)
        model.load_state_dict(applied.model.state_dict(), assign=True)
    module = model.get_submodule(name)
    weights = step.plain_weights(name, module)
    assert weights is not None
    plain.get_submodule(name).load_state_dict(weights)
    rows = torch.randn(3, 64)
    expected = rows @ module.dequantize().t() + module.bias
    torch.testing.assert_close(plain.get_submodule(name)(rows), expected)


def test_an_embedding_that_reads_the_output_embedding_has_no_weights_of_its_own(
    context: OptimizationContext,
) -> None:
    """The two are tied then: those of the output embedding are those of both."""
    step = Quantize()
    model = step.apply(Model(), context).model
    assert isinstance(model.tokens, QuantizedEmbedding)
    assert isinstance(model.head, QuantizedLinear)
    assert step.plain_weights("tokens", model.tokens) == {}
    weights = step.plain_weights("head", model.head)
    assert weights is not None
    assert torch.equal(weights["weight"], model.head.dequantize())


def test_other_modules_are_not_its_own(context: OptimizationContext) -> None:
    """What it left alone, or another step made, is for others to say."""
    step = Quantize(skip=["linear"])
    model = step.apply(Model(), context).model
    assert step.plain_weights("linear", model.linear) is None
    assert step.plain_weights("norm", model.norm) is None
