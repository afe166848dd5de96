"""How many floating-point operations a step of training takes, by the model's own arithmetic.

What a program computes besides, such as activations a second time, or attention between
tokens that do not see each other, does not count: it is no use to the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class ModelFlops:
    """What a model computes, forward and backward.

    Attributes:
        per_token: operations in products with weights, for each token.
        per_pair: operations in attention, for each token and token that it sees.
    """

    per_token: int
    per_pair: int

    def of(self, batch: Mapping[str, torch.Tensor]) -> int:
        """Return the operations for a batch; padding takes none.

        Args:
            batch: as `DataLoaderFactory` makes them. Without `position_ids` each row is one
                text.
        """
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        there = torch.ones_like(ids) if mask is None or mask.ndim != 2 else mask
        positions = batch.get("position_ids")
        if positions is None:
            positions = (there.cumsum(1) - 1).clamp(min=0)
        seen = int(((positions + 1) * there).sum())
        return int(there.sum()) * self.per_token + seen * self.per_pair


def count_flops(model: nn.Module) -> ModelFlops | None:
    """Count what a causal language model of transformers computes in training.

    A weight takes 2 operations for each token forward, 2 for the gradient of what goes in
    and, if it is trained, 2 for its own. An embedding is read, not multiplied with, unless it
    is the output layer too. Norms and biases are left out.

    Args:
        model: with its configuration, or wrapping a model that has one.

    Returns:
        None if not every token goes through every weight (a mixture of experts), or the
        configuration does not say how large the attention is.
    """
    config: Any = getattr(model, "config", None)
    layers: Any = getattr(config, "num_hidden_layers", None)
    heads: Any = getattr(config, "num_attention_heads", None)
    experts = ("num_experts", "num_local_experts", "n_routed_experts")
    if layers is None or heads is None or any(getattr(config, name, None) for name in experts):
        return None
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    looked_up = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    output: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if output is not None:
        looked_up.discard(id(output.weight))
    per_token = sum(
        each.numel() * (6 if each.requires_grad else 4)
        for each in model.parameters()
        if each.ndim >= 2 and id(each) not in looked_up
    )
    # Scores and the sum of values: 2 operations each for every number of a head, and twice
    # as many backward.
    return ModelFlops(per_token, 12 * layers * heads * head)


def matmul_rate(
    device: torch.device, dtype: torch.dtype, *, size: int, seconds: float = 0.1
) -> float:
    """Measure how many operations a device does in a second in products of square matrices.

    Args:
        device: which one.
        dtype: of the matrices.
        size: their rows and columns.
        seconds: for how long, at least one product; one comes before that does not count.
    """
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(left, right)
    _finish(device)
    began, products = perf_counter(), 0
    while products == 0 or perf_counter() - began < seconds:
        torch.mm(left, right)
        _finish(device)
        products += 1
    return 2.0 * size**3 * products / (perf_counter() - began)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
