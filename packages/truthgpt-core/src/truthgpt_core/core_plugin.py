"""What the core itself brings: factories for plugins to fill, and its own hook implementations."""

from __future__ import annotations

from typing import Any

from truthgpt_core import optimization_calls
from truthgpt_core.dynamic_factory import DynamicFactory
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.optimization import Applied, Model, Optimization, OptimizationContext
from truthgpt_core.training_backend import TrainingBackend


def make_factories() -> dict[str, DynamicFactory[Any]]:
    """Make the factories that plugins fill."""
    return {
        "optimizer_factory": DynamicFactory(name="optimizer_factory"),
        "scheduler_factory": DynamicFactory(name="scheduler_factory"),
        "dataset_factory": DynamicFactory(name="dataset_factory"),
        "model_source_factory": DynamicFactory(name="model_source_factory"),
        "optimization_factory": DynamicFactory(Optimization, name="optimization_factory"),
        "training_backend_factory": DynamicFactory(
            TrainingBackend, name="training_backend_factory"
        ),
    }


class CorePlugin:
    """The core's own hook implementations, which come last."""

    @hookimpl(trylast=True)
    def apply_optimization(
        self, optimization: Optimization[Any], model: Model, context: OptimizationContext
    ) -> Applied:
        """Let the optimization do it itself."""
        return optimization_calls.apply(optimization, model, context)
