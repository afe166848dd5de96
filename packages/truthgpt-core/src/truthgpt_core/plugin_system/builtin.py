"""What the core itself brings: factories for plugins to fill, and its own hook implementations."""

from __future__ import annotations

from functools import partial
from typing import Any

from truthgpt_core.cluster import Cluster
from truthgpt_core.decoding import LogitsProcessor
from truthgpt_core.dynamic_factory import DynamicFactory
from truthgpt_core.evaluation import Metric
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.optimization import Applied, Model, Optimization, OptimizationContext, calls
from truthgpt_core.plugin_system import catalogue
from truthgpt_core.sources import Exporter, ModelSource, TextSource
from truthgpt_core.training import TrainingBackend


def make_factories(*, takes_open: bool = False) -> dict[str, DynamicFactory[Any]]:
    """Make the factories that plugins fill.

    Args:
        takes_open: whether they have the components that `register_component` registers for
            no factory in particular.
    """
    make = partial(DynamicFactory[Any], takes_open=takes_open)
    return {
        "optimizer_factory": make(name="optimizer_factory"),
        "scheduler_factory": make(name="scheduler_factory"),
        "dataset_factory": make(TextSource, name="dataset_factory"),
        "model_source_factory": make(ModelSource, name="model_source_factory"),
        "exporter_factory": make(Exporter, name="exporter_factory"),
        "optimization_factory": make(
            Optimization,
            name="optimization_factory",
            distribution_of=partial(catalogue.distribution_of, "optimizations"),
        ),
        "metric_factory": make(Metric, name="metric_factory"),
        "logits_processor_factory": make(LogitsProcessor, name="logits_processor_factory"),
        "training_backend_factory": make(
            TrainingBackend,
            name="training_backend_factory",
            distribution_of=partial(catalogue.distribution_of, "training_backends"),
        ),
        "cluster_factory": make(
            Cluster,
            name="cluster_factory",
            distribution_of=partial(catalogue.distribution_of, "clusters"),
        ),
    }


class CorePlugin:
    """The core's own hook implementations, which come last."""

    @hookimpl(trylast=True)
    def apply_optimization(
        self, optimization: Optimization[Any], model: Model, context: OptimizationContext
    ) -> Applied:
        """Let the optimization do it itself."""
        return calls.apply(optimization, model, context)
