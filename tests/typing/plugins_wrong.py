"""Plugins and optimizations written wrongly: a type checker says what is marked, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from truthgpt_core import (
    Applied,
    Coverage,
    Optimization,
    OptimizationContext,
    Plugin,
    PluginManager,
    Verdict,
    get_plugin_manager,
)
from truthgpt_core.service_registry import ServiceContainer, ServiceRegistry


class Clock(Plugin):
    """A plugin whose methods have other types than a plugin's."""

    @property
    # error: override, reportIncompatibleMethodOverride
    def name(self) -> bytes:
        """A name is a string."""
        return b"clock"

    # error: assignment, reportAssignmentType, reportIncompatibleMethodOverride
    version = 1

    # error: override, reportIncompatibleMethodOverride
    def initialize(self, registry: ServiceContainer) -> None:
        """A plugin is given the registry, not the container."""

    # error: override, reportIncompatibleMethodOverride
    def shutdown(self, now: bool) -> None:
        """Nobody gives it an argument."""


class Forgetful(Plugin):
    """A plugin that registers wrongly."""

    def initialize(self, registry: ServiceRegistry) -> None:
        """Registering needs a name and a service."""
        # error: arg-type, call-arg, reportCallIssue
        registry.register(dict)
        # error: arg-type, reportArgumentType
        registry.register("clock", dict, singleton="forever")


class Halve(Optimization[Any]):
    """An optimization whose members have other types than an optimization's."""

    # error: assignment, reportAssignmentType
    name = 1
    # error: assignment, reportAssignmentType
    stage = "weights"
    # error: assignment, reportAssignmentType
    after = ("quantize",)

    # error: override, reportIncompatibleMethodOverride
    def check(self, device: str) -> bool:
        """A verdict has a reason."""
        return True

    # error: override, reportIncompatibleMethodOverride
    def apply(self, model: Any) -> Applied:
        """It is given a context."""
        # error: call-arg, reportCallIssue
        return Applied(model, covered=("lm_head",))

    def restore(self, model: Any, context: OptimizationContext) -> None:
        """It returns the model."""


class Nothing(Optimization[Any]):
    """An optimization that does not say how it is applied."""

    name = "nothing"


def print_percent(done: float) -> None:
    """Progress is told in three arguments."""


def use(manager: PluginManager) -> None:
    """Use the manager as it cannot be used."""
    # error: call-arg, reportCallIssue
    get_plugin_manager(strict=True)
    # error: call-arg, reportCallIssue
    manager.make_optimization("quantize")
    # error: call-arg, reportCallIssue
    manager.make_optimization("quantize", scheme="int8")
    # error: arg-type, reportArgumentType
    manager.make_optimization("quantize", ["int8"])
    # error: arg-type, reportArgumentType
    manager.make_optimization(1, {})
    # error: attr-defined, reportAttributeAccessIssue
    manager.make_optimization("quantize", {}).aply(object())
    # error: arg-type, reportArgumentType
    manager.load_plugins_from_directory(None)
    # error: arg-type, reportArgumentType
    manager.activate(Clock())
    # error: attr-defined, reportAttributeAccessIssue
    manager.rows().names()
    # error: arg-type, reportArgumentType
    PluginManager("strict")
    # error: arg-type, call-arg, reportCallIssue
    PluginManager(None, True)
    # error: abstract, reportAbstractUsage
    Nothing()
    # error: arg-type, reportArgumentType
    OptimizationContext("cpu", "cache")
    # error: arg-type, reportArgumentType
    OptimizationContext("cpu", Path("cache"), progress=print_percent)
    # error: arg-type, reportArgumentType
    Coverage(covered=["lm_head"])
    # error: call-arg, reportCallIssue
    Verdict.no()
