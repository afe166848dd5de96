"""What a decode step is."""

from __future__ import annotations

from typing import Any

import torch

CACHE = "past_key_values"


def is_decode_step(tokens: torch.Tensor | None, cache: Any) -> bool:
    """Whether a call has one position for each sequence, a static cache and no gradients.

    Args:
        tokens: of shape (batch, positions), or their hidden states, of shape
            (batch, positions, size).
        cache: the key-value cache.
    """
    return (
        tokens is not None
        and tokens.shape[1:2] == (1,)
        and bool(getattr(cache, "is_compileable", False))
        and not torch.is_grad_enabled()
    )
