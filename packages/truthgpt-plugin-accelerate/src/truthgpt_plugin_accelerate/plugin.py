"""What `truthgpt` activates; it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.plugin_system import Plugin

if TYPE_CHECKING:
    from truthgpt_core.dynamic_factory import DynamicFactory

_BACKEND = "truthgpt_plugin_accelerate.backend:AccelerateBackend"


class AcceleratePlugin(Plugin):
    """Brings the training backend `accelerate`."""

    @property
    def name(self) -> str:
        """Its name."""
        return "accelerate"

    @property
    def version(self) -> str:
        """The version of its distribution."""
        return version("truthgpt-plugin-accelerate")

    @hookimpl
    def register_components(self, factories: Mapping[str, DynamicFactory[Any]]) -> None:
        """Register the backend, which is imported when a run looks for one."""
        factories["training_backend_factory"].register_lazy(
            "accelerate",
            partial(resolve_name, _BACKEND),
            describe=_BACKEND.replace(":", "."),
            target=_BACKEND,
        )
