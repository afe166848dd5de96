"""Models with random weights, of each family that the engine runs."""

from __future__ import annotations

from typing import Any, Self

import torch
import transformers
from torch import Tensor, nn

from truthgpt_core.optimization import StoredMatrix

VOCABULARY = 320
CONTEXT = 1024
FAMILIES = {
    name: (getattr(transformers, f"{name}Config"), getattr(transformers, f"{name}ForCausalLM"))
    for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma")
}


def make_model(family: str, **settings: Any) -> Any:
    """Return a model of two layers in float32, whose norms and biases are random, too."""
    torch.manual_seed(0)
    config, model = FAMILIES[family]
    known = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.1,
        "eos_token_id": None,
    }
    made = model(config(**(known | settings))).float().eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return made


class Int8(nn.Module):
    """A linear layer of integers of 8 bits, with the computing of one of numbers."""

    weight: Tensor
    scales: Tensor

    @classmethod
    def of(cls, linear: nn.Linear, group: int = 0) -> Self:
        layer = cls()
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.bias = linear.bias
        grouped = linear.weight.detach().view(linear.out_features, -1, group or linear.in_features)
        scales = grouped.abs().amax(-1) / 127
        integers = (grouped / scales.unsqueeze(-1)).round().to(torch.int8)
        layer.register_buffer("weight", integers.view(linear.weight.shape))
        layer.register_buffer("scales", scales if group else scales.view(-1))
        return layer

    def dequantize(self) -> Tensor:
        grouped = self.weight.view(*self.scales.view(self.out_features, -1).shape, -1).float()
        exact = grouped * self.scales.view(self.out_features, -1, 1)
        return exact.view(self.weight.shape)

    def stored_matrix(self) -> StoredMatrix | None:
        return StoredMatrix(self.weight, self.scales)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantize(), self.bias)


class Int4(nn.Module):
    """The same of 4 bits, in groups."""

    weight: Tensor
    scales: Tensor
    minima: Tensor

    @classmethod
    def of(cls, linear: nn.Linear, group: int = 32) -> Self:
        layer = cls()
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.bias = linear.bias
        grouped = linear.weight.detach().view(linear.out_features, -1, group)
        low, high = grouped.amin(-1), grouped.amax(-1)
        scales, minima = ((high - low) / 15).half(), low.half()
        steps = (grouped - minima.float().unsqueeze(-1)) / scales.float().unsqueeze(-1)
        integers = steps.round().clamp(0, 15).to(torch.uint8)
        halves = integers.view(linear.out_features, -1, 2, 32)
        packed = (halves[:, :, 0] | halves[:, :, 1] << 4).view(linear.out_features, -1)
        layer.register_buffer("weight", packed)
        layer.register_buffer("scales", scales)
        layer.register_buffer("minima", minima)
        layer.integers = integers
        return layer

    def dequantize(self) -> Tensor:
        exact = self.integers * self.scales.float().unsqueeze(-1) + self.minima.float().unsqueeze(
            -1
        )
        return exact.view(self.out_features, self.in_features)

    def stored_matrix(self) -> StoredMatrix | None:
        return StoredMatrix(self.weight, self.scales, self.minima)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantize(), self.bias)


def with_layers(model: Any, kind: type[Int8] | type[Int4], group: int = 0) -> Any:
    """Put layers of integers in the places of a model's own."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.in_features % 64 == 0:
                setattr(module, name, kind.of(child, group))
    return model
