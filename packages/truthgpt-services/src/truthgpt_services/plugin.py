"""What this package brings to TruthGPT: services, components, the plain steps of its loops."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.errors import in_one_line
from truthgpt_core.event_system import EventEmitter
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.plugin_system import Plugin, PluginManager
from truthgpt_core.training import TrainingBackend

if TYPE_CHECKING:
    from truthgpt_core.config import ConfigSections
    from truthgpt_core.decoding import Decoder, Engine, EngineOptions, KVCache
    from truthgpt_core.dynamic_factory import DynamicFactory
    from truthgpt_core.evaluation import Measured
    from truthgpt_core.service_registry import ServiceRegistry
    from truthgpt_core.sources import ResolvedModel
    from truthgpt_services.services.inference_service import InferenceService
    from truthgpt_services.services.model_service import ModelService
    from truthgpt_services.services.training_job import TrainingJob
    from truthgpt_services.services.training_service import TrainingService

_LIBRARIES = (
    "transformers:AutoModelForCausalLM",
    "safetensors.torch:load_file",
    "gguf:GGUFReader",
    "accelerate:init_empty_weights",
)
"""What loading models needs; looking these names up imports what counts of it."""


class ServicesPlugin(Plugin):
    """Registers the services and components of this package, without importing torch."""

    @property
    def name(self) -> str:
        """Its name."""
        return "services"

    @property
    def version(self) -> str:
        """The version of its distribution."""
        return version("truthgpt-services")

    @hookimpl
    def register_services(self, registry: ServiceRegistry) -> None:
        """Register `model_service`, `inference_service`, `training_service`, `training_job`."""
        for name, make in SERVICES.items():
            registry.register(name, make)

    @hookimpl
    def register_components(self, factories: Mapping[str, DynamicFactory[Any]]) -> None:
        """Register sources of models and of texts, exporters, and what training is made of."""
        from truthgpt_services.data.sources.file_sources import (
            ChatLines,
            CsvFiles,
            JsonLines,
            TextFiles,
        )
        from truthgpt_services.data.sources.library_sources import HubDataset, ParquetFiles
        from truthgpt_services.data.sources.python_docs import PythonDocs
        from truthgpt_services.models.exporters import SafetensorsExporter
        from truthgpt_services.models.sources import HubSource, LocalSource, PackageSource
        from truthgpt_services.training.lr_schedulers import SCHEDULERS
        from truthgpt_services.training.optimizers import OPTIMIZER_ALIASES, OPTIMIZERS

        backends = factories["training_backend_factory"]
        backends.register(TrainingBackend.name, TrainingBackend)

        for source in (PackageSource, LocalSource, HubSource):
            factories["model_source_factory"].register(source.name, source)
        factories["exporter_factory"].register(SafetensorsExporter.name, SafetensorsExporter)
        files = (ChatLines, CsvFiles, JsonLines, TextFiles)
        for texts in (*files, HubDataset, ParquetFiles, PythonDocs):
            factories["dataset_factory"].register(texts.name, texts)
        _register_lazily(factories["optimizer_factory"], OPTIMIZERS)
        for alias, name in OPTIMIZER_ALIASES.items():
            factories["optimizer_factory"].register_alias(alias, name)
        _register_lazily(factories["scheduler_factory"], SCHEDULERS)

    @hookimpl
    def register_config_sections(self, sections: ConfigSections) -> None:
        """Register `model`, `data`, `training`, `architecture` and `lora`."""
        from truthgpt_services.training.config_sections import register_sections

        register_sections(sections)

    @hookimpl
    def diagnose(self) -> Iterator[Diagnosis]:
        """Import what models are loaded with, and say where models of the hub are kept."""
        for path in _LIBRARIES:
            yield _library(path)
        yield _hub()

    @hookimpl(tryfirst=True)
    def judge_step(
        self, candidate: Measured, baseline: Measured, gate: Mapping[str, Any]
    ) -> str | None:
        """Object to a loss of quality beyond the bounds."""
        from truthgpt_services.optimizing.criteria import quality_lost

        return quality_lost(candidate, baseline, gate)

    @hookimpl(trylast=True)
    def make_engine(self, source: ResolvedModel, options: EngineOptions) -> Engine | None:
        """Run a model that is on this machine with PyTorch."""
        if options.load is None or options.engine not in (None, "torch"):
            return None
        from truthgpt_services.inference.engine import TorchEngine

        return TorchEngine(options.load(), options.hooks)

    @hookimpl(trylast=True)
    def make_decoder(self, engine: Engine, options: dict[str, Any]) -> Decoder:
        """Decode token by token, or speculatively where an option or the model says so."""
        from truthgpt_services.inference.decoder import TokenByToken
        from truthgpt_services.services.speculation import speculative

        return speculative(engine, options) or TokenByToken()

    @hookimpl(trylast=True)
    def make_cache(self, model: Any, positions: int) -> KVCache:
        """Return a cache of transformers."""
        from truthgpt_services.inference.engine import transformers_cache

        return transformers_cache(model, positions)

    @hookimpl(trylast=True)
    def make_decode_step(self, model: Any, cache: Any) -> Callable[[Any, Any], Any]:
        """Call the model for one token."""

        def step(token: Any, position: Any) -> Any:
            output = model(
                input_ids=token, position_ids=position, past_key_values=cache, use_cache=True
            )
            return output.logits[:, -1]

        return step

    @hookimpl(trylast=True)
    def make_training_step(self, model: Any) -> Callable[[Mapping[str, Any]], Any]:
        """Call the model, and sum the losses of what it predicts."""
        from truthgpt_services.training.compiling import own_step

        return own_step(model)


def _register_lazily(factory: DynamicFactory[Any], components: Mapping[str, str]) -> None:
    for name, target in components.items():
        describe = target.replace(":", ".")
        factory.register_lazy(name, partial(resolve_name, target), describe=describe, target=target)


def _library(path: str) -> Diagnosis:
    distribution = re.split("[.:]", path)[0]
    try:
        resolve_name(path)
        return Diagnosis.ok(distribution, version(distribution))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - shown to the user
        return Diagnosis.failed(
            distribution,
            f"importing it: {in_one_line(error)}",
            "pip install --force-reinstall truthgpt-services",
        )


def _hub() -> Diagnosis:
    from huggingface_hub import constants

    place = f"models are kept in {constants.HF_HUB_CACHE}"
    if constants.HF_HUB_OFFLINE:
        return Diagnosis.ok("hub", f"{place}, and none is downloaded: HF_HUB_OFFLINE is set")
    return Diagnosis.ok("hub", place)


# Functions, so that registering the services imports no torch. Their parameters are those of
# the constructors, which the container fills.


def _model_service(plugins: PluginManager, events: EventEmitter) -> ModelService:
    from truthgpt_services.services.model_service import ModelService

    return ModelService(plugins, events)


def _inference_service(plugins: PluginManager, events: EventEmitter) -> InferenceService:
    from truthgpt_services.services.inference_service import InferenceService

    return InferenceService(plugins, events)


def _training_service(plugins: PluginManager, events: EventEmitter) -> TrainingService:
    from truthgpt_services.services.training_service import TrainingService

    return TrainingService(plugins, events)


def _training_job(plugins: PluginManager, model_service: Any, training_service: Any) -> TrainingJob:
    from truthgpt_services.services.training_job import TrainingJob

    return TrainingJob(plugins, model_service, training_service)


SERVICES: Mapping[str, Callable[..., Any]] = {
    "model_service": _model_service,
    "inference_service": _inference_service,
    "training_service": _training_service,
    "training_job": _training_job,
}
