"""The core of TruthGPT: what plugins and services are built on. It never imports torch.

The names here are the ones a plugin's author needs; each is imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truthgpt_core.errors import TruthGPTError
    from truthgpt_core.hookspecs import hookimpl
    from truthgpt_core.optimization import (
        Applied,
        Coverage,
        Optimization,
        OptimizationContext,
        OptimizationError,
        Options,
        Stage,
        Verdict,
    )
    from truthgpt_core.plugin_system import Plugin, PluginManager, get_plugin_manager
    from truthgpt_core.sources import (
        Exporter,
        ModelSource,
        PlainModel,
        ResolvedModel,
        TensorInfo,
        TextSource,
    )

__all__ = [
    "Applied",
    "Coverage",
    "Exporter",
    "ModelSource",
    "Optimization",
    "OptimizationContext",
    "OptimizationError",
    "Options",
    "PlainModel",
    "Plugin",
    "PluginManager",
    "ResolvedModel",
    "Stage",
    "TensorInfo",
    "TextSource",
    "TruthGPTError",
    "Verdict",
    "get_plugin_manager",
    "hookimpl",
]

_MODULES = (
    {
        "TruthGPTError": "errors",
        "hookimpl": "hookspecs",
        "Plugin": "plugin_system",
        "PluginManager": "plugin_system",
        "get_plugin_manager": "plugin_system",
    }
    | dict.fromkeys(
        (
            "Applied",
            "Coverage",
            "Optimization",
            "OptimizationContext",
            "OptimizationError",
            "Options",
            "Stage",
            "Verdict",
        ),
        "optimization",
    )
    | dict.fromkeys(
        ("Exporter", "ModelSource", "PlainModel", "ResolvedModel", "TensorInfo", "TextSource"),
        "sources",
    )
)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
