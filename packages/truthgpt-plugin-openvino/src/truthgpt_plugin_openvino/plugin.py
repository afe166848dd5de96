"""What `truthgpt` activates; it imports nothing heavy."""

from __future__ import annotations

from importlib.metadata import version

from truthgpt_core.decoding import Engine, EngineOptions, GenerationError
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.plugin_system import Plugin
from truthgpt_core.sources import ResolvedModel


class OpenVINOPlugin(Plugin):
    """Brings the engine `openvino`."""

    @property
    def name(self) -> str:
        """Its name."""
        return "openvino"

    @property
    def version(self) -> str:
        """The version of its distribution."""
        return version("truthgpt-plugin-openvino")

    # First: others load a model with PyTorch to look at it.
    @hookimpl(tryfirst=True)
    def make_engine(self, source: ResolvedModel, options: EngineOptions) -> Engine | None:
        """Run a GGUF file on a CPU, where the user asks for this engine."""
        if options.engine != "openvino":
            return None
        if source.path is None or not source.is_gguf:
            raise GenerationError(
                f"The engine openvino runs GGUF files, and {source.spec:.200} is not one",
                hint="Measuring and optimizing convert such a file, and need an engine that gives "
                "logits.",
            )
        if options.device not in ("auto", "cpu") or options.dtype is not None:
            raise GenerationError(
                "The engine openvino runs a model on the CPU, with the dtypes that it chooses",
                hint="Leave out --device and the dtype, or take another engine.",
            )
        from truthgpt_plugin_openvino.engine import OpenVINOEngine

        return OpenVINOEngine(source.path)
