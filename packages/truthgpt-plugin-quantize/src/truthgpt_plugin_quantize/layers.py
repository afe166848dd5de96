"""The linear layers of a model: finding them, reading them, putting others in their place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CONV1D = "Conv1D"
"""GPT-2's linear layer, which keeps its weights transposed. The class is transformers',
which need not be installed."""


def linear_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Return whatever multiplies by a matrix of weights, by name; also what cannot be quantized."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        or type(module).__name__ == CONV1D
        or holds_several_layers(module)
    ]


def why_not(module: Any) -> str:
    """Say why a layer cannot be quantized, without reading its weights; empty if it can."""
    if holds_several_layers(module):
        return f"{type(module).__name__} keeps several layers in one tensor"
    if type(module) is not nn.Linear and not is_transposed(module):
        return f"{type(module).__name__} may not be a plain linear layer"
    if not module.weight.dtype.is_floating_point or module.weight.dtype.itemsize < 2:
        return f"its weights are {module.weight.dtype}"
    if module.weight.numel() == 0:
        return "it has no weights"
    if type(module.weight) is not nn.Parameter:
        return f"its weights are {type(module.weight).__name__}"
    return ""


def why_not_values(module: Any) -> str:
    """Say why the values of a layer's weights cannot be quantized; empty if they can."""
    # The ends of the range are NaN if anything is; asking each weight would take more memory
    # than the layer.
    ends = torch.stack(torch.aminmax(module.weight.detach()))
    return "" if bool(torch.isfinite(ends).all()) else "its weights are not all finite"


def matrix(module: Any) -> Tensor:
    """Return a layer's weights as `nn.Linear` has them, of shape (out, in), not copied."""
    weight: Tensor = module.weight.detach()
    return weight.t() if is_transposed(module) else weight


def is_transposed(module: Any) -> bool:
    """Whether a module is GPT-2's `Conv1D`: a linear layer with weights of shape (in, out)."""
    kind = type(module)
    return kind.__name__ == CONV1D and kind.__module__ == "transformers.pytorch_utils"


def holds_several_layers(module: Any) -> bool:
    """Whether a module holds matrices stacked in one tensor, as a mixture of experts does."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return False
    own = module.parameters(recurse=False)
    return any(each.dim() == 3 and each.shape[0] > 1 and each.is_floating_point() for each in own)


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one that a model has under a name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
