"""Right uses of the typed hooks: a type checker finds nothing, and knows each result."""

from __future__ import annotations

from typing import Any, reveal_type

from truthgpt_core import Applied, Optimization, OptimizationContext, PluginManager, hookimpl
from truthgpt_core.service_registry import ServiceRegistry


@hookimpl
def register_services(registry: ServiceRegistry) -> None:
    """Register nothing."""


@hookimpl
def apply_optimization(optimization: Optimization[Any]) -> Applied | None:
    """Leave it to others."""
    return None


def call(
    manager: PluginManager, optimization: Optimization[Any], context: OptimizationContext
) -> None:
    """Call each hook that is called."""
    applied = manager.hooks.apply_optimization(
        optimization=optimization, model=object(), context=context
    )
    reveal_type(applied)  # reveals: truthgpt_core.optimization.Applied | None
    step = manager.hooks.make_decode_step(model=object(), cache=None)
    reveal_type(step)  # reveals: (def (Any, Any) -> Any) | None
    assert applied is not None
    reveal_type(applied.coverage.total)  # reveals: int
