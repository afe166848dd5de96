"""What `truthgpt` activates; it imports nothing heavy."""

from __future__ import annotations

from importlib.metadata import version

from truthgpt_core.plugin_system import Plugin


class CompilePlugin(Plugin):
    """Brings the optimization `torch_compile`, which its entry point names."""

    @property
    def name(self) -> str:
        """Its name."""
        return "torch_compile"

    @property
    def version(self) -> str:
        """The version of its distribution."""
        return version("truthgpt-plugin-compile")
