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


class Integers(nn.Module):
    """A linear layer of integers that computes with the numbers they stand for."""

    def __init__(self, linear: nn.Linear, **tensors: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantize(), self.bias)


class Int8(Integers):
    """Of 8 bits, with a scale for each row or for each group in it."""

    weight: Tensor
    scales: Tensor

    @classmethod
    def of(cls, linear: nn.Linear, group: int = 0) -> Self:
        grouped = linear.weight.detach().view(linear.out_features, -1, group or linear.in_features)
        scales = grouped.abs().amax(-1) / 127
        integers = (grouped / scales.unsqueeze(-1)).round().to(torch.int8)
        stored = scales if group else scales.view(-1)
        return cls(linear, weight=integers.view(linear.weight.shape), scales=stored)

    def dequantize(self) -> Tensor:
        scales = self.scales.view(self.out_features, -1, 1)
        grouped = self.weight.view(*scales.shape[:2], -1).float()
        return (grouped * scales).view(self.weight.shape)

    def stored_matrix(self) -> StoredMatrix | None:
        return StoredMatrix(self.weight, self.scales)


class Int4(Integers):
    """Of 4 bits, with a scale and a minimum for each group."""

    weight: Tensor
    scales: Tensor
    minima: Tensor
    integers: Tensor

    @classmethod
    def of(cls, linear: nn.Linear, group: int = 32) -> Self:
        grouped = linear.weight.detach().view(linear.out_features, -1, group)
        low, high = grouped.amin(-1), grouped.amax(-1)
        scales, minima = ((high - low) / 15).half(), low.half()
        steps = (grouped - minima.float().unsqueeze(-1)) / scales.float().unsqueeze(-1)
        integers = steps.round().clamp(0, 15).to(torch.uint8)
        halves = integers.view(linear.out_features, -1, 2, 32)
        packed = (halves[:, :, 0] | halves[:, :, 1] << 4).view(linear.out_features, -1)
        return cls(linear, weight=packed, scales=scales, minima=minima, integers=integers)

    def dequantize(self) -> Tensor:
        scales, minima = (each.float().unsqueeze(-1) for each in (self.scales, self.minima))
        return (self.integers * scales + minima).view(self.out_features, self.in_features)

    def stored_matrix(self) -> StoredMatrix | None:
        return StoredMatrix(self.weight, self.scales, self.minima)


def with_layers(model: Any, kind: type[Int8] | type[Int4], group: int = 0) -> Any:
    """Put layers of integers in the places of a model's own."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.in_features % 64 == 0:
                setattr(module, name, kind.of(child, group))
    return model
