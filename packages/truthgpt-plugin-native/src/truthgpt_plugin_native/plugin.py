"""What `truthgpt` activates; it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

from truthgpt_core.decoding import Engine, EngineOptions
from truthgpt_core.diagnosis import Diagnosis
from truthgpt_core.hookspecs import hookimpl
from truthgpt_core.optimization import StoredMatmul
from truthgpt_core.plugin_system import Plugin
from truthgpt_core.sources import ResolvedModel


class NativePlugin(Plugin):
    """Brings the engine `native`, and its products for layers that PyTorch runs."""

    @property
    def name(self) -> str:
        """Its name."""
        return "native"

    @property
    def version(self) -> str:
        """The version of its distribution."""
        return version("truthgpt-plugin-native")

    @hookimpl
    def make_engine(self, source: ResolvedModel, options: EngineOptions) -> Engine | None:
        """Run models of the Llama family on a CPU with compiled code."""
        if options.load is None or options.engine not in (None, "native"):
            return None
        if options.device not in ("auto", "cpu"):
            return None
        import torch

        from truthgpt_plugin_native.engine import make_engine
        from truthgpt_plugin_native.kv_cache import OPTION, read_option

        if options.device == "auto" and torch.cuda.is_available():
            return None
        kv_cache = read_option(options.given[OPTION]) if OPTION in options.given else None
        engine = make_engine(options.load(), kv_cache)
        if engine is not None:
            options.given.pop(OPTION, None)
        return engine

    @hookimpl
    def make_stored_matmul(self, device: str) -> StoredMatmul | None:
        """Multiply integers on a CPU with the engine's code."""
        if device != "cpu":
            return None
        from truthgpt_plugin_native.products import make_matmul

        return make_matmul()

    @hookimpl
    def diagnose(self) -> Iterator[Diagnosis]:
        """Say whether there is compiled code, for which processors, and whether it is right."""
        from truthgpt_plugin_native.diagnosis import diagnose

        yield diagnose()
