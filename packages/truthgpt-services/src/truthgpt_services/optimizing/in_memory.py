"""The main job for a model that is in memory: what is kept takes its place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from truthgpt_core.optimization import Optimization, OptimizationError, Progress
from truthgpt_core.plugin_system import PluginManager
from truthgpt_services.models.snapshot import snapshot_model
from truthgpt_services.models.sources import files_of
from truthgpt_services.optimizing.pipeline import optimize
from truthgpt_services.optimizing.request import OptimizeFile
from truthgpt_services.results.schema import Report
from truthgpt_services.storage.atomic import StagedDirectory

Load = Callable[[str, Mapping[str, Any]], Any]
"""Called as `load(name, options)`; see `ModelService.load_model`."""


def optimize_in_memory(
    model: Any,
    tokenizer: Any,
    request: OptimizeFile,
    plugins: PluginManager,
    *,
    overwrite: bool,
    load: Load,
    progress: Progress,
) -> tuple[Any, Report]:
    """Optimize a model as `truthgpt optimize` does, from a copy of it on disk.

    Args:
        model: a causal language model of transformers; it stays as it is.
        tokenizer: to go with it; None for the one where it was loaded from.
        request: what to do; its model and device are not looked at. If it has no output,
            the result is nowhere but in memory.
        plugins: where optimizations come from.
        overwrite: replace the output directory, if it is one that TruthGPT wrote.
        load: loads the result.
        progress: told about work that takes seconds.

    Returns:
        The result, on the device of `model`, or `model` itself if no step was kept; and the
        report.

    Raises:
        OptimizationError: an optimization cannot be applied to this model.
        ModelError: the model cannot be saved, or there is no tokenizer.
        OutputError: the output directory cannot be written, or the disk is full.
        WorkerError: the baseline itself could not be measured.
    """
    if request.output is not None:
        # It says now, and not after the model was saved, if that may not be replaced.
        StagedDirectory(request.output, overwrite=overwrite)
    with snapshot_model(model, tokenizer) as source:
        device = str(next(model.parameters()).device)
        output = request.output or files_of(source).with_name("result")
        report = optimize(
            request.model_copy(update={"output": output, "device": device}),
            plugins,
            source=source,
            overwrite=overwrite,
            command=sys.orig_argv,
            progress=progress,
        )
        if not report.result.steps:
            return model, report
        optimized = load(str(output), {"device": device})
    if request.output is None:
        # Not the directory that is gone.
        optimized.config.name_or_path = optimized.name_or_path = model.name_or_path
    return optimized, report


def refuse_unknown_to_workers(
    optimizations: Sequence[Optimization[Any]], plugins: PluginManager
) -> None:
    """See that worker processes, which go by the name, make what was given.

    Args:
        optimizations: with their options.
        plugins: where optimizations come from.

    Raises:
        OptimizationError: the name of one is unknown, or that of another class.
    """
    for each in optimizations:
        found = type(plugins.make_optimization(each.name, each.options.model_dump(mode="json")))
        if found is not type(each):
            raise OptimizationError(
                f'"{each.name}" cannot be measured: worker processes find '
                f"{found.__module__}.{found.__qualname__} by that name, and not what was given",
                hint="Give it a name of its own, in a distribution that is installed.",
            )
