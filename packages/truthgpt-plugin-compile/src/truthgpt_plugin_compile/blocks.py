"""Compiling a model's repeated blocks: one block is compiled, and the others use its code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from truthgpt_plugin_compile.compilation import Compilation
from truthgpt_plugin_compile.steps import CACHE, is_decode_step


class OneLayer:
    """The part of a key-value cache that belongs to one block.

    A block asks the cache for its layer by number. The number is different in each
    block, and a block compiled for one number cannot run another: here it is ignored.

    Args:
        layer: of a static cache.
    """

    is_compileable = True

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def update(self, keys: Any, values: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Write into the layer and return its keys and values."""
        return self._layer.update(keys, values, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        """How many positions are filled."""
        return self._layer.get_seq_length()


class SharedCode:
    """What the blocks of one model share: the code, and what compiles it.

    Args:
        forward: of the blocks' class, a function.
        compilation: compiles for the model.
    """

    def __init__(self, forward: Callable[..., Any], compilation: Compilation) -> None:
        self._forward = forward
        self.compilation = compilation

        def call(block: nn.Module, layer: Any, *args: Any, **kwargs: Any) -> Any:
            return forward(block, *args, past_key_values=OneLayer(layer), **kwargs)

        self.compiled = compilation.compiled(call)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy compiles anew."""
        return SharedCode, (self._forward, self.compilation)


class BlockForward:
    """Takes the place of a block's `forward`, which it runs compiled in a decode step.

    Args:
        block: the block.
        number: of the block, from 0.
        shared: what is compiled for all blocks of the model.
    """

    only_compiles = True
    """As of `DecodeForward`."""

    def __init__(self, block: nn.Module, number: int, shared: SharedCode) -> None:
        self._block = block
        self._eager = type(block).forward.__get__(block)
        self._number = number
        self._shared = shared
        functools.update_wrapper(self, self._eager)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run compiled if the model is in a decode step, else as before."""
        hidden = args[0] if args else kwargs.get("hidden_states")
        cache: Any = kwargs.get(CACHE)
        if not is_decode_step(hidden, cache):
            return self._eager(*args, **kwargs)
        others = {name: value for name, value in kwargs.items() if name != CACHE}
        layer = cache.layers[self._number]
        return self._shared.compilation.attempt(
            lambda: self._shared.compiled(self._block, layer, *args, **others),
            lambda: self._eager(*args, **kwargs),
        )

    def __getstate__(self) -> tuple[nn.Module, int, SharedCode]:
        """Copy and pickle with the copies of the block and of what is shared."""
        return self._block, self._number, self._shared

    def __setstate__(self, state: tuple[nn.Module, int, SharedCode]) -> None:
        """Be the copy: the block may refer to this, so it comes after this is made."""
        BlockForward.__init__(self, *state)


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Find the blocks that one compiled code can run.

    Args:
        model: a causal language model of transformers.

    Returns:
        Its decoder blocks, in order; none if they are not all of one class, do not take
        the cache by its usual name, or do not use one layer of it each.
    """
    config: Any = model.config
    number = getattr(config.get_text_config(), "num_hidden_layers", 0)
    for each in model.modules():
        if not isinstance(each, nn.ModuleList) or len(each) != number or number < 2:
            continue
        blocks = list(each)
        plain = len({type(block) for block in blocks}) == 1 and not any(
            "forward" in vars(block) for block in blocks
        )
        if plain and _takes_cache(blocks[0]) and _uses_own_layers(blocks):
            return blocks
    return []


def _takes_cache(block: nn.Module) -> bool:
    return CACHE in inspect.signature(type(block).forward).parameters


def _uses_own_layers(blocks: list[nn.Module]) -> bool:
    return all(
        getattr(module, "layer_idx", number) == number
        for number, block in enumerate(blocks)
        for module in block.modules()
    )
