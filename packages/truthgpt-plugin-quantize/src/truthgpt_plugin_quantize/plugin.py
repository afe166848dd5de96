"""What `truthgpt` activates; it imports nothing heavy."""

from __future__ import annotations

from importlib.metadata import version

from truthgpt_core.plugin_system import Plugin


class QuantizePlugin(Plugin):
    """Brings the optimization `quantize`, which its entry point names."""

    @property
    def name(self) -> str:
        """Its name."""
        return "quantize"

    @property
    def version(self) -> str:
        """The version of its distribution."""
        return version("truthgpt-plugin-quantize")
