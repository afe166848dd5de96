"""What this package brings to TruthGPT: its services, its model sources, the plain decode step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from truthgpt_core.event_system import EventType, emit_event
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.plugin_system import Plugin

if TYPE_CHECKING:
    from truthgpt_core.dynamic_factory import DynamicFactory
    from truthgpt_core.optimization import Applied, Optimization
    from truthgpt_core.service_registry import ServiceRegistry
    from truthgpt_services.inference.service import InferenceService
    from truthgpt_services.models.service import ModelService


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
        """Register `model_service` and `inference_service`."""
        registry.register("model_service", _model_service, singleton=True)
        registry.register("inference_service", _inference_service, singleton=True)

    @hookimpl
    def register_components(self, factories: Mapping[str, DynamicFactory[Any]]) -> None:
        """Register the kinds of places that models come from."""
        from truthgpt_services.models.sources import HubSource, LocalSource, PackageSource

        for source in (PackageSource, LocalSource, HubSource):
            factories["model_source_factory"].register(source.name, source)

    @hookimpl(wrapper=True)
    def apply_optimization(
        self, optimization: Optimization[Any]
    ) -> Generator[None, Applied | None, Applied | None]:
        """Tell of every optimization that is applied, whoever applies it."""
        emit_event(EventType.OPTIMIZATION_STARTED, {"optimization": optimization.name})
        applied = yield
        if applied is not None:
            covered = len(applied.coverage.covered)
            emit_event(
                EventType.OPTIMIZATION_APPLIED,
                {"optimization": optimization.name, "covered": covered},
            )
        return applied

    @hookimpl(trylast=True)
    def make_decode_step(self, model: Any, cache: Any) -> Callable[[Any, Any], Any]:
        """Call the model for one token."""

        def step(token: Any, position: Any) -> Any:
            output = model(
                input_ids=token, position_ids=position, past_key_values=cache, use_cache=True
            )
            return output.logits[:, -1]

        return step


def _model_service() -> ModelService:
    from truthgpt_services.models.service import ModelService

    return ModelService()


def _inference_service() -> InferenceService:
    from truthgpt_services.inference.service import InferenceService

    return InferenceService()
