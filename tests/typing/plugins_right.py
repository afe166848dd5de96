"""Plugins and optimizations written rightly: a type checker finds nothing."""

# pyright: strict

from __future__ import annotations

from typing import Any, ClassVar, assert_type

from truthgpt_core import (
    Applied,
    Coverage,
    Optimization,
    OptimizationContext,
    Options,
    Plugin,
    PluginManager,
    Stage,
    Verdict,
    get_plugin_manager,
    hookimpl,
)
from truthgpt_core.plugin_system import PluginRow
from truthgpt_core.service_registry import ServiceContainer, ServiceRegistry


class Clock(Plugin):
    """A plugin that is a class."""

    @property
    def name(self) -> str:
        """Its name."""
        return "clock"

    @property
    def version(self) -> str:
        """Its version."""
        return "1.0"

    def initialize(self, registry: ServiceRegistry) -> None:
        """Register a service."""
        registry.register("clock", dict)

    @hookimpl
    def register_services(self, registry: ServiceRegistry) -> None:
        """Register another one."""

    def shutdown(self) -> None:
        """Have nothing to do."""


class HalveOptions(Options):
    """What can be chosen."""

    skip: tuple[str, ...] = ()
    scheme: str = "auto"


class Halve(Optimization[HalveOptions]):
    """An optimization."""

    name = "halve"
    stage = Stage.EXECUTION
    after = frozenset({"quantize"})
    options_type: ClassVar[type[Options]] = HalveOptions

    def check(self, device: str) -> Verdict:
        """Ask for a CPU."""
        return Verdict.yes() if device == "cpu" else Verdict.no("it needs a CPU")

    def apply(self, model: Any, context: OptimizationContext) -> Applied:
        """Change nothing."""
        assert_type(self.options.skip, tuple[str, ...])
        context.progress("halving", 0, 1)
        covered = Coverage(covered=("lm_head",), skipped=(("embed", "it is none"),))
        return Applied(model, covered, {"scheme": self.options.scheme}, notes=("Done.",))

    def restore(self, model: Any, context: OptimizationContext) -> Any:
        """Change nothing."""
        return model


def use() -> None:
    """Use the manager as a program does."""
    manager = get_plugin_manager()
    assert_type(manager, PluginManager)
    assert_type(manager.container, ServiceContainer)
    manager.register_plugin(Clock())
    manager.activate("clock")
    assert_type(manager.rows(), list[PluginRow])
    assert_type(manager.optimization_names(), list[str])
    optimization = manager.make_optimization("quantize", {"scheme": "int8"})
    assert_type(optimization, Optimization[Any])
    assert_type(optimization.check("cpu").reason, str)
    assert_type(Halve(skip=["lm_head"]).options, HalveOptions)
    PluginManager(ServiceContainer(), strict=True).load_plugins_from_directory("plugins")
