"""Applying one optimization to a model, with everything that its author may get wrong."""

from __future__ import annotations

from typing import Any

from torch import nn

from truthgpt_core.event_system import EventEmitter, OptimizationApplied, OptimizationStarted
from truthgpt_core.hookspecs import Hooks
from truthgpt_core.optimization import Applied, Optimization, OptimizationContext
from truthgpt_core.optimization.calls import refuse_malformed
from truthgpt_core.optimization.errors import author_error, naming_the_author
from truthgpt_services.models.changes import part_names


def apply(
    hooks: Hooks,
    events: EventEmitter,
    optimization: Optimization[Any],
    model: nn.Module,
    context: OptimizationContext,
) -> Applied:
    """Apply an optimization through the hook, so that plugins can take part.

    Args:
        hooks: of the plugin manager.
        events: is told that it begins, and what it covered.
        optimization: with its options.
        model: changed in place where the optimization can.
        context: what it may use besides.

    Raises:
        OptimizationError: it cannot be done to this model, it failed, or what it gave cannot
            be used.
    """
    kind = type(optimization)
    events.emit(OptimizationStarted(optimization=optimization.name))
    names = part_names(model)
    # What the optimization itself raises names it already; a plugin that takes part does not.
    with naming_the_author(kind, "apply"):
        applied: object = hooks.apply_optimization(
            optimization=optimization, model=model, context=context
        )
    if not isinstance(applied, Applied) or not isinstance(applied.model, nn.Module):
        raise author_error(
            kind, "apply", "gave no model", "It has to return Applied(model), with the model."
        )
    refuse_malformed(optimization, applied, names | part_names(applied.model))
    covered = len(applied.coverage.covered)
    events.emit(OptimizationApplied(optimization=optimization.name, covered=covered))
    return applied
