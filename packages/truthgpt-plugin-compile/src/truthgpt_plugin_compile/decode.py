"""A model's forward that compiles one case, the decode step, and leaves the others alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit


class DecodeForward:
    """Takes the place of a model's `forward`.

    Set on the model itself, so its modules, the names of its weights and its
    checkpoints stay as they are.

    Args:
        forward: the model's own, bound.
        mode: as for `torch.compile`.
    """

    def __init__(self, forward: Callable[..., Any], mode: str) -> None:
        functools.update_wrapper(self, forward)
        self._eager = forward
        self._mode = mode
        # Not dynamic: a decode step always has the same shapes, and code for any
        # shape is slower.
        self._compiled = torch.compile(forward, dynamic=False, fullgraph=True, mode=mode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run compiled if it is a decode step against a static cache, else as before."""
        if args or not _is_decode_step(kwargs):
            return self._eager(*args, **kwargs)
        try:
            return self._compiled(**kwargs)
        except FailOnRecompileLimitHit:
            # Said before anything is computed. A process that has compiled as many
            # shapes as torch allows goes on, slower.
            return self._eager(**kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without what is compiled: it has the weights of this one model."""
        return DecodeForward, (self._eager, self._mode)


def linear_layers(model: nn.Module) -> list[str]:
    """Names of a model's linear layers, those of other libraries and plugins included."""
    return [
        name
        for name, module in model.named_modules()
        if hasattr(module, "in_features") or type(module).__name__ == "Conv1D"
    ]


def _is_decode_step(arguments: dict[str, Any]) -> bool:
    ids = arguments.get("input_ids")
    cache = arguments.get("past_key_values")
    return (
        ids is not None
        and ids.shape[-1] == 1
        and bool(getattr(cache, "is_compileable", False))
        and not torch.is_grad_enabled()
    )
