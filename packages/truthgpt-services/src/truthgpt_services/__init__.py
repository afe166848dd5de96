"""Load, train, optimize, measure and run open language models.

The services are imported when first used: importing this package does not import torch. It lets
transformers load models that TruthGPT saved, once transformers is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from truthgpt_services.afterwards import after_import

if TYPE_CHECKING:
    from truthgpt_services.inference.service import InferenceService
    from truthgpt_services.models.service import ModelService
    from truthgpt_services.training.service import TrainingService

__all__ = ["InferenceService", "ModelService", "TrainingService"]

_HOMES = {
    "InferenceService": "inference.service",
    "ModelService": "models.service",
    "TrainingService": "training.service",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def _register_with_transformers() -> None:
    from truthgpt_services.models.transformers_integration import register

    register()


after_import("transformers.quantizers.auto", _register_with_transformers)
