"""Calling a metric of a plugin, and checking what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from truthgpt_core.decoding import Engine, require
from truthgpt_core.evaluation import Metric, Quantity
from truthgpt_services.errors import ModelError, naming_the_plugin, origin_of
from truthgpt_services.results.schema import MetricValue


def measure(
    name: str,
    metric: Metric,
    engine: Engine,
    tokenizer: Any,
    windows: Sequence[list[int]],
    seed: int,
) -> list[MetricValue]:
    """Measure a model with a metric, and check what it returns.

    Args:
        name: of the metric.
        metric: that was made.
        engine: runs the model.
        tokenizer: to go with it.
        windows: tokens of the text.
        seed: for anything random.

    Raises:
        GenerationError: the engine lacks what the metric requires.
        ModelError: it failed, or returned something else than quantities with names of their own.
    """
    for capability in metric.requires:
        require(engine, capability, f'The metric "{name}"')
    with naming_the_plugin(metric, "metric"):
        found: list[Any] = list(metric.measure(engine, tokenizer, windows, seed))
        names = [each.name for each in found if isinstance(each, Quantity)]
        if len(names) != len(found) or len(set(names)) != len(names):
            raise ModelError(
                f'The metric "{name}" ({origin_of(metric)}) has to return quantities, '
                "each with a name of its own"
            )
        return [
            MetricValue(
                metric=name,
                name=each.name,
                value=float(each.value),
                unit=each.unit,
                error=None if each.error is None else float(each.error),
                better=each.better,
                note=each.note,
            )
            for each in found
        ]
