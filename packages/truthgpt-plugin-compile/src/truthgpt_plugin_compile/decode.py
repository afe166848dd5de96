"""A model's forward that compiles one case, the decode step, and leaves the others alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from truthgpt_plugin_compile.blocks import BlockForward, SharedCode, repeated_blocks
from truthgpt_plugin_compile.compilation import Compilation
from truthgpt_plugin_compile.steps import CACHE, is_decode_step


class DecodeForward:
    """Takes the place of a model's `forward`.

    Set on the model itself, so its modules, the names of its weights and its
    checkpoints stay as they are.

    Args:
        forward: the model's own, bound.
        compilation: compiles for this model.
        whole: whether to compile all of it; else its blocks compile themselves.
    """

    only_compiles = True
    """For others who look for a `forward` that was replaced: it computes what it did before."""

    def __init__(
        self, forward: Callable[..., Any], compilation: Compilation, *, whole: bool
    ) -> None:
        functools.update_wrapper(self, forward)
        self._eager = forward
        self._compilation = compilation
        self._whole = whole
        self._compiled = compilation.compiled(forward) if whole else None

    @property
    def compiled_calls(self) -> int:
        """How often compiled code has run in decode steps that came here."""
        return self._compilation.calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run compiled if it is a decode step against a static cache, else as before."""
        if args or not is_decode_step(kwargs.get("input_ids"), kwargs.get(CACHE)):
            return self._eager(*args, **kwargs)
        with self._compilation.step():
            if self._compiled is None:
                return self._eager(**kwargs)
            compiled = self._compiled
            return self._compilation.attempt(
                lambda: _run_compiled(compiled, self._compilation, kwargs),
                lambda: self._eager(**kwargs),
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without what is compiled: it has the weights of this one model."""
        return _remade, (self._eager, self._compilation, self._whole)


def compile_decoding(model: nn.Module, compilation: Compilation, *, whole: bool) -> None:
    """Make a model compile its decode step when it first runs.

    Args:
        model: a causal language model of transformers; changed in place.
        compilation: compiles for this model.
        whole: whether to compile all of it at once, or the repeated blocks, of which it
            must have some.
    """
    if not whole:
        blocks = repeated_blocks(model)
        shared = SharedCode(type(blocks[0]).forward, compilation)
        for number, block in enumerate(blocks):
            block.forward = BlockForward(block, number, shared)
    model.forward = DecodeForward(model.forward, compilation, whole=whole)


def linear_layers(model: nn.Module) -> list[str]:
    """Names of a model's linear layers, those of other libraries and plugins included."""
    return [
        name
        for name, module in model.named_modules()
        if hasattr(module, "in_features") or type(module).__name__ == "Conv1D"
    ]


def _remade(forward: Callable[..., Any], compilation: Compilation, whole: bool) -> DecodeForward:
    return DecodeForward(forward, compilation, whole=whole)


def _run_compiled(
    compiled: Callable[..., Any], compilation: Compilation, kwargs: dict[str, Any]
) -> Any:
    if not compilation.uses_cuda_graphs:
        return compiled(**kwargs)
    # A CUDA graph writes its results where it wrote those of the step before, which
    # the caller may still look at.
    torch.compiler.cudagraph_mark_step_begin()
    answer = compiled(**kwargs)
    answer.logits = answer.logits.clone()
    return answer
