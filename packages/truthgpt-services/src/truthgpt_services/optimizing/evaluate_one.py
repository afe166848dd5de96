"""One model measured alone: the main job without a step."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from truthgpt_core.errors import TruthGPTError
from truthgpt_core.optimization import Progress
from truthgpt_core.plugin_system import PluginManager
from truthgpt_services.errors import refuse_unknown_component
from truthgpt_services.measuring.text import evaluation_text
from truthgpt_services.measuring.worker_log import keep_logs_on_failure
from truthgpt_services.models.sources import resolve
from truthgpt_services.optimizing.pipeline import Pipeline
from truthgpt_services.optimizing.request import OptimizeFile
from truthgpt_services.results.schema import Report


def evaluate(
    request: OptimizeFile,
    plugins: PluginManager,
    *,
    command: Sequence[str] = (),
    progress: Progress,
) -> Report:
    """Measure a model as it is.

    Args:
        request: what to measure and how; its model is given, its steps are not looked at.
        plugins: where sources of models come from.
        command: the command line, for the report.
        progress: told about work that takes seconds.

    Returns:
        A report whose only variant is the model, as the baseline. Nothing was written.

    Raises:
        ModelError: the model cannot be found or loaded.
        OptimizationError: it was made with an optimization that is not installed.
        WorkerError: it could not be measured.
    """
    if request.model is None:
        raise TruthGPTError("No model is named", hint="Write truthgpt eval MODEL.")
    text = evaluation_text(request.text)
    plugins.activate_all()
    for metric in request.metrics:
        refuse_unknown_component("metric", metric, plugins.factories["metric_factory"])
    resolved = resolve(request.model, plugins.factories["model_source_factory"])
    with tempfile.TemporaryDirectory(prefix="truthgpt-") as scratch, ExitStack() as stack:
        place = Path(scratch)
        stack.enter_context(keep_logs_on_failure(place))
        run = Pipeline(request, resolved, text, place, place, stack, plugins, progress)
        run.start()
        return run.report(command)
