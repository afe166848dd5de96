"""Wrong uses of the hooks: a type checker says what is marked, and nothing else."""

from __future__ import annotations

from typing import Any, assert_type

from truthgpt_core import Applied, Optimization, OptimizationContext, PluginManager, hookimpl


def mark() -> None:
    """Mark an implementation with an option that there is not."""
    # error: call-overload, reportCallIssue
    hookimpl(first=True)


def name_arguments_wrongly(
    manager: PluginManager, optimization: Optimization[Any], context: OptimizationContext
) -> None:
    """Call hooks with arguments that they do not have, or without those that they have."""
    hooks = manager.hooks
    # error: call-arg, reportCallIssue
    hooks.apply_optimization(optimization=optimization, model=1, contxt=context)
    # error: call-arg, reportCallIssue
    hooks.apply_optimization(optimization=optimization, model=1, context=context, device="cpu")
    # error: call-arg, reportCallIssue
    hooks.apply_optimization(optimization=optimization, context=context)
    # error: call-arg, reportCallIssue
    hooks.apply_optimization(optimization, 1, context)
    # error: call-arg, reportCallIssue
    hooks.make_decode_step(model=object())
    # error: call-arg, reportCallIssue
    hooks.make_decode_step(object(), None)
    # error: call-arg, reportCallIssue
    hooks.diagnose(plugin="quantize")


def give_wrong_types(
    manager: PluginManager, optimization: Optimization[Any], context: OptimizationContext
) -> None:
    """Call hooks with arguments of other types."""
    hooks = manager.hooks
    # error: arg-type, reportArgumentType
    hooks.apply_optimization(optimization="quantize", model=1, context=context)
    # error: arg-type, reportArgumentType
    hooks.apply_optimization(optimization=optimization, model=1, context="cpu")
    # error: arg-type, reportArgumentType
    hooks.apply_optimization(optimization=Optimization, model=1, context=context)
    # error: arg-type, reportArgumentType
    hooks.apply_optimization(optimization=optimization, model=1, context=None)


def use_results_wrongly(
    manager: PluginManager, optimization: Optimization[Any], context: OptimizationContext
) -> None:
    """Take results for what they are not."""
    hooks = manager.hooks
    applied = hooks.apply_optimization(optimization=optimization, model=1, context=context)
    # error: union-attr, reportOptionalMemberAccess
    print(applied.model)
    assert applied is not None
    # error: attr-defined, reportAttributeAccessIssue
    print(applied.covrage)
    # error: misc, reportAttributeAccessIssue
    applied.model = object()
    step = hooks.make_decode_step(model=1, cache=None)
    # error: misc, reportOptionalCall
    step(1, 2)
    assert step is not None
    # error: call-arg, reportCallIssue
    step(1)
    for diagnosis in hooks.diagnose():
        # error: attr-defined, reportAttributeAccessIssue
        print(diagnosis.detail)
    # error: assert-type, reportAssertTypeFailure
    assert_type(applied, str)


def call_what_is_no_hook(manager: PluginManager) -> None:
    """Call a hook that does not exist, and hooks that only the plugin manager calls."""
    # error: attr-defined, reportAttributeAccessIssue
    manager.hooks.apply_optimisation(optimization=None)
    # error: attr-defined, reportAttributeAccessIssue
    manager.hooks.register_services(registry=None)
    # error: attr-defined, reportAttributeAccessIssue
    manager.hooks.register_components(factories={})
    # error: attr-defined, reportAttributeAccessIssue
    manager.hooks.register_config_sections(sections=None)


def replace_the_hooks(manager: PluginManager, other: Applied) -> None:
    """Put something else in the place of the hooks."""
    # error: assignment, reportAttributeAccessIssue
    manager.hooks = other
