"""Load, train, optimize, measure and run open language models.

The services are imported when first used: importing this package does not import torch. Once
transformers is imported, it loads models that TruthGPT saved; once `truthgpt_core.config` is,
training configurations have the sections of this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from truthgpt_services.after_import import after_import

if TYPE_CHECKING:
    from truthgpt_services.services.inference_service import InferenceService
    from truthgpt_services.services.model_service import ModelService
    from truthgpt_services.services.training_service import TrainingService

__all__ = ["InferenceService", "ModelService", "TrainingService"]

_MODULES = {
    "InferenceService": "services.inference_service",
    "ModelService": "services.model_service",
    "TrainingService": "services.training_service",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def _register_with_transformers() -> None:
    from truthgpt_services.services.transformers_integration import register

    register()


def _register_config_sections() -> None:
    import_module(f"{__name__}.training.config_sections")


after_import("transformers.quantizers.auto", _register_with_transformers)
after_import("truthgpt_core.config.sections", _register_config_sections)
