"""The models that the page compares: loaded, and asked something once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truthgpt_core.application import Application, get_application
from truthgpt_core.errors import TruthGPTError, UsageError
from truthgpt_core.optimization import Progress, no_progress
from truthgpt_core.paths import expanded
from truthgpt_core.sources import ResolvedModel
from truthgpt_plugin_gradio.errors import DemoError
from truthgpt_services import InferenceService
from truthgpt_services.inference.prompts import as_conversation
from truthgpt_services.models.recipe import is_saved, read_recipe
from truthgpt_services.results.io import JSON_NAME, ReportError, read_report

if TYPE_CHECKING:
    from truthgpt_services import ModelService
    from truthgpt_services.results.schema import Report

METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class DemoModel:
    """A model that the page can ask.

    Attributes:
        spec: as the user named it.
        service: generates with this model alone.
        engine: the name of what runs it.
        tokenizer: of the model; None where the engine's server has it.
        steps: names of the optimizations that it was made with.
        dtype: of the weights that no step changed; empty if the engine does not say.
        weights_bytes: size of the weights in memory; None if the engine does not say.
        report: what `truthgpt optimize` measured of it; None if there is none.
        report_problem: why the report cannot be read; empty if it can, or if there is none.
    """

    spec: str
    service: InferenceService
    engine: str
    tokenizer: Any = None
    steps: tuple[str, ...] = ()
    dtype: str = ""
    weights_bytes: int | None = None
    report: Report | None = None
    report_problem: str = ""

    def prompt(self, question: str) -> Any:
        """Return a question as a conversation, or as a text if there is no chat template."""
        if self.tokenizer is None:
            return [{"role": "user", "content": question}]
        return as_conversation(self.tokenizer, question)


def load_models(
    specs: Sequence[str],
    application: Application | None = None,
    *,
    engine: str | None = None,
    progress: Progress = no_progress,
) -> list[DemoModel]:
    """Load the models that the page compares.

    All are found before the first is loaded, so that a wrong name is known at once. Each answers
    once, with a token, so that the first question does not pay for what is set up at first use.

    Args:
        specs: the models, named as for `ModelService.load_model`. If it is one that TruthGPT
            optimized and nothing else, the model that it was made from comes first.
        application: whose services load them; the default one if None.
        engine: the name of the engine that runs all of them; None for any.
        progress: told about work that takes seconds.

    Returns:
        Two models or more, each once.

    Raises:
        UsageError: there are fewer than two.
        DemoError: the model that the only one was made from cannot be used.
        TruthGPTError: one cannot be found or loaded.
    """
    application = application or get_application()
    models: ModelService = application.get_service("model_service")
    models.progress = progress
    found = [models.resolve(spec) for spec in dict.fromkeys(specs)]
    if len(found) == 1:
        found = [_source_of(models, found[0]), *found]
    if len(found) < 2:
        raise UsageError("No model is named", hint="truthgpt demo DIR, or truthgpt demo BASE DIR.")
    return [_loaded(models, application, each, engine) for each in found]


def find_run(models: Sequence[DemoModel], given: str | Path | None = None) -> Path | None:
    """Return the directory of the training run whose losses the page draws.

    Args:
        models: one that lies in the directory of a run, as `truthgpt train` writes it, has one.
        given: the directory that the user named, before all others.

    Raises:
        DemoError: the directory that the user named has no metrics.
    """
    if given is not None:
        if not (directory := expanded(given)).joinpath(METRICS_NAME).is_file():
            raise DemoError(
                f"{directory} is not the directory of a training run: it has no {METRICS_NAME}",
                hint="Name the output_dir of `truthgpt train`.",
            )
        return directory
    folders = [folder for model in models if (folder := expanded(model.spec)).is_dir()]
    parents = [folder.parent for folder in folders]
    return next((each for each in parents if (each / METRICS_NAME).is_file()), None)


def _source_of(models: ModelService, optimized: ResolvedModel) -> ResolvedModel:
    """Return the model that an optimized one was made from."""
    path, hint = optimized.path, f"Name one before it: truthgpt demo BASE {optimized.spec}."
    if path is None or not is_saved(path):
        raise UsageError(
            f"{optimized.spec} is the only model, and was not made by `truthgpt optimize`",
            hint=hint,
        )
    spec = read_recipe(path).source
    try:
        found = models.resolve(spec)
    except TruthGPTError as error:
        raise DemoError(
            f"The model that {optimized.spec} was made from cannot be found: {error.message}",
            hint=hint,
        ) from error
    # A directory is input: what it names must not be sent what the user asks.
    if found.path is None:
        raise DemoError(
            f"{optimized.spec} says that it was made from {spec}, which is not on this machine",
            hint=hint,
        )
    return found


def _loaded(
    models: ModelService, application: Application, source: ResolvedModel, engine: str | None
) -> DemoModel:
    models.progress(f"Loading {source.spec}", 0, 0)
    made = models.make_engine(source, engine=engine)
    tokenizer = made.tokenizer
    if tokenizer is None and source.path is not None:
        tokenizer = models.load_tokenizer(source.spec)
    service = InferenceService(application.plugins)
    # A question that is asked again is read again, so that first tokens can be compared.
    service.configure(made, tokenizer, {"prefix_cache_tokens": 0})
    about, path = made.describe(), source.path
    saved = path is not None and is_saved(path)
    report, problem = _report_of(path)
    model = DemoModel(
        spec=source.spec,
        service=service,
        engine=made.name,
        tokenizer=tokenizer,
        steps=tuple(each.name for each in read_recipe(path).steps) if path and saved else (),
        dtype=str(about.get("dtype", "")),
        weights_bytes=about.get("weights_bytes"),
        report=report,
        report_problem=problem,
    )
    if made.capabilities.logits:
        service.generate(model.prompt("Hello"), {"max_new_tokens": 2})
    return model


def _report_of(path: Path | None) -> tuple[Report | None, str]:
    if path is None or not (path / JSON_NAME).is_file():
        return None, ""
    try:
        return read_report(path), ""
    except ReportError as error:
        return None, str(error)
