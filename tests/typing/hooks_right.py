"""Right uses of the hooks: a type checker finds nothing, and knows each result."""

# pyright: strict

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, assert_type

from truthgpt_core import Applied, Optimization, OptimizationContext, PluginManager, hookimpl
from truthgpt_core.config import ConfigSections, Section
from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.dynamic_factory import DynamicFactory
from truthgpt_core.service_registry import ServiceRegistry


class Budget(Section):
    """A section of a training configuration."""

    hours: float = 1.0


@hookimpl
def register_services(registry: ServiceRegistry) -> None:
    """Register a service."""
    registry.register("clock", dict, singleton=True)


@hookimpl
def register_components(factories: Mapping[str, DynamicFactory[Any]]) -> None:
    """Register a component."""
    factories["optimizer_factory"].register("nothing", dict)


@hookimpl
def register_config_sections(sections: ConfigSections) -> None:
    """Register a section."""
    sections.register("budget", Budget)


@hookimpl(tryfirst=True)
def diagnose() -> Iterable[Diagnosis]:
    """Say that all is well."""
    yield Diagnosis.ok("weather", "the sun shines")


@hookimpl(wrapper=True)
def apply_optimization(
    optimization: Optimization[Any],
) -> Generator[None, Applied | None, Applied | None]:
    """Look at the result."""
    print(optimization.name)
    return (yield)


@hookimpl(trylast=True)
def make_decode_step(model: Any, cache: Any) -> Callable[[Any, Any], Any] | None:
    """Leave it to others."""
    return None


def a_mark_changes_no_type() -> None:
    """A marked function keeps its type, so that its author is told when calling it wrongly."""
    assert_type(make_decode_step(object(), cache=None), Callable[[Any, Any], Any] | None)


def call(
    manager: PluginManager, optimization: Optimization[Any], context: OptimizationContext
) -> None:
    """Call each hook that is called."""
    hooks = manager.hooks
    found = hooks.diagnose()
    assert_type(found, list[Iterable[Diagnosis]])
    assert_type([each.fix for some in found for each in some], list[str])

    applied = hooks.apply_optimization(optimization=optimization, model=object(), context=context)
    assert_type(applied, Applied | None)
    assert applied is not None
    assert_type(applied.coverage.total, int)

    step = hooks.make_decode_step(model=object(), cache=None)
    assert_type(step, Callable[[Any, Any], Any] | None)
