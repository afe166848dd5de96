"""Wrong uses of the typed hooks: each marked line is an error to a type checker, no other is."""

from __future__ import annotations

from typing import Any

from truthgpt_core import Optimization, OptimizationContext, PluginManager


def call(
    manager: PluginManager, optimization: Optimization[Any], context: OptimizationContext
) -> None:
    """Call hooks as they cannot be called."""
    hooks = manager.hooks
    hooks.apply_optimization(optimization=optimization, model=1, contxt=context)  # error: call-arg
    hooks.apply_optimization(optimization="quantize", model=1, context=context)  # error: arg-type
    hooks.apply_optimization(optimization=optimization, context=context)  # error: call-arg
    hooks.apply_optimization(optimization, 1, context)  # error: call-arg
    hooks.apply_optimisation(optimization=optimization)  # error: attr-defined
    applied = hooks.apply_optimization(optimization=optimization, model=1, context=context)
    print(applied.model)  # error: union-attr
    step = hooks.make_decode_step(model=1, cache=None)
    step(1, 2)  # error: misc
