"""What `truthgpt` activates; it imports nothing heavy."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from truthgpt_core.decoding import Engine, EngineOptions
from truthgpt_core.dynamic_factory import DynamicFactory
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.plugin_system import Plugin
from truthgpt_core.sources import ResolvedModel
from truthgpt_plugin_openai.source import OpenAISource


class OpenAIPlugin(Plugin):
    """Brings the model source `openai` and its engine."""

    @property
    def name(self) -> str:
        """Its name."""
        return "openai"

    @property
    def version(self) -> str:
        """The version of its distribution."""
        return version("truthgpt-plugin-openai")

    @hookimpl
    def register_components(self, factories: dict[str, DynamicFactory[Any]]) -> None:
        """Register the source of `openai:URL`."""
        factories["model_source_factory"].register(OpenAISource.name, OpenAISource)

    # First: others load a model to look at it, and there are no files to load.
    @hookimpl(tryfirst=True)
    def make_engine(self, source: ResolvedModel, options: EngineOptions) -> Engine | None:
        """Run a model where its server is."""
        if source.kind != OpenAISource.name or options.engine not in (None, "openai"):
            return None
        from truthgpt_plugin_openai.engine import make_engine

        return make_engine(source.spec, options.given)
